"""Weights for images of another size: the same as timm's own, also where the number of patches stays."""

import json

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

import run_finetune
from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.models.resizing import resized_weights


pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 3}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
ABSOLUTE = {  # of each family: arguments, pixels per patch, tokens that are of no patch
    "vit_tiny_patch16_224": (SMALL, 16, 1),
    "vit_small_patch14_reg4_dinov2": (SMALL, 14, 0),  # its positions are of the patches alone
    "deit_tiny_distilled_patch16_224": (SMALL, 16, 2),
    "deit3_small_patch16_224": (SMALL, 16, 0),
    "vit_base_patch16_siglip_224": (SMALL, 16, 0),
    "vit_tiny_r_s16_p8_224": (SMALL, 32, 1),  # patches of the map of a CNN
    "eva02_tiny_patch14_224": ({**SMALL, "embed_dim": 48}, 14, 1),  # beside rotary ones
    "beit_base_patch16_224": ({**SMALL, "use_abs_pos_emb": True, "use_rel_pos_bias": False}, 16, 1),
    "tnt_s_patch16_224": ({"depth": 1}, 16, 1),
    "cait_xxs24_224": ({"depth": 1}, 16, 0),  # which timm does not resample when it loads them
}
RELATIVE = {  # of each family: arguments, pixels per cell of the smallest map
    "beit_base_patch16_224": (SMALL, 16),
    "beitv2_base_patch16_224": ({**SMALL, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}, 16),
    "vit_relpos_base_patch16_224": ({**SMALL, "rel_pos_type": "bias"}, 16),
    "swin_tiny_patch4_window7_224": (SWIN, 32),
    "test_coatnet": ({}, 32),
}
GRIDS = [((4, 4), (6, 6)), ((4, 4), (2, 8)), ((4, 6), (6, 4)), ((2, 3), (4, 4))]


def model(name, args, cells, side):
    size = [side * count for count in cells]
    return A2MIMModel(A2MIMConfig.for_encoder(architecture=name, model_args=args, image_size=size))


def random_weights(encoder):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in encoder.state_dict().items()
    }


