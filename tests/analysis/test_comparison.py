"""Models and images of the analysis commands: every kind that can be named, and what is said of the others."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.analysis.comparison import Images, NamedModel, load_model, load_models
from modeling_a2mim.commands.comparison import comparison_parser, run_comparison
from modeling_a2mim.export.folder import export_model

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["cat", "dog", "owl"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """One folder of each kind: exports and checkpoints of ours, and a classifier of transformers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    config = family_config("vit", image_size=32, mask_patch_size=16)
    pretraining = A2MIMForPreTraining(config)
    export_model(pretraining, folder / "encoder")
    pretraining.save_pretrained(folder / "checkpoint")
    classifier = A2MIMForImageClassification(family_config("resnet", image_size=32, num_channels=1, **LABELS))
    export_model(classifier, folder / "classifier")
    classifier.save_pretrained(folder / "own-classifier")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **tiny, **LABELS))
    vit.save_pretrained(folder / "transformers")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "transformers")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """12 images of 40 x 30 px, whose labels are named in another order than the models' classes."""
    generator = np.random.default_rng(0)
    rows = [
        {"image": Image.fromarray(generator.integers(0, 255, (30, 40, 3), dtype=np.uint8)), "label": i % 3}
        for i in range(12)
    ]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["owl", "cat", "dog"])})
    folder = tmp_path_factory.mktemp("dataset")
    Dataset.from_list(rows, features=features).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def arguments(*argv: str) -> argparse.Namespace:
    parser = comparison_parser("any", "", "", images=5, seed="")
    parser.add_argument("--label_column_name")
    return parser.parse_args([*argv, "--out", "out", "--device", "cpu"])


@pytest.mark.parametrize(
    ("name", "kind", "channels", "model"),
    [
        ("encoder", "encoder", 3, A2MIMModel),
        ("encoder", "pretraining", 3, A2MIMForPreTraining),
        ("checkpoint", "pretraining", 3, A2MIMForPreTraining),
        ("checkpoint", "encoder", 3, A2MIMModel),
        ("classifier", "classifier", 1, A2MIMForImageClassification),
        ("classifier", "encoder", 1, A2MIMModel),
        ("own-classifier", "classifier", 1, A2MIMForImageClassification),
        ("transformers", "classifier", 3, ViTForImageClassification),
        ("transformers", "encoder", 3, None),
    ],
)
def test_kinds(models, name, kind, channels, model):
    named = load_model(str(models / name), kind=kind)
    assert named.name == name
    assert model is None or isinstance(named.model, model)
    assert not named.model.training
    assert named.classes == (NAMES if kind == "classifier" else None)
    # Any image, grey or not, of any size.
    for image in (Image.new("L", (50, 41)), Image.new("RGBA", (32, 32))):
        pixels = named.transform(image)["pixel_values"]
        assert pixels.shape == (channels, 32, 32)
    with torch.no_grad():
        output = named.model(pixels[None])
    assert kind != "classifier" or output.logits.shape == (1, 3)


def test_weights_are_those_of_the_folder(models):
    one = load_model(str(models / "classifier"), kind="classifier")
    other = load_model(str(models / "own-classifier"), kind="classifier")
    encoder = load_model(str(models / "classifier"))
    pixels = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(one.model(pixels).logits, other.model(pixels).logits)
        features = one.model.a2mim.encoder.forward_features(pixels)
        assert torch.equal(features, encoder.model.encoder.forward_features(pixels))


def test_classifiers_of_imagenet_have_the_names_that_transformers_knows(models, tmp_path):
    """As timm's own repositories: no label_names, but a number of classes that ImageNet has."""
    model = A2MIMForImageClassification(family_config("resnet", num_labels=1000))
    export_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["label_names"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**config["pretrained_cfg"]}}))
    assert load_model(str(tmp_path), kind="classifier").classes[0].startswith("tench")


def test_no_such_model(models, tmp_path):
    with pytest.raises(ValueError, match="^model_name_or_path: there is no folder"):
        load_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="cannot be loaded: .*is no timm classifier"):
        load_model(str(models / "encoder"), kind="classifier")
    with pytest.raises(ValueError, match="no pre-training model there"):
        load_model(str(models / "classifier"), kind="pretraining")


def test_names(models):
    folders = [str(models / "encoder"), str(models / "classifier")]
    assert [s.name for s in load_models(arguments(*folders))] == ["encoder", "classifier"]
    assert [s.name for s in load_models(arguments(*folders, "--names", "a", "b"))] == ["a", "b"]
    with pytest.raises(ValueError, match="^names: expected one for each of 2 models, got 1"):
        load_models(arguments(*folders, "--names", "a"))
    with pytest.raises(ValueError, match="^names: there are several models called encoder"):
        load_models(arguments(folders[0], folders[0]))
    with pytest.raises(ValueError, match="^revision: is of models on the Hub, and all of these are on this machine"):
        load_models(arguments(*folders, "--revision", "v1"))


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_images(models, dataset, streaming, caplog):
    named = load_model(str(models / "encoder"))
    images = Images.open(arguments("m", "--dataset", str(dataset), "--seed", "3", *streaming), labelled=True)
    assert len(images) == 5
    assert images.names == ["owl", "cat", "dog"]
    samples = list(images.samples(named))
    assert [int(sample["labels"]) for sample in samples] == [row % 3 for row in images.rows]
    again = Images.open(arguments("m", "--dataset", str(dataset), "--seed", "3"))
    assert again.rows == images.rows
    assert torch.equal(next(again.samples(named))["pixel_values"], samples[0]["pixel_values"])
    other = Images.open(arguments("m", "--dataset", str(dataset), "--seed", "4"))
    assert other.rows != images.rows
    caplog.clear()
    assert len(Images.open(arguments("m", "--dataset", str(dataset), "--images", "99"))) == 12
    assert caplog.messages == ["images: 12, as there are no more"]
    with pytest.raises(ValueError, match="^images: must be at least 1"):
        Images.open(arguments("m", "--images", "0"))


