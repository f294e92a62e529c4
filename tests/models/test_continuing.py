"""A pre-trained model under other settings: they take effect, and it keeps the weights that still fit."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.arguments.model import PreTrainingModelArguments
from modeling_a2mim.arguments.settings import settings_for
from modeling_a2mim.models.continuing import with_settings

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
ARGS = {"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 24, "patch_size": 8}}
TOKEN, GAMMA = "a2mim.mask_token.token", "a2mim.mask_token.gamma"


def vit(**kwargs):
    return A2MIMForPreTraining(A2MIMConfig.vit(**ARGS, image_size=[32, 48], mask_patch_size=8, **kwargs))


def kept(model, new):
    """The names of the weights that are those of before."""
    before, after = model.state_dict(), new.state_dict()
    return {name for name in before if name in after and torch.equal(before[name], after[name])}


def test_what_is_not_different_changes_nothing():
    model = vit()
    same = {"image_size": (32, 48), "mask_patch_size": [8, 8], "mask_ratio": 0.6, "model_args": {"depth": 2}}
    assert with_settings(model, same) == (model, [])
    new, changed = with_settings(model, {"mask_site": "patch_embed"})  # where it is already
    assert (changed, kept(model, new)) == ([], set(model.state_dict()))


def test_other_sizes_of_images_and_masks(caplog):
    model = vit()
    caplog.set_level("INFO", "a2mim")
    given = {"image_size": [48, 32], "mask_ratio": 0.75, "mask_patch_size": 16, "frequency_loss_weight": 0.5}
    new, changed = with_settings(model, given)
    assert changed == [
        "image_size: [32, 48] -> [48, 32]",
        "mask_ratio: 0.6 -> 0.75",
        "mask_patch_size: 8 -> 16",
        "frequency_loss_weight: 0.1 -> 0.5",
    ]
    assert caplog.messages == changed
    positions = "a2mim.encoder.pos_embed"
    assert kept(model, new) == set(model.state_dict()) - {positions}
    expected = resample_abs_pos_embed(model.state_dict()[positions], [6, 4], [4, 6])
    assert torch.equal(new.state_dict()[positions], expected)
    output = new(torch.randn(1, 3, 48, 32))
    assert int(output.bool_masked_pos.sum()) == new.config.num_masked == 5
    torch.testing.assert_close(output.loss, output.spatial_loss + 0.5 * output.frequency_loss)


@pytest.mark.parametrize(
    ("settings", "anew", "told"),
    [
        ({"decoder_kernel_size": 3}, {"decoder.weight", "decoder.bias"}, "decoder_kernel_size: 1 -> 3"),
        ({"mask_site": 2}, {TOKEN, GAMMA}, "mask_site: layer3.0 -> layer2.0"),
        ({"mask_gamma_init": 0.5}, {GAMMA}, "mask_gamma_init: 1e-06 -> 0.5"),
        ({"mask_token_mode": "replace", "mask_gamma_init": None}, {TOKEN}, "mask_token_mode: add -> replace"),
        (
            {"image_mean": [0.5] * 3, "decoder_norm": False},
            set(),
            "image_mean: [0.485, 0.456, 0.406] -> [0.5, 0.5, 0.5]",
        ),
    ],
)
def test_what_starts_anew(settings, anew, told):
    torch.manual_seed(0)
    model = A2MIMForPreTraining(family_config("resnet"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    new, changed = with_settings(model, settings)
    assert told in changed
    assert [line.removeprefix("start anew: ") for line in changed if line.startswith("start")] == (
        [", ".join(name for name in new.state_dict() if name in anew)] if anew else []
    )
    assert kept(model, new) == set(new.state_dict()) - anew
    if GAMMA in anew and "mask_gamma_init" in settings:
        assert new.a2mim.mask_token.gamma.unique().item() == 0.5


def test_only_the_last_part_of_a_multiscale_decoder_starts_anew():
    model = A2MIMForPreTraining(family_config("resnet", decoder="multiscale"))
    new, changed = with_settings(model, {"decoder_kernel_size": 3})
    assert changed == ["decoder_kernel_size: 1 -> 3", "start anew: decoder.predict.weight, decoder.predict.bias"]
    assert "decoder.lateral.0.weight" in kept(model, new)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "vit_small_patch16_224"}, "^architecture: .* are for vit_tiny_patch16_224, not vit_small"),
        (
            {"num_channels": 1},
            "^num_channels: the weights in --model_name_or_path are for 3, not 1; leave --num_channels",
        ),
        ({"decoder": "multiscale"}, "^decoder: the weights .* are for linear, not multiscale"),
        ({"model_args": {"depth": 1}}, r"^model_args: .* do not fit .*'depth': 1.* \(blocks.1"),
        ({"model_args": {"patch_size": 4}}, r"^model_args: .* do not fit .*'patch_size': 4"),
        ({"model_args": {"qkv_bias": False}, "image_size": 64}, r"^model_args: .*\(blocks.0.attn.qkv.bias"),
        ({"image_size": 44, "mask_patch_size": 4}, "^image_size: vit_tiny_patch16_224 sees only 40 x 40"),
    ],
)
def test_what_the_weights_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        with_settings(vit(), settings)


def test_arguments_of_timm_that_change_no_weight():
    new, changed = with_settings(vit(), {"model_args": {"drop_path_rate": 0.5}})
    assert new.config.model_args == {**ARGS["model_args"], "drop_path_rate": 0.5}
    assert new.a2mim.encoder.blocks[-1].drop_path1.drop_prob == 0.5
    assert changed == [f"model_args: {ARGS['model_args']} -> {new.config.model_args}"]


def test_what_a_preset_stands_for():
    config = vit().config
    found = settings_for(PreTrainingModelArguments(preset="simmim", spatial_loss="focal_l1"), config)
    simmim = A2MIMConfig.simmim()
    assert found.pop("spatial_loss") == "focal_l1"  # a flag counts more
    assert found == {name: getattr(simmim, name) for name in found}
    assert {"mask_fill", "mask_site", "mask_token_mode", "mask_gamma_init", "frequency_loss_weight"} <= set(found)
    assert "image_size" not in found
    assert settings_for(PreTrainingModelArguments(preset="swin"), config)["image_size"] == 192
    assert settings_for(PreTrainingModelArguments(preset="swin", image_size=[64]), config)["image_size"] == 64
    assert settings_for(PreTrainingModelArguments(), config) == {}
