"""Which method a configuration or a record tells, and how it is named."""

import pytest

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.export.methods import EITHER, MIXTURE, linked, method_of, names_in, recorded_method
from modeling_a2mim.pretrained import MASKED


SIMMIM = {
    "mask_fill": "none",
    "mask_token_mode": "replace",
    "mask_gamma_init": None,
    "spatial_loss": "l1",
    "frequency_loss_weight": 0.0,
}


def test_method_of_settings():
    assert method_of(A2MIMConfig()) == "A2MIM"
    assert method_of(A2MIMConfig(**SIMMIM)) == "SimMIM"
    assert method_of(A2MIMConfig(**{**SIMMIM, "frequency_loss_weight": 0.1})) == MIXTURE
    assert method_of(A2MIMConfig(**SIMMIM, target="normalised")) == "SimMIM with normalised pixels as the target"


@pytest.mark.parametrize(
    ("record", "method"),
    [
        ({}, None),
        ({"method": "SimMIM", "earlier": [{"method": "A2MIM"}]}, "SimMIM"),
        ({"task": "classification", "earlier": [{"method": "A2MIM"}, {"method": "SimMIM"}]}, "SimMIM"),
        ({"task": MASKED}, EITHER),
        ({"earlier": "nothing that we write"}, None),
    ],
)
def test_method_of_records(record, method):
    assert recorded_method(record) == method


def test_names_and_links():
    assert names_in(MIXTURE) == names_in(EITHER) == ["A2MIM", "SimMIM"]
    assert names_in(None) == []
    assert linked(MIXTURE) == (
        "a mixture of [A2MIM](https://arxiv.org/abs/2205.13943) and [SimMIM](https://arxiv.org/abs/2111.09886)"
    )
