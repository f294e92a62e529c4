"""Encoders in files of other code: found under any prefix, in the layouts that timm knows, and refused by name."""

import pytest
import timm
import torch

from modeling_a2mim.encoders.foreign import find_encoder, timm_filter, with_channels

from ..foreign_files import ENCODERS, forms, other, prefixed, random_encoder


def made(family, **kwargs):
    name, args, size = ENCODERS[family]
    sized = {} if family in ("resnet", "convnext") else {"img_size": size}
    create = {"model_name": name, **sized, **args, **kwargs}
    return timm.create_model(**create, num_classes=0), create


def flat(content, prefix=""):
    found = {}
    for name, value in content.items():
        if isinstance(value, dict) and name != "optimizer":
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            found[f"{prefix}{name}"] = value
    return found


@pytest.mark.parametrize("family", ENCODERS)
def test_every_form(family):
    weights = random_encoder(family).state_dict()
    encoder, args = made(family)
    for who, content in forms(weights, family).items():
        found = find_encoder(flat(content), encoder, args)
        assert found.weights.keys() == weights.keys(), who
        assert all(torch.equal(found.weights[name], value) for name, value in weights.items()), who
        assert not found.adapted


def test_of_several_copies_the_evaluated_one():
    weights = random_encoder("resnet").state_dict()
    encoder, args = made("resnet")
    for first, second in (
        ("teacher.", "student."),
        ("model_ema.", "model."),
        ("modelEMA.", "model."),
        ("state_dict_EMA.", "state_dict."),
        ("swa.module.", "model."),
        ("online.", "target."),
        ("online_encoder.", "target_encoder."),
        ("target_encoder.module.", "encoder.module."),  # I-JEPA
        ("state_dict.", "grad."),
        ("state_dict.", "m."),
        ("model.", "opt.exp_avg."),
        ("state_dict.model.", "state_dict.ref."),
        ("state_dict.model.", "best."),
        ("q.", "longer."),
    ):
        stored = {**prefixed(other(weights), second), **prefixed(weights, first), "epoch": torch.tensor(3)}
        found = find_encoder(stored, encoder, args)
        assert (found.prefix, found.others) == (first, [second])
        assert found.doubtful == (second in ("best.", "longer.", "encoder.module."))
        assert torch.equal(found.weights["conv1.0.weight"], weights["conv1.0.weight"])
        assert len(found.left_over) == len(weights) + 1


def test_mmengine_keeps_the_averages_under_the_plain_name():
    weights = random_encoder("resnet").state_dict()
    stored = {**prefixed(weights, "state_dict.backbone."), "ema_state_dict.steps": torch.tensor(3)}
    stored |= prefixed(other(weights), "ema_state_dict.module.backbone.")
    assert find_encoder(stored, *made("resnet")).prefix == "state_dict.backbone."


def test_a_norm_after_pooling():
    before, after = random_encoder("vit").state_dict(), random_encoder("vit", global_pool="avg").state_dict()
    found = find_encoder(prefixed(before, "model."), *made("vit", global_pool="avg"))  # whose norm is new
    assert found.weights.keys() == before.keys() - {"norm.weight", "norm.bias"}
    assert found.left_over == ["model.norm.weight", "model.norm.bias"]
    with pytest.raises(ValueError, match='has a norm after pooling; give --model_args with "global_pool": "avg"'):
        find_encoder(after, *made("vit"))


def test_values_that_are_no_weights():
    weights = random_encoder("resnet").state_dict()
    whole = {name: (value * 100).to(torch.int8) for name, value in weights.items()}
    with pytest.raises(ValueError, match=r"^conv1\.0\.weight is of torch\.int8, this encoder has torch\.float32"):
        find_encoder(whole, *made("resnet"))
    small = {name: value.to(torch.float8_e4m3fn) if value.ndim == 4 else value for name, value in weights.items()}
    with pytest.raises(ValueError, match=r"^conv1\.0\.weight is of torch\.float8_e4m3fn, quantised weights"):
        find_encoder(small, *made("resnet"))
    weights["layer2.0.conv1.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^layer2\.0\.conv1\.weight holds values that are not finite"):
        find_encoder(weights, *made("resnet"))