def test_pages_that_are_images(models, tmp_path):
    """A model that takes each page as an image is compared on pages, drawn as other images are."""
    for number in range(4):
        pages = np.arange(3, dtype=np.uint8)[:, None, None] * 50 + np.full((3, 20, 24), 10 * number, np.uint8)
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, pages, photometric="minisblack", metadata=None)
    named = load_model(str(models / "encoder"))
    named.transform.spec = replace(named.transform.spec, pages="samples")
    given = arguments("m", "--dataset", str(tmp_path), "--images", "7")
    images = Images.open(given, labelled=True, models=[named])
    assert (len(images), len(images.dataset)) == (7, 12)
    samples = list(images.samples(named))
    assert [int(sample["labels"]) for sample in samples] == [row // 6 for row in images.rows]
    assert len({float(sample["pixel_values"].mean()) for sample in samples}) == 7
    with pytest.raises(ValueError, match="3 pages, each a sample"):
        next(Images.open(given).samples(named))


def test_files(dataset, tmp_path, caplog):
    """All of them, or so many as are asked for; what says which others has no effect on them."""
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    given = arguments("m", "--dataset", str(dataset))
    given.files = [str(path) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ValueError, match="^dataset: has no effect beside --files"):
        Images.open(given)
    for flag in (["--split", "train"], ["--streaming"], ["--image_column_name", "a"], ["--dataset_config_name", "a"]):
        with pytest.raises(ValueError, match=f"^{flag[0][2:]}: has no effect beside --files"):
            Images.open(argparse.Namespace(**{**vars(arguments("m", *flag)), "files": given.files}))
    given.dataset = None
    assert Images.open(given).rows == [0, 1, 2, 3]
    given.default_images = 2
    assert Images.open(given).rows == [0, 1, 2, 3]
    given.images = 3
    assert len(Images.open(given)) == 3
    assert not caplog.messages
    given.images = 5
    assert len(Images.open(given)) == 4
    assert caplog.messages == ["images: 4, as there are no more"]


def test_broken_images_are_left_out(models, tmp_path, caplog):
    """Another one in their place would count twice."""
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    stored = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(stored[:60])
    named = load_model(str(models / "encoder"))
    given = arguments("m", "--dataset", str(tmp_path))
    images = Images.open(given, models=[named])
    assert (images.rows, len(list(images.samples(named)))) == ([0, 2, 3], 3)
    assert "1 of 4 images cannot be used and are left out, the first: " in caplog.text
    assert "1.png" in caplog.text
    assert "stands in" not in caplog.text
    given.dataset, given.files = None, [str(path) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(ValueError, match=r"^files: 1 of 4 images cannot be used, the first: .*1\.png"):
        Images.open(given, models=[named])


def test_configurations_of_what_has_none(dataset):
    with pytest.raises(ValueError, match="^dataset_config_name: is of a dataset on the Hub, and .* is on this"):
        Images.open(arguments("m", "--dataset", str(dataset), "--dataset_config_name", "small"))


def test_the_bundled_sample_is_the_default():
    images = Images.open(arguments("m"), labelled=True)
    assert "Sandal" in images.names


def test_classes_of_labels(dataset):
    images = Images.open(arguments("m", "--dataset", str(dataset)), labelled=True)
    named = NamedModel("net", None, None, ["cat", "dog", "owl", "fox"])
    assert images.classes(named, "names") == [2, 0, 1]
    assert images.classes(named, "index") == [0, 1, 2, 3]
    assert images.classes(named, "predicted") is None
    with pytest.raises(ValueError, match="^labels: net has no class 'owl' .its classes are cat, dog"):
        images.classes(NamedModel("net", None, None, ["cat", "dog"]), "names")
    images.names = None
    with pytest.raises(ValueError, match="the labels have no names"):
        images.classes(named, "names")


def test_what_can_be_mended_is_one_line(tmp_path, capsys):
    def fails(args):
        raise ValueError("grid: too small")

    with pytest.raises(SystemExit) as stopped:
        run_comparison(comparison_parser("any", "", "", 1, ""), fails, ["m", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: grid: too small\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run_comparison(comparison_parser("any", "", "", 1, ""), fails, ["m", "--out", str(tmp_path / "file")])
    assert "is a file; expected a folder" in capsys.readouterr().err


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_comparison(comparison_parser("any", "", "", 1, ""), load_models, [*map(str, argv)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu", "meta"])
def test_a_device_that_is_not_there(tmp_path, capsys, device):
    """Which is said before a model is looked for."""
    words = refused(capsys, "no-model", "--device", device, "--out", tmp_path / "out")
    assert words.startswith(f"error: device: {device} cannot be used here; leave it out, or give cpu (")


def test_pictures_are_not_written_among_images(models, dataset, tmp_path, capsys):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(dataset, target_is_directory=True)
    for folder in (dataset, tmp_path / "linked"):
        for out in (dataset, dataset / "figures"):
            words = refused(capsys, models / "encoder", "--dataset", folder, "--out", out)
            assert words.startswith(f"error: out: {out} is, or lies in, the folder of images {folder}")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    words = refused(capsys, models / "encoder", "--dataset", tmp_path / "*.png", "--out", tmp_path)
    assert "where the pictures would be taken for images; name a folder outside" in words
