"""Pre-training from the weights that people have, through the command line."""

import json
import shlex

import pytest
import timm
import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import save_file
from transformers import HfArgumentParser

import run_pretraining
from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, open_encoder, pretraining_model_from
from modeling_a2mim.arguments.model import PreTrainingModelArguments
from modeling_a2mim.export.loading import load_pretraining_model
from modeling_a2mim.tasks.pretraining import build_pretraining_model, open_pretraining_start

from ..foreign_files import ENCODERS, forms, prefixed, random_encoder
from ..image_files import write_images
from ..integration.test_scripts import pretrain
from ..key_layouts.models import CONVNEXT, DINOV2, RESNET, SWIN, VIT, features, images, make, timm_features


pytestmark = pytest.mark.usefixtures("one_thread")
# Of a rate of 0: weights are as they were loaded.
FAST = ["--max_steps", "1", "--learning_rate", "0", "--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no"]
FAST += ["--per_device_train_batch_size", "2", "--logging_steps", "1", "--mask_patch_size", "16", "--holdout", "2"]


def families(*quick):
    """All of them; others than the quick ones take `make test-all`, as their names are tested in `key_layouts`."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in ENCODERS]


LEFT_OVER = ("mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight", "decoder_pred.weight")


def flags(family, **kwargs):
    name, args, size = ENCODERS[family]
    return {"architecture": name, "model_args": json.dumps({**args, **kwargs}), "image_size": [size]}


def argv(family):
    given = {name: value if isinstance(value, list) else [value] for name, value in flags(family).items()}
    return [word for name, values in given.items() for word in (f"--{name}", *map(str, values))]


def build(**kwargs):
    args = PreTrainingModelArguments(**kwargs)
    return build_pretraining_model(args, open_pretraining_start(args))


def assert_loaded(model, weights):
    found = model.a2mim.encoder.state_dict()
    assert found.keys() == weights.keys()
    assert [name for name, value in weights.items() if not torch.equal(found[name], value)] == []


@pytest.mark.parametrize("family", families("convnext", "vit"))
def test_files_give_the_weights_bit_for_bit(family, tmp_path):
    weights = random_encoder(family).state_dict()
    for i, (who, content) in enumerate(forms(weights, family).items()):
        torch.save(content, tmp_path / f"{i}.pth")
        model, provenance = build(model_name_or_path=str(tmp_path / f"{i}.pth"), **flags(family))
        assert_loaded(model, weights), who
        assert provenance["base_model"] is None
        assert provenance["weights"]["loaded"] == len(weights)
        assert any("mask_token" in name for name in provenance["weights"]["new"])
    save_file(prefixed(weights, "module."), tmp_path / "in.safetensors")
    model, _ = build(model_name_or_path=str(tmp_path / "in.safetensors"), **flags(family))
    assert_loaded(model, weights)


@pytest.mark.parametrize("family", families("convnext", "vit"))
def test_folders_of_timm_and_of_this_package(family, tmp_path):
    encoder = random_encoder(family, classes=3)
    _, args, size = ENCODERS[family]
    sized = {} if family in ("resnet", "convnext") else {"img_size": size}
    timm.models.save_for_hf(encoder, tmp_path / "timm", model_args={**args, **sized}, safe_serialization=True)
    weights = {name: v for name, v in encoder.state_dict().items() if name in random_encoder(family).state_dict()}
    given = {"image_size": [64]} if family in ("resnet", "convnext") else {}
    model, provenance = build(model_name_or_path=str(tmp_path / "timm"), **given)
    assert_loaded(model, weights)
    assert provenance["weights"]["left_over"]
    model.save_pretrained(tmp_path / "own")
    again, provenance = build(model_name_or_path=str(tmp_path / "own"))
    assert_loaded(again, weights)
    assert "weights" not in provenance  # token and decoder have gone on as well
    assert torch.equal(again.a2mim.mask_token.token, model.a2mim.mask_token.token)


@pytest.mark.parametrize(
    ("cls", "kwargs", "architecture"),
    [
        ("ConvNextForImageClassification", CONVNEXT, "convnext_tiny"),
        ("Dinov2Model", DINOV2, "vit_base_patch14_dinov2"),
        ("DINOv3ViTModel", {**VIT, "num_register_tokens": 4}, "vit_base_patch16_dinov3"),
        ("SwinModel", SWIN, "swin_tiny_patch4_window7_224"),
        ("ResNetModel", {**RESNET, "embedding_size": 64}, "resnet50"),
    ],
)
def test_folders_of_transformers(cls, kwargs, architecture, tmp_path):
    theirs = make(cls, **kwargs)
    theirs.save_pretrained(tmp_path)
    model, provenance = build(model_name_or_path=str(tmp_path))
    assert model.config.architecture.partition("_")[0] == architecture.partition("_")[0]
    assert (
        provenance["start"].endswith(f"{theirs.config.model_type} of transformers")
        or "of 2 classes" in provenance["start"]
    )
    assert provenance["weights"]["loaded"] == len(model.a2mim.encoder.state_dict())
    assert "earlier" not in provenance
    pixels = images(model.config.input_size)
    expected = features(theirs, pixels)
    found = timm_features(model.eval().a2mim.encoder, pixels)
    # float32 in two implementations: 5e-6 was measured, features are of standard deviation 0.6 to 2.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_repository_in_the_cache(hub, tmp_path, monkeypatch, caplog):
    """What AutoModel has fetched is enough without a network; what else there may be is said to be unknown."""
    make("Dinov2Model", **DINOV2).save_pretrained(tmp_path)
    hub.put("org/dino", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("org/dino", name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, provenance = build(model_name_or_path="org/dino")
    assert provenance["base_model"] == "org/dino"
    assert model.config.architecture == "vit_base_patch14_dinov2"
    for missing in ("pretraining/config.json", "preprocessor_config.json"):
        assert f"the Hub could not be asked for {missing}" in caplog.text
    assert "; mask token and decoder are new" in caplog.text
    with pytest.raises(ValueError, match="^model_name_or_path: org/none is no folder here"):
        build(model_name_or_path="org/none")


@pytest.mark.ci
def test_the_registry(hub, tmp_path):
    full, size = "vit_tiny_patch16_224.augreg_in21k_ft_in1k", [224]
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    torch.nn.init.normal_(theirs.head.weight)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    hub.put(f"timm/{full}", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    plain = timm.create_model(full, pretrained=True, num_classes=0)
    for given in ({"architecture": full}, {"architecture": "vit_tiny_patch16_224", "pretrained": True}):
        model, provenance = build(**given)
        assert_loaded(model, plain.state_dict())
        assert provenance["base_model"] == f"timm/{full}"
        assert provenance["weights"]["left_over"] == ["head.weight"]
        assert (model.config.architecture, model.config.image_size) == ("vit_tiny_patch16_224", *size)
        assert model.config.image_mean == [0.5] * 3  # of these weights
    small, provenance = build(architecture=full, image_size=[96], num_channels=1)
    by_timm = timm.create_model(full, pretrained=True, num_classes=0, img_size=96, in_chans=1)
    assert_loaded(small, by_timm.state_dict())
    assert provenance["weights"]["adapted"] == [
        "patch_embed.proj.weight 3 -> 1 channels",
        "pos_embed 1 x 197 x 192 -> 1 x 37 x 192",
    ]
    assert small.config.image_mean == [0.5]
    with pytest.raises(
        ValueError, match=r"^architecture: timm has no weights test_vit\.nope; there are test_vit\.r160"
    ):
        build(architecture="test_vit.nope")
    with pytest.raises(ValueError, match=r"^architecture: the weights test_resnet\.r160_in1k of timm cannot be had"):
        build(architecture="test_resnet", pretrained=True)


def test_the_first_loss_is_that_of_a_model_made_by_hand(tmp_path, folder, caplog):
    weights = random_encoder("resnet").state_dict()
    torch.save({"state_dict": prefixed(weights, "module.")}, tmp_path / "in.pth")
    common = ["--train_dir", str(folder), *argv("resnet"), *FAST, "--seed", "3"]
    run_pretraining.main(
        [*common, "--model_name_or_path", str(tmp_path / "in.pth"), "--output_dir", str(tmp_path / "a")]
    )
    assert "weights: the weights of a resnet10t in" in caplog.text
    assert f"{len(weights)} weights of the encoder loaded; new: " in caplog.text
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["weights"]["loaded"] == len(weights)
    assert str(tmp_path) not in json.dumps(record)
    trained = load_pretraining_model(str(tmp_path / "a"))
    kept = {name: value for name, value in weights.items() if "running" not in name and "num_batches" not in name}
    assert [
        name for name, value in kept.items() if not torch.equal(trained.a2mim.encoder.state_dict()[name], value)
    ] == []
    card = (tmp_path / "a" / "README.md").read_text()
    assert "in.pth" in card
    # The same start by hand: what is new is drawn from the same seed.
    torch.manual_seed(3)
    config = A2MIMConfig.for_architecture(
        **{**flags("resnet"), "model_args": ENCODERS["resnet"][1], "image_size": 64}, mask_patch_size=16
    )
    by_hand = A2MIMForPreTraining(config)
    by_hand.a2mim.encoder.load_state_dict(weights)
    by_hand.save_pretrained(tmp_path / "hand")
    run_pretraining.main(
        [
            "--train_dir",
            str(folder),
            *FAST[:-2],
            "--holdout",
            "2",
            "--seed",
            "3",
            "--model_name_or_path",
            str(tmp_path / "hand"),
            "--output_dir",
            str(tmp_path / "b"),
        ]
    )
    losses = [json.loads((tmp_path / name / "training.json").read_text())["log"][0]["loss"] for name in "ab"]
    assert losses[0] == losses[1]


def test_from_python_positions_are_resampled_once(tmp_path):
    weights = random_encoder("vit", img_size=96).state_dict()
    torch.save(weights, tmp_path / "in.pth")
    start = open_encoder(str(tmp_path / "in.pth"), "vit_tiny_patch16_224", model_args=ENCODERS["vit"][1])
    model, loaded = pretraining_model_from(start, image_size=96)
    assert_loaded(model, weights)
    assert loaded.adapted == []
    with pytest.raises(ValueError, match="^architecture: the weights are for vit_tiny_patch16_224, not resnet18"):
        pretraining_model_from(start, architecture="resnet18")


def test_parts_of_names_in_the_record(tmp_path):
    """A group of names holds none that was loaded."""
    weights = random_encoder("vit").state_dict()
    torch.save(forms(weights, "vit")["MAE"], tmp_path / "in.pth")
    _, provenance = build(model_name_or_path=str(tmp_path / "in.pth"), **flags("vit"))
    found = provenance["weights"]
    assert found["left_over"] == [f"model.{name}" for name in LEFT_OVER]
    assert found["new"] == ["a2mim.mask_token.token", "decoder.weight", "decoder.bias"]


@pytest.mark.parametrize(("grey", "given"), [(True, {"decoder": "linear"}), (False, {"num_channels": 1})])
def test_the_way_to_keep_the_encoder_alone(grey, given, tmp_path):
    """As the message says it, which refuses to go on with all of the model."""
    config = A2MIMConfig(
        architecture="test_convnext",
        model_args={"depths": [1, 1, 2, 1]},
        image_size=[64, 32],
        mask_patch_size=8,
        decoder="multiscale",
        num_channels=1 if grey else 3,
    )
    old = A2MIMForPreTraining(config)
    old.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{next(iter(given))}: .* on the encoder alone: --model_name_or") as refused:
        build(model_name_or_path=str(tmp_path), **given)
    said = str(refused.value).partition("the encoder alone: ")[2].replace("FOLDER", str(tmp_path))
    said, _, further = said.partition(", and the model's ")
    assert further == ("--num_channels, --image_mean, --image_std (config.json)" if grey else "")
    parser = HfArgumentParser(PreTrainingModelArguments)  # type: ignore[arg-type]
    words = [f"--{name}={value}" for name, value in {**given, **({"num_channels": 1} if grey else {})}.items()]
    (args,) = parser.parse_args_into_dataclasses([*shlex.split(said), "--mask_patch_size", "8", *words])
    model, _ = build_pretraining_model(args, open_pretraining_start(args))
    assert (model.config.input_size, model.config.num_channels) == ((64, 32), 1)
    assert model.config.decoder == given.get("decoder", "linear")
    weights, new = old.a2mim.encoder.state_dict(), model.a2mim.encoder.state_dict()
    changed = [name for name, value in weights.items() if not torch.equal(new[name], value)]
    assert changed == ([] if grey else ["stem.0.weight"])  # which is adapted to the channels


def test_files_of_this_package(tmp_path):
    """A file beside a config.json is the folder that both are in."""
    model = A2MIMForPreTraining(A2MIMConfig.for_architecture("test_resnet", image_size=64))
    model.save_pretrained(tmp_path)
    again, provenance = build(model_name_or_path=str(tmp_path / "model.safetensors"))
    assert "weights" not in provenance
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


FILE, RESNET = {"model_name_or_path": "in.pth"}, {"architecture": "resnet10t"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_name_or_path": "none.pth", **RESNET}, "^model_name_or_path: there is no file none.pth"),
        (FILE, "is a file, which does not tell what encoder .* give --architecture"),
        (
            {**FILE, "architecture": "resnet18"},
            "in.pth, read as --architecture resnet18 of 224 x 224 px: 64 of its 120 weights are missing",
        ),
        ({**FILE, **RESNET, "pretrained": True}, "^model_name_or_path: gives the weights, and --pretrained others"),
        ({"model_name_or_path": "resnet10t.c3_in1k"}, "are loaded by --architecture resnet10t.c3_in1k --pretrained"),
    ],
)
def test_what_is_refused(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(random_encoder("resnet").state_dict(), "in.pth")
    with pytest.raises(ValueError, match=message):
        build(**given)


def test_what_is_trained_on_is_not_held_out(tmp_path, caplog):
    images = write_images(tmp_path / "images", [f"{i}.png" for i in range(4)])
    pretrain(tmp_path / "out", "--train_dir", images, "--validation_dir", images)
    assert "validation_dir: images to evaluate on are trained on as well" in caplog.text
    assert "of the author's, which it was trained on" in (tmp_path / "out/README.md").read_text()