def loaded_by_timm(weights, old, new):
    overlay = {"state_dict": dict(weights), "input_size": (3, *old.config.input_size), "num_classes": 0}
    args = {"img_size": new.config.input_size, **new.plan.create_args}
    return timm.create_model(**args, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def set_by_timm(weights, old, new):
    encoder = old.plan.create()
    encoder.load_state_dict(weights)
    encoder.set_input_size(new.config.input_size)
    return encoder.state_dict()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_positions(name):
    args, side, prefix = ABSOLUTE[name]
    for before, after in GRIDS:
        old, new = model(name, args, before, side), model(name, args, after, side)
        weights = random_weights(old.encoder)
        found = resized_weights(weights, old.config, new)
        (positions,) = (key for key in weights if key in ("pos_embed", "patch_pos"))
        assert torch.equal(found[positions], resample_abs_pos_embed(weights[positions], after, before, prefix))
        assert all(found[key] is weights[key] for key in weights if key != positions)
        new.encoder.load_state_dict(found)
        if hasattr(old.encoder, "set_input_size"):
            assert equal(found, set_by_timm(weights, old, new))
        if (before, after) == GRIDS[0] and "cait" not in name:
            assert equal(found, loaded_by_timm(weights, old, new))


@pytest.mark.few(2)
@pytest.mark.filterwarnings("ignore::UserWarning:timm")  # of torch, on how timm interpolates
@pytest.mark.parametrize("name", RELATIVE)
def test_relative_positions(name):
    args, side = RELATIVE[name]
    for before, after in GRIDS if "coatnet" not in name else GRIDS[2:3]:
        old, new = model(name, args, before, side), model(name, args, after, side)
        weights = random_weights(old.encoder)
        found = resized_weights(weights, old.config, new)
        changed = {
            key for key in weights if found[key].shape != weights[key].shape or (found[key] != weights[key]).any()
        }
        tables = [key for key in weights if key.endswith("relative_position_bias_table")]
        assert changed
        assert changed <= set(tables)
        for key in tables:
            windows = [each.encoder.get_submodule(key.rpartition(".")[0]).window_size for each in (new, old)]
            expected = new.encoder.state_dict()[key].shape
            assert torch.equal(found[key], resize_rel_pos_bias_table(weights[key], windows[0], expected, windows[1]))
        new.encoder.load_state_dict(found)
        if not name.startswith("swin"):  # whose windows grow with the image there
            assert equal(found, set_by_timm(weights, old, new))
        if (before, after) == GRIDS[0]:
            assert equal(found, loaded_by_timm(weights, old, new))


@pytest.mark.parametrize(("before", "after"), GRIDS)
def test_those_that_timm_resamples_otherwise_when_it_loads_them(before, after):
    old, new = (model("flexivit_small", SMALL, cells, 16) for cells in (before, after))
    weights = random_weights(old.encoder)
    found = resized_weights(weights, old.config, new)
    assert equal(found, loaded_by_timm(weights, old, new))
    linear = {"interpolation": "bilinear", "antialias": False}
    expected = resample_abs_pos_embed(weights["pos_embed"], after, before, 0, **linear)
    assert torch.equal(found["pos_embed"], expected)


@pytest.mark.parametrize(
    ("name", "args", "side"),
    [
        ("test_resnet", {}, 32),
        ("test_vit", {}, 16),  # resamples in each forward
        ("vit_small_patch16_dinov3", SMALL, 16),  # rotary ones alone
        ("swinv2_tiny_window8_256", SWIN, 32),  # a network gives them
        ("xcit_nano_12_p16_224", {"depth": 1}, 16),
    ],
)
def test_encoders_without_a_table_of_the_size(name, args, side):
    old, new = (model(name, args, cells, side) for cells in ((4, 6), (6, 4)))
    weights = random_weights(old.encoder)
    found = resized_weights(weights, old.config, new)
    assert all(found[key] is weights[key] for key in weights)
    new.encoder.load_state_dict(found)


@pytest.mark.parametrize(
    ("name", "args", "side", "before", "after", "weight"),
    [
        ("resmlp_12_224", {}, 16, (4, 6), (6, 4), "blocks.0.linear_tokens.weight"),  # of the same shape
    ],
)
def test_those_that_timm_cannot_resample(name, args, side, before, after, weight):
    with torch.device("meta"):
        old, new = (model(name, args, cells, side) for cells in (before, after))
    weights = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in old.encoder.state_dict().items()}
    message = rf"^image_size: {name} was pre-trained at .* does not know how .* to .* px \({weight}"
    with pytest.raises(ValueError, match=message):
        resized_weights(weights, old.config, new)


def test_the_classifier_stays_as_it_is():
    old, new = (model("vit_tiny_patch16_224", SMALL, cells, 16) for cells in ((2, 3), (3, 2)))
    weights = {**random_weights(old.encoder), "head.weight": torch.ones(5, 24)}
    assert resized_weights(weights, old.config, old) is weights
    found = resized_weights(weights, old.config, new)
    assert found["head.weight"] is weights["head.weight"]


def test_fine_tuning_at_the_transposed_size(tmp_path, monkeypatch):
    """By the command line, and what starts there is what timm gives for the exported folder."""
    config = A2MIMConfig.vit("vit_tiny_patch16_224", model_args=SMALL, image_size=[32, 48], num_channels=1)
    pretrained = A2MIMForPreTraining(config)
    with torch.no_grad():
        pretrained.a2mim.encoder.pos_embed.normal_()
    export_model(pretrained, tmp_path / "encoder")
    for name in ("draw_errors", "draw_curves"):
        monkeypatch.setattr(f"modeling_a2mim.tasks.classification.task.{name}", lambda *args: None)
    arguments = [
        "--model_name_or_path",
        tmp_path / "encoder",
        "--output_dir",
        tmp_path / "out",
        "--image_size",
        48,
        32,
    ]
    arguments += ["--use_cpu", "--max_steps", 1, "--per_device_train_batch_size", 8, "--learning_rate", 1e-30]
    arguments += ["--labels_per_class", 1, "--max_eval_samples", 8, "--weight_decay", 0]
    run_finetune.main(list(map(str, arguments)))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 48, 32]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True, img_size=(48, 32))
    ours = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0)
    assert torch.equal(ours.pos_embed, theirs.pos_embed)
    assert torch.equal(theirs.pos_embed, resample_abs_pos_embed(pretrained.a2mim.encoder.pos_embed, [3, 2], [2, 3]))
