"""Images through a model into a table in parts: every image once, whatever is broken or killed."""

import json
import logging
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from torchvision.transforms.v2 import functional as F

from modeling_a2mim.data.decoding import open_image
from modeling_a2mim.inference.images import InferenceImages, collate, open_every_image
from modeling_a2mim.inference.parts import PartedTable
from modeling_a2mim.inference.running import fingerprint_of_model, run_over

from ..image_files import encoded
from ..small_models import make


def transform(image):
    return {"pixel_values": F.to_dtype(F.pil_to_tensor(open_image(image).convert("RGB")), torch.float32)}


def brightness(pixels, rows):
    return {"brightness": pixels.mean((1, 2, 3)).tolist(), "row": list(rows)}


COLUMNS = {"brightness": pa.float32(), "row": pa.int64()}


@pytest.fixture
def folder(tmp_path):
    """25 images in folders whose names mean something in training, two of them broken."""
    for number in range(25):
        place = tmp_path / "images" / ("train", "test", "good")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        broken = number in (4, 17)
        (place / f"{number:02}.png").write_bytes(b"\x89PNG nothing" if broken else encoded(number))
    return tmp_path / "images"


def run(folder, out, **options):
    images = InferenceImages(open_every_image([folder]), transform)
    table = PartedTable(out, len(images), {"images": images.source.fingerprint}, 10, **options)
    run_over(images, table, brightness, COLUMNS, batch_size=4)
    return table


def test_every_image_once(folder, tmp_path, caplog):
    run(folder, tmp_path / "out.csv").finish()
    found = pa.csv.read_csv(tmp_path / "out.csv").to_pydict()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert found["file"] == names
    for name, value, error in zip(names, found["brightness"], found["error"], strict=True):
        number = int(name[-6:-4])
        assert (value is None and "header" in error) if number in (4, 17) else value == number
    assert "2 of 25 images could not be read (column 'error'): good/17.png: " in caplog.text
    assert not (tmp_path / "out.csv.parts").exists()


def test_killed_and_resumed(folder, tmp_path, caplog):
    calls = []

    def killed(pixels, rows):
        calls.append(rows)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return brightness(pixels, rows)

    images = InferenceImages(open_every_image([folder]), transform)
    table = PartedTable(tmp_path / "out.parquet", len(images), {"model": "a"}, 10)
    with pytest.raises(KeyboardInterrupt):
        run_over(images, table, killed, COLUMNS, batch_size=4)
    assert table.missing() == [1, 2]
    again = PartedTable(tmp_path / "out.parquet", len(images), {"model": "a"}, 10)
    seen = []
    caplog.set_level(logging.INFO)
    run_over(images, again, lambda p, r: seen.extend(r) or brightness(p, r), COLUMNS, batch_size=3)
    assert seen == [row for row in range(10, 25) if images[row][1] is not None and row not in broken_rows(images)]
    assert "1 of 3 parts are there already" in caplog.text
    again.finish()
    whole = run(folder, tmp_path / "whole.parquet")
    whole.finish()
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def broken_rows(images):
    return [row for row in range(len(images)) if isinstance(images[row][1], ValueError)]


def test_parts_of_another_run(folder, tmp_path):
    out = tmp_path / "out.csv"
    table = PartedTable(out, 25, {"model": "a"}, 10)
    images = InferenceImages(open_every_image([folder]), transform)
    run_over(images, table, brightness, COLUMNS)
    with pytest.raises(ValueError, match=r"out: .*out.csv.parts holds parts of another run \(other model\)"):
        PartedTable(out, 25, {"model": "b"}, 10)
    assert PartedTable(out, 25, {"model": "a"}, 10).missing() == []
    assert PartedTable(out, 25, {"model": "b"}, 10, overwrite=True).missing() == [0, 1, 2]
    assert json.loads((tmp_path / "out.csv.parts" / "manifest.json").read_text())["model"] == "b"


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "there.csv").write_text("precious")
    (tmp_path / "folder.csv").mkdir()
    for name, words in (("x.txt", "must end in .csv or .parquet"), ("there.csv", "there already"), ("folder.csv", "")):
        with pytest.raises(ValueError, match=f"^out: .*{words}"):
            PartedTable(tmp_path / name, 3, {})
    assert (tmp_path / "there.csv").read_text() == "precious"


def test_nothing_but_broken_images(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match="images: none of 10 could be read; 0.png: .*header"):
        run(tmp_path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv.parts").exists()  # of which nothing could go on


def test_two_processes_share_the_parts(folder, tmp_path):
    table = PartedTable(tmp_path / "out.csv", 25, {}, 10)
    assert (table.missing(0, 2), table.missing(1, 2)) == ([0, 2], [1])


def test_sources(folder, tmp_path, monkeypatch):
    """One file, several, a tar, a parquet file and a saved dataset."""
    one = open_every_image([folder / "good" / "02.png"])
    assert (len(one), one.file_name(0)) == (1, "02.png")
    several = open_every_image([folder / "good" / "05.png", folder / "train" / "00.png"])
    assert [several.file_name(row) for row in range(2)] == ["good/05.png", "train/00.png"]
    monkeypatch.chdir(folder / "good")
    assert open_every_image(["02.png", "05.png"]).file_name(1) == "05.png"
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(folder / "good", "good")
        assert len(open_every_image([tmp_path / name])) == 8
    rows = Dataset.from_dict({"image": [{"bytes": encoded(n), "path": None} for n in range(3)], "label": [0, 1, 0]})
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for name, row in (("a.parquet", "a.parquet, row group 0"), ("saved", "row 2")):
        images = InferenceImages(open_every_image([tmp_path / name]), transform)
        assert [round(float(images[n][1].mean())) for n in range(3)] == [0, 1, 2]
        assert images.name(2).endswith(row)


def test_sources_that_cannot_be(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images found"):
        open_every_image([tmp_path / "empty"])
    with pytest.raises(ValueError, match="images: .*good is no image file"):
        open_every_image([folder / "good" / "02.png", folder / "good"])
    with pytest.raises(ValueError, match="no such file or folder"):
        open_every_image([tmp_path / "missing"])
    parts = {"train": Dataset.from_dict({"image": [encoded(1)]}), "test": Dataset.from_dict({"image": [encoded(2)]})}
    DatasetDict(parts).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="split: .*both has train, test; choose one"):
        open_every_image([tmp_path / "both"])
    assert len(open_every_image([tmp_path / "both"], split="test")) == 1


def test_a_batch():
    batch = collate([(3, torch.ones(1, 2, 2)), (4, ValueError("no")), (5, torch.zeros(1, 2, 2))])
    assert (batch.rows, batch.good.tolist(), batch.errors) == ([3, 4, 5], [True, False, True], [None, "no", None])
    assert batch.pixel_values.shape == (2, 1, 2, 2)
    assert collate([(0, ValueError("no"))]).pixel_values is None


def test_fingerprint_of_a_model():
    model = make("resnet")
    before = fingerprint_of_model(model)
    assert before == fingerprint_of_model(make("resnet"))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert fingerprint_of_model(model) != before


def test_images_of_other_modes(tmp_path):
    """Kept for the model's own transform: grey, with an alpha channel and 16 bits."""
    for name, array in (("g", np.full((4, 4), 7, np.uint8)), ("a", np.full((4, 4, 4), 7, np.uint8))):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    run(tmp_path, tmp_path / "out.csv").finish()
    assert len(pa.csv.read_csv(tmp_path / "out.csv")) == 2
