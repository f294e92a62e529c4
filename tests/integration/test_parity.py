"""The numbers recorded from the official code (tests/golden/README.md), computed with this package."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.conversion.checkpoint import _rename, load_official
from modeling_a2mim.losses import frequency_loss, spatial_loss
from modeling_a2mim.masking import random_mask

from ..golden.golden import load, normalise


GOLDEN = Path(__file__).parents[1] / "golden"
LARGER = ["a2mim_deit_small_l8", "a2mim_convnext_t_l3"]
MODELS = ["a2mim_r18_l3", *(pytest.param(name, marks=pytest.mark.ci) for name in LARGER)]
LOSSES = json.loads((GOLDEN / "losses.json").read_text())["cases"]
MASKS = json.loads((GOLDEN / "masks.json").read_text())["masks"]


@functools.cache
def golden(name):
    return load(name)


@functools.cache
def loss_data():
    return load_file(GOLDEN / "losses.safetensors")


def official_file(path, name):
    """The golden weights as the official code publishes them: a legacy pickle that holds the configuration's text."""
    state, _, meta = golden(name)
    text = f"model = dict(backbone=dict(mask_layer={meta['model']['backbone']['mask_layer']}, replace=False))"
    wrapped = {"meta": {"epoch": 300, "config": text}, "state_dict": state}
    torch.save(wrapped, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module", params=MODELS)
def converted(request, tmp_path_factory):
    """(model with the golden weights and loss, images, mask, recorded tensors, metadata)"""
    path = official_file(tmp_path_factory.mktemp("official") / f"{request.param}.pth", request.param)
    model = load_official(path)
    _, run, meta = golden(request.param)
    head = meta["model"]["head"]
    config = model.config
    config.spatial_loss = {"l1_loss": "l1", "focal_l1_loss": "focal_l1"}[head["loss"]["mode"]]
    config.frequency_loss_weight = head["fft_weight"]
    config.frequency_focal = head["fft_focal"]
    config.frequency_unmasked_weight = head["fft_unmask_weight"]
    config.frequency_replacement = head["fft_unmask_replace"]
    return model, normalise(run["image_uint8"]), run["mask"], run, meta


def tolerance(meta, mode):
    return 3e-4 if meta["name"] == "a2mim_r18_l3" and mode == "eval" else 5e-5


def our_name(official, family):
    name = official.replace("neck.decoder_pred.0.", "decoder.").removeprefix("backbone.")
    if official.startswith("neck."):
        return name
    if name.startswith("mask_"):
        return f"a2mim.mask_token.{name.removeprefix('mask_')}"
    return f"a2mim.encoder.{_rename(name, family)}"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_model_outputs_and_losses(converted, mode):
    model, images, mask, run, meta = converted
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train(mode == "train")
    with torch.no_grad():
        output = model(images, mask)
        model.load_state_dict(state)
        features = model.a2mim.feature_map(model.a2mim.encode(images, mask)[0], images.shape[-2:])
    model.load_state_dict(state)  # BatchNorm counted
    torch.testing.assert_close(features, run[f"{mode}.feature"], rtol=0, atol=tolerance(meta, mode))
    torch.testing.assert_close(output.reconstruction, run[f"{mode}.recon"], rtol=0, atol=tolerance(meta, mode))
    expected = meta[mode]
    assert output.loss.item() == pytest.approx(expected["total"], rel=1e-6)
    assert output.spatial_loss.item() == pytest.approx(expected["spatial"], rel=1e-6)
    if expected["fourier"] is None:
        assert output.frequency_loss is None
    else:
        assert output.frequency_loss.item() == pytest.approx(expected["fourier"], rel=1e-6)


def test_features_without_a_mask(converted):
    model, images, _, run, meta = converted
    model.eval()
    with torch.no_grad():
        features = model.a2mim.feature_map(model.a2mim(images).last_hidden_state, images.shape[-2:])
    torch.testing.assert_close(features, run["eval.feature_clean"], rtol=0, atol=tolerance(meta, "eval"))


def test_losses_of_the_recorded_reconstructions(converted):
    _, images, mask, run, meta = converted
    variants = {
        "l1_fft0.1_mixed_uw0": ("l1", 0.1, "mixed", 0.0),
        "focal_fft0.5_mixed_uw1e-3": ("focal_l1", 0.5, "mixed", 1e-3),
        "l1_fft0.5_prediction_uw0": ("l1", 0.5, "prediction", 0.0),
    }
    for name, (kind, weight, replacement, unmasked) in variants.items():
        total = spatial_loss(run["eval.recon"], images, mask, kind) + weight * frequency_loss(
            run["eval.recon"], images, mask, replacement=replacement, unmasked_weight=unmasked
        )
        assert total.item() == pytest.approx(meta["variants_eval"][name], rel=1e-6), name


def test_gradient_norms(converted):
    model, images, mask, _, meta = converted
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train().zero_grad()
    model(images, mask).loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    model.load_state_dict(state)
    family = {"a2mim_r18_l3": "resnet", "a2mim_deit_small_l8": "vit", "a2mim_convnext_t_l3": "convnext"}[meta["name"]]
    expected = {our_name(official, family): norm for official, norm in meta["grad_norms"].items()}
    assert norms == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("case", LOSSES, ids=[case["id"] for case in LOSSES])
def test_loss_cases(case):
    data, head = loss_data(), case["head"]
    dtype = getattr(torch, case["dtype"].removeprefix("torch."))
    prediction = data[f"{case['data']}.pred"].to(dtype).clone().requires_grad_()
    target, mask = data[f"{case['data']}.target"].to(dtype), data[f"{case['data']}.mask"]
    kind = {"l1_loss": "l1", "focal_l1_loss": "focal_l1"}[head["loss"]["mode"]]
    spatial = total = spatial_loss(prediction, target, mask, kind)
    # Where the prediction is perfect, what is recorded in float32 is rounding noise of 1e-15; no case is that small.
    close = {"rel": 1e-12, "abs": 1e-15} if dtype == torch.float64 else {"rel": 1e-6, "abs": 1e-9}
    if head["fft_weight"]:
        fourier = frequency_loss(
            prediction,
            target,
            mask,
            focal=head["fft_focal"],
            replacement=head["fft_unmask_replace"],
            unmasked_weight=head["fft_unmask_weight"],
            kind=kind,
        )
        assert fourier.item() == pytest.approx(case["fourier"], **close)
        total = spatial + head["fft_weight"] * fourier
    total.backward()
    assert total.dtype == dtype
    assert spatial.item() == pytest.approx(case["spatial"], **close)
    assert total.item() == pytest.approx(case["loss"], **close)
    assert prediction.grad.norm().item() == pytest.approx(case["grad_norm"], **close)


@pytest.mark.parametrize("case", MASKS, ids=[case["key"] for case in MASKS])
def test_number_of_masked_cells(case):
    config = A2MIMConfig(
        image_size=case["input_size"], mask_patch_size=case["mask_patch_size"], mask_ratio=case["mask_ratio"]
    )
    mask = random_mask(3, config.mask_grid, config.num_masked)
    assert mask[0].numel() == case["token_count"]
    assert mask.sum((1, 2)).tolist() == [case["mask_count"]] * 3


def test_converted_model_survives_saving(converted, tmp_path):
    model, images, mask, _, _ = converted
    model.eval().save_pretrained(tmp_path)
    # A copy: weights that were just loaded are aligned otherwise in memory, which can change the last bit of a sum.
    again = copy.deepcopy(A2MIMForPreTraining.from_pretrained(tmp_path).eval())
    with torch.no_grad():
        assert torch.equal(again(images, mask).reconstruction, model(images, mask).reconstruction)
