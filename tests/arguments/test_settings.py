"""Given arguments as fields of the configuration."""

import pytest

from modeling_a2mim.arguments.model import PreTrainingModelArguments
from modeling_a2mim.arguments.settings import given_settings, new_config


def test_only_what_is_given():
    assert given_settings(PreTrainingModelArguments()) == {}
    args = PreTrainingModelArguments(
        image_size=[64], mask_patch_size=[8, 16], model_args='{"depth": 1}', mask_site="-1", mask_gamma_init="None"
    )
    expected = {"image_size": 64, "mask_patch_size": [8, 16], "model_args": {"depth": 1}, "mask_site": -1}
    assert given_settings(args) == {**expected, "mask_gamma_init": None}
    named = PreTrainingModelArguments(mask_site="stages.1", mask_gamma_init="0.5")
    assert given_settings(named) == {"mask_site": "stages.1", "mask_gamma_init": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_args": "depth=1"}, "^model_args: expected a JSON object"),
        ({"mask_gamma_init": "small"}, "^mask_gamma_init: expected a number or none, got 'small'"),
    ],
)
def test_what_cannot_be_read(given, message):
    with pytest.raises(ValueError, match=message):
        given_settings(PreTrainingModelArguments(**given))


def test_new_configurations():
    config = new_config(PreTrainingModelArguments(preset="simmim", architecture="test_vit", image_size=[64]))
    assert (config.architecture, config.input_size, config.mask_token_mode) == ("test_vit", (64, 64), "replace")
    assert new_config(PreTrainingModelArguments()).architecture == "resnet50"
