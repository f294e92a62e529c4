"""Masks of a segmenter: what transformers' image processors make of its outputs, in files that can be resumed."""

import csv
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from modeling_a2mim.commands.predict import main
from modeling_a2mim.inference import segmentation
from modeling_a2mim.inference.segmentation import best_class, check_folder, mask_image, mask_names
from modeling_a2mim.tasks.segmentation.maps import resized_prediction
from modeling_a2mim.tasks.segmentation.model import image_processor, without_package

from ..tasks.segmentation.test_model import NAMES, small


pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder, family="test_resnet", channels=3, plain=False):
    model = small(family, channels=channels, size=48)
    torch.nn.init.normal_(model.decode_head.classifier.weight)  # or one class has every pixel
    saved = without_package(model) if plain else model
    saved.save_pretrained(folder)
    image_processor(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return write(tmp_path_factory.mktemp("segmenter"), plain=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate(["a.jpg", "a.png", "sub/b.png", "sub/ü, c.png", "d.png"]):
        (folder / name).parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "a.jpg" else 1
        coarse.resize((40 + 7 * number, 90 - 5 * number), Image.Resampling.BICUBIC).save(folder / name, exif=exif)
    (folder / "sub" / "broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def predict(model, images, out, *flags):
    main([str(model), str(images), "--out", str(out), "--num_workers", "0", "--device", "cpu", *flags])
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def refused(capsys, *args):
    with pytest.raises(SystemExit) as exited:
        predict(*args)
    assert exited.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--batch_size", "2"]])
def test_masks_are_those_of_the_processor(segmenter, photos, tmp_path, caplog, flags):
    rows = predict(segmenter, photos, tmp_path / "out", *flags)
    masks = {"a.jpg": "a.jpg.png", "a.png": "a.png.png", "sub/b.png": "sub/b.png", "sub/ü, c.png": "sub/ü, c.png"}
    masks |= {"d.png": "d.png", "sub/broken.png": ""}
    assert {file: row["mask"] for file, row in rows.items()} == masks
    assert rows["sub/broken.png"]["error"].startswith("opening: no JPEG")
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {*masks.values(), "predictions.csv"} - {""}
    model = AutoModelForSemanticSegmentation.from_pretrained(segmenter).eval()
    processor, seen = AutoImageProcessor.from_pretrained(segmenter), set()
    for file, mask in masks.items():
        if not mask:
            continue
        image = Image.open(photos / file)
        image = image.transpose(Image.Transpose.ROTATE_270) if file == "a.jpg" else image
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        size = (image.height, image.width)
        expected = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0].numpy()
        found = np.asarray(Image.open(tmp_path / "out" / mask))
        assert found.shape == size
        assert (found != expected).mean() < 1e-3  # equal but where two classes are as good, in another batch
        shares = [float(rows[file][f"share_{name}"]) for name in NAMES]
        np.testing.assert_allclose(shares, [(found == i).mean() for i in range(len(NAMES))], atol=1e-6)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        seen |= set(np.unique(found))
    assert len(seen) > 2
    assert "6 images, 1 of them could not be read" in caplog.text


def test_killed_and_resumed(segmenter, photos, tmp_path, monkeypatch, caplog):
    """Of seven images in parts of two, the third part is not written."""
    caplog.set_level(logging.INFO)
    whole = predict(segmenter, photos, tmp_path / "whole")
    monkeypatch.setattr(segmentation, "rows_in_part", lambda *_: 2)
    real, calls = segmentation.mask_image, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(segmentation, "mask_image", killed)
    with pytest.raises(SystemExit) as exited:
        predict(segmenter, photos, tmp_path / "out", "--batch_size", "1")
    assert exited.value.code == 130
    left = len(calls)
    rows = predict(segmenter, photos, tmp_path / "out", "--batch_size", "1")
    assert "1 of 3 parts are there already" in caplog.text
    assert len(calls) - left == 3  # of five, two were there
    assert {file: row["mask"] for file, row in rows.items()} == {file: row["mask"] for file, row in whole.items()}
    for row in rows.values():
        if row["mask"]:
            pair = [np.asarray(Image.open(tmp_path / folder / row["mask"])) for folder in ("out", "whole")]
            assert (pair[0] != pair[1]).mean() < 1e-3
    assert not (tmp_path / "out" / "predictions.csv.parts").exists()


@pytest.mark.parametrize("family", ["test_resnet", "test_vit"])
def test_grey_and_with_the_package(family, photos, tmp_path):
    rows = predict(write(tmp_path / "model", family, channels=1), photos, tmp_path / "out")
    assert sum(bool(row["mask"]) for row in rows.values()) == 5


def test_a_segmenter_of_transformers(photos, tmp_path):
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8, num_labels=3,
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    rows = predict(tmp_path / "model", photos, tmp_path / "out")
    assert [name for name in rows["d.png"] if name.startswith("share_")] == [f"share_LABEL_{i}" for i in range(3)]


def test_little_memory_gives_the_same_map():
    logits = torch.randn(7, 5, 6)
    logits[3] = logits[1]  # of equal ones the first
    expected = resized_prediction(logits, (31, 17))
    for at_once in (1, 2 * 31 * 17, 10**6):
        assert torch.equal(best_class(logits, (31, 17), at_once), expected)


def test_pixels_of_masks_are_classes(tmp_path):
    classes = np.array([[0, 1], [2, 255]])
    mask_image(classes, [7] * 768).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), classes)
    mask_image(classes + 900, None).save(tmp_path / "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), classes + 900)


def test_names_of_masks():
    assert mask_names(["a.jpg", "b/a.jpg", "b/a.png", "row 3"]) == ["a.png", "b/a.jpg.png", "b/a.png.png", "row 3.png"]
    assert mask_names(["../../x.png", "/etc/y.jpg"]) == ["x.png", "etc/y.png"]
    assert mask_names(["x.png", "../x.png"]) == ["x.png_0.png", "x.png_1.png"]


def test_masks_of_an_earlier_run_are_removed(segmenter, photos, tmp_path, caplog):
    """But nothing else that is in the folder, or that its table names outside of it."""
    out, beside = tmp_path / "out", tmp_path / "beside.png"
    predict(segmenter, photos, out)
    (out / "own.png").write_bytes(b"mine")
    beside.write_bytes(b"mine")
    table = out / "predictions.csv"
    table.write_text(table.read_text().replace("d.png", "../beside.png", 2).replace("../beside.png", "d.png", 1))
    (tmp_path / "one").mkdir()
    shutil.copyfile(photos / "d.png", tmp_path / "one" / "other.png")
    predict(segmenter, tmp_path / "one", out, "--overwrite")
    left = sorted(path.name for path in out.rglob("*") if path.is_file())
    assert left == ["d.png", "other.png", "own.png", "predictions.csv"]  # d.png: its row names another file now
    assert beside.is_file()
    assert "masks of an earlier run are removed" in caplog.text


def test_folders_that_cannot_be(segmenter, photos, tmp_path, capsys):
    for out in (photos, photos / "masks", photos.parent):
        assert "out: " in refused(capsys, segmenter, photos, out)
        assert "one folder or in one another" in refused(capsys, segmenter, photos, out, "--overwrite")
    assert not (photos / "masks").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.png").write_text("x")
    assert "is there already" in refused(capsys, segmenter, photos, tmp_path / "full")
    assert "a segmenter writes a folder" in refused(capsys, segmenter, photos, tmp_path / "out.csv")
    assert "threshold: is for" in refused(capsys, segmenter, photos, tmp_path / "out", "--threshold", "0.5")
    assert "positive_class: is for" in refused(capsys, segmenter, photos, tmp_path / "out", "--positive_class", "x")
    check_folder(tmp_path / "new", ["some/dataset"], False)
