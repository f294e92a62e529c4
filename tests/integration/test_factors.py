"""What `benchmarks/variants.py` changes of A2MIM, against numbers that can be seen to be right."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import factors, methods
from benchmarks.factors import BASE, FACTORS, config_of, plan, reference_of
from benchmarks.variants import VARIANTS, VisibleBatchNorm, recalibrated
from modeling_a2mim import A2MIMConfig, A2MIMModel


SMALL = {"model_args": {"channels": [8, 16, 24, 32], "stem_width": 8}, "image_size": 64, "num_channels": 1}


def config(**options):
    return A2MIMConfig.resnet("resnet10t", **SMALL, mask_patch_size=16, decoder="multiscale", **options)


def test_statistics_of_visible_cells():
    torch.manual_seed(0)
    x, mask = torch.randn(4, 3, 8, 8), torch.rand(4, 4, 4) < 0.5
    norm = VisibleBatchNorm(3)
    norm.mask = mask
    visible = x.permute(0, 2, 3, 1)[~mask.repeat_interleave(2, 1).repeat_interleave(2, 2)]
    found = norm(x)
    expected = (x - visible.mean(0)[:, None, None]) / (visible.var(0, correction=0)[:, None, None] + norm.eps).sqrt()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * visible.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * visible.var(0))


def test_nothing_masked_is_plain_batch_norm():
    torch.manual_seed(0)
    x, norm, plain = torch.randn(4, 3, 8, 8), VisibleBatchNorm(3), nn.BatchNorm2d(3)
    norm.mask = torch.zeros(4, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert torch.equal(norm.eval()(x), nn.functional.batch_norm(x, norm.running_mean, norm.running_var))


def test_recalibrated_statistics_are_those_of_all_batches():
    torch.manual_seed(0)
    core = A2MIMModel(config())
    batches = list(torch.randn(3, 4, 1, 64, 64))
    recalibrated(core, batches)
    first = next(module for module in core.modules() if isinstance(module, nn.BatchNorm2d))
    convolution = core.encoder.conv1[0]
    expected = torch.stack([convolution(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(first.running_mean, expected)
    assert not core.training
    assert first.momentum == 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_the_whole_encoder_by_another_loss(variant):
    losses = {}
    for make in (VARIANTS[variant], VARIANTS[variant].__mro__[1]):
        torch.manual_seed(0)
        model = make(config(), 1)
        generator = torch.Generator().manual_seed(0)
        views, mask = model.inputs(torch.randn(4, 1, 64, 64, generator=generator), None, generator)
        loss = model(views, mask)
        loss.backward()
        assert all(p.grad is not None for p in model.a2mim.encoder.parameters())
        losses[make] = loss.item()
    one, other = losses.values()
    assert one != other


def test_every_factor_has_a_config_and_a_reference():
    runs = [(factor, value) for _, factor, value, _ in plan(["solar_cells"], [0])]
    assert len(runs) == len(set(runs))
    for factor, value in runs:
        assert reference_of({"factor": factor, "value": value}) in runs
        config_of(FACTORS[factor][value])
    changed = {value: setting for values in FACTORS.values() for value, setting in values.items()}
    assert sum(setting == BASE for setting in changed.values()) == 1


def test_what_cannot_run_is_said(tmp_path, monkeypatch):
    """And nothing is written."""
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    for words, message in (
        (["typo"], r"^--only: nothing has \['typo'\] in its name, such as solar_cells, base"),
        (["base"], "^solar_cells: no images; first python benchmarks/images.py --sets solar_cells$"),
    ):
        command = ["--output", tmp_path / "out" / "factors.json", "--sets", "solar_cells", "--only", *words]
        monkeypatch.setattr(sys, "argv", ["factors.py", *map(str, command)])
        with pytest.raises(SystemExit, match=message):
            factors.main()
    assert not (tmp_path / "out").exists()


def test_a_killed_write_leaves_no_encoder(tmp_path, monkeypatch):
    def half(weights, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    data = (torch.zeros(4, 1, 64, 64, dtype=torch.uint8), np.zeros(4, dtype=np.int64)), None
    monkeypatch.setattr(factors, "learn", lambda *args: ({"weight": torch.ones(1)}, {"cpu_seconds": 1}))
    with monkeypatch.context() as patched:
        patched.setattr(factors, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            factors.pretrained(factors.BASE, data, 0, tmp_path)
    for _ in range(2):  # made, and read
        weights, found = factors.pretrained(factors.BASE, data, 0, tmp_path)
        assert (weights["weight"].tolist(), found) == ([1.0], {"cpu_seconds": 1})