def test_positions_of_another_size():
    weights = random_encoder("vit").state_dict()
    encoder, args = made("vit", img_size=96)
    found = find_encoder(prefixed(weights, "model."), encoder, args)
    assert found.adapted == ["pos_embed 1 x 17 x 48 -> 1 x 37 x 48"]
    by_timm = timm.create_model(
        **args, num_classes=0, pretrained=True, pretrained_cfg_overlay={"state_dict": weights, "num_classes": 0}
    )
    assert torch.equal(found.weights["pos_embed"], by_timm.pos_embed)


def test_what_belongs_to_another_encoder():
    weights = random_encoder("resnet").state_dict()
    encoder, args = made("resnet")
    deeper = {**weights, "layer1.1.conv1.weight": torch.rand(3)}
    with pytest.raises(
        ValueError, match=r"no place in this encoder, so it is of another one: layer1\.1\.conv1\.weight"
    ):
        find_encoder(prefixed(deeper, "module."), encoder, args)
    tokens = {**random_encoder("vit").state_dict(), "reg_token": torch.rand(1, 4, 48)}
    with pytest.raises(ValueError, match="no place in this encoder.*: reg_token"):
        find_encoder(tokens, *made("vit"))
    fewer = {name: value for name, value in weights.items() if not name.startswith("layer4")}
    message = r"^18 of its 84 weights are missing under 'x\.': layer4.*; it begins with x\.conv1.*expected were conv1"
    with pytest.raises(ValueError, match=message):
        find_encoder(prefixed(fewer, "x."), encoder, args)
    wider = {**weights, "layer2.0.conv1.weight": torch.rand(7, 64, 3, 3)}
    with pytest.raises(ValueError, match=r"^layer2\.0\.conv1\.weight is of shape \(7, 64, 3, 3\), this encoder has"):
        find_encoder(wider, encoder, args)
    patches = random_encoder("vit", patch_size=8).state_dict()  # which timm would resample
    with pytest.raises(ValueError, match=r"^patch_embed\.proj\.weight is of shape \(48, 3, 8, 8\), this encoder has"):
        find_encoder(prefixed(patches, "model."), *made("vit"))
    with pytest.raises(ValueError, match=r"^it begins with lstm\.weight, expected were conv1\.0\.weight"):
        find_encoder({"lstm.weight": torch.rand(2)}, encoder, args)


@pytest.mark.parametrize(("stored", "wanted"), [(3, 1), (3, 4), (1, 3), (3, 6)])
@pytest.mark.parametrize("family", ENCODERS)
def test_channels(family, stored, wanted):
    weights = random_encoder(family, in_chans=stored).state_dict()
    encoder, args = made(family, in_chans=wanted)
    found = find_encoder(weights, encoder, args)
    adapted, words = with_channels(found.weights, encoder, wanted)
    encoder.load_state_dict(adapted)
    name = next(name for name, value in adapted.items() if value.shape != weights[name].shape)
    assert words == [f"{name} {stored} -> {wanted} channels"]
    if stored == 3:
        overlay = {"state_dict": dict(weights), "num_classes": 0}
        by_timm = timm.create_model(**args, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(adapted[name], by_timm.state_dict()[name])
    else:  # each of the three sees a third: a grey image in three channels gives what it gave in one
        torch.testing.assert_close(adapted[name].sum(1), weights[name].sum(1))


def test_timm_knows_no_layout_of_some():
    assert timm_filter({"model_name": "resnet18"}) is None
    assert timm_filter({"model_name": "convnext_atto"}).__name__ == "checkpoint_filter_fn"
