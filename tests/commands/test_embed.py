"""`a2mim embed` from its command line: files, resuming, neighbors, duplicates, and what it refuses."""

import base64
import csv
import io
import json
import logging
import os
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from datasets import Dataset
from PIL import Image

from modeling_a2mim import A2MIMForImageClassification
from modeling_a2mim.api import embed
from modeling_a2mim.commands.embed import main
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.inference import parts
from modeling_a2mim.inference.embedding import Embedder, embedder, read_embeddings
from modeling_a2mim.inference.images import InferenceImages, open_every_image
from modeling_a2mim.inference.similar_images import SHOWN_QUERIES
from modeling_a2mim.inference.vectors import read_rows
from modeling_a2mim.tasks.segmentation.model import image_processor, without_package
from modeling_a2mim.utils.value_range import ValueRange

from ..families import family_config
from ..image_files import encoded, write_images, write_parquet
from ..processes import in_two_processes
from ..tasks.segmentation.test_model import small


pytestmark = pytest.mark.usefixtures("one_thread")
BROKEN = (4, 17)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small encoder with weights of its own."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "net"
    return str(export_model(A2MIMForImageClassification(family_config("resnet", image_size=32, num_labels=2)), folder))


def noise(number):
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """25 images, two broken ones and two copies of number 7 among them; the name of one is markup."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number in range(25):
        name = folder / (f"{number:02} <b>&.png" if number == 7 else f"{number:02}.png")
        noise(7 if number in (12, 20) else number).save(name)
    for number in BROKEN:
        (folder / f"{number:02}.png").write_bytes(b"\x89PNG nothing")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch, caplog):
    monkeypatch.setattr(parts, "ROWS_IN_PART", 10)
    caplog.set_level(logging.INFO, "a2mim")


def fails(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in argv])
    assert stopped.value.code == 2
    found = capsys.readouterr().err
    return found[found.index("error: ") :]  # after progress bars


def run(*argv):
    main([str(arg) for arg in argv])


def test_a_table(model, photos, tmp_path, caplog):
    out = tmp_path / "v.parquet"
    run(model, photos, "--out", out, "--batch_size", "4")
    table = pq.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 96)
    assert table["file"].to_pylist() == sorted(path.name for path in photos.iterdir())
    assert [row for row, error in enumerate(table["error"].to_pylist()) if error] == list(BROKEN)
    assert [row for row, vector in enumerate(table["embedding"].to_pylist()) if vector is None] == list(BROKEN)
    files, vectors, metadata = read_embeddings(out)
    assert metadata == json.loads(table.schema.metadata[b"a2mim"])
    known = {"model": "net", "architecture": "test_resnet", "layer": "pooled", "normalize": False, "dim": 96}
    assert metadata == metadata | known | {"dtype": "float32", "store": "float32"}
    assert str(tmp_path) not in json.dumps(metadata)
    assert str(photos) not in str(table.schema.metadata) + "".join(files)
    found = embedder(model)
    for row in (0, 22):
        pixels = found.transform(photos / files[row])["pixel_values"][None]
        np.testing.assert_allclose(vectors[row], found.embed(pixels)[0], rtol=1e-4, atol=1e-5)
    assert "23 vectors of 96 float32" in caplog.text
    assert "images without a vector, as they could not be read: 2" in caplog.text
    assert f"written: {out}" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]


def test_npy_and_parquet_agree(model, photos, tmp_path):
    run(model, photos, "--out", tmp_path / "v.parquet")
    run(model, photos, "--out", tmp_path / "v.npy")
    run(model, photos, "--out", tmp_path / "half.npy", "--store", "float16")
    (table, rows), (array, own) = read_rows(tmp_path / "v.parquet"), read_rows(tmp_path / "v.npy")
    assert isinstance(array.vectors, np.memmap)
    assert np.array_equal(np.load(tmp_path / "v.npy"), table.vectors)
    assert np.array_equal(rows, own)
    assert rows.tolist() == [row for row in range(25) if row not in BROKEN]
    assert (table.files, table.metadata) == (array.files, array.metadata)
    half = read_embeddings(tmp_path / "half.npy").vectors
    assert half.dtype == np.float16
    assert np.array_equal(half, table.vectors.astype(np.float16))
    with open(tmp_path / "v.files.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert lines[5] == {"file": "05.png", "vector": "4", "error": ""}
    assert lines[4]["vector"] == ""
    assert "header" in lines[4]["error"]
    assert len(lines) == 25


def test_half_precision(model, photos, tmp_path):
    run(model, photos, "--out", tmp_path / "v.parquet")
    run(model, photos, "--out", tmp_path / "h.parquet", "--store", "float16", "--normalize", "--dtype", "bfloat16")
    exact, rough = read_embeddings(tmp_path / "v.parquet").vectors, read_embeddings(tmp_path / "h.parquet").vectors
    assert rough.dtype == np.float16
    exact = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    assert 0 < np.abs(rough - exact).max() < 20 * 2.0**-8 * np.abs(exact).max()


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_killed_and_resumed(model, photos, tmp_path, monkeypatch, capsys, caplog, suffix):
    run(model, photos, "--out", tmp_path / f"whole.{suffix}", "--batch_size", "4")
    out, embed, calls = tmp_path / f"v.{suffix}", Embedder.embed, []

    def killed(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 6:  # the first finds out how many features there are
            raise KeyboardInterrupt
        return embed(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", killed)
        with pytest.raises(SystemExit) as stopped:
            run(model, photos, "--out", out, "--batch_size", "4")
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not out.exists()
    assert "holds parts of another run (other layer)" in fails(
        capsys, model, photos, "--out", out, "--layer", "last", "--batch_size", "4"
    )
    run(model, photos, "--out", out, "--batch_size", "4")
    assert "1 of 3 parts are there already" in caplog.text
    assert out.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert not out.with_name(f"{out.name}.parts").exists()


def test_neighbors_and_duplicates(model, photos, tmp_path, caplog):
    out = tmp_path / "v.parquet"
    run(model, photos, "--out", out, "--neighbors", "3", "--queries", "5", "--seed", "1", "--duplicates", "1")
    files, vectors, _ = read_embeddings(out)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with open(tmp_path / "v.neighbors.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    queries = list(dict.fromkeys(line["query"] for line in lines))
    assert len(queries) == 5
    assert len(lines) == 15
    for query in queries:
        near = [line for line in lines if line["query"] == query]
        similarities = unit @ unit[files.index(query)]
        similarities[files.index(query)] = -2
        best = np.sort(similarities)[::-1][:3]
        np.testing.assert_allclose([float(line["similarity"]) for line in near], best, atol=2e-6)
        np.testing.assert_allclose([similarities[files.index(line["file"])] for line in near], best, atol=1e-6)
        assert [line["rank"] for line in near] == ["1", "2", "3"]
    with open(tmp_path / "v.duplicates.csv", newline="", encoding="utf-8") as file:
        groups = list(csv.DictReader(file))
    assert [(line["group"], line["file"]) for line in groups] == [
        ("1", f) for f in ("07 <b>&.png", "12.png", "20.png")
    ]
    assert {line["similarity"] for line in groups} == {"1.000000"}
    text = (tmp_path / "v.html").read_text(encoding="utf-8")
    assert "<title>net: 23 embedded images</title>" in text
    assert text.count("<img") == 5 * 4 + 3
    assert "07 &lt;b&gt;&amp;.png" in text
    assert "<b>&.png" not in text
    assert "v.html contains 23 thumbnails of the data" in caplog.text
    assert str(tmp_path) not in text


def test_a_file_is_used_again(model, photos, tmp_path, caplog, capsys, monkeypatch):
    out = tmp_path / "v.npy"
    run(model, photos, "--out", out)
    before = out.stat().st_mtime_ns
    monkeypatch.setattr("modeling_a2mim.inference.running.run_over", lambda *args: pytest.fail("embeds again"))
    run(model, photos, "--out", out, "--neighbors", "2", "--queries", "60")
    assert f"{out}: is used as it is, of this model and these images" in caplog.text
    assert out.stat().st_mtime_ns == before
    assert "were changed after" not in caplog.text
    text = (tmp_path / "v.html").read_text(encoding="utf-8")
    assert text.count("<section>") == 23 <= SHOWN_QUERIES
    run(model, photos, "--out", out, "--duplicates", "0.999")
    assert f"{tmp_path / 'v.html'}: is replaced" in caplog.text
    caplog.clear()
    assert "duplicates: more than half of the images, where" not in caplog.text
    run(model, photos, "--out", out, "--duplicates", "0.01")
    assert "duplicates: more than half of the images, where" in caplog.text
    assert "Nearest" not in (tmp_path / "v.html").read_text(encoding="utf-8")
    assert "other layer, dim" in fails(capsys, model, photos, "--out", out, "--neighbors", "2", "--layer", "all")
    assert "other normalize" in fails(capsys, model, photos, "--out", out, "--duplicates", "1", "--normalize")
    changed = tmp_path / "photos"
    shutil.copytree(photos, changed)
    run(model, changed, "--out", out, "--neighbors", "2")
    noise(99).resize((50, 50)).save(changed / "00.png")
    caplog.clear()
    assert "other images" in fails(capsys, model, changed, "--out", out, "--neighbors", "2")
    assert "replaced" not in caplog.text
    assert "is there already" in fails(capsys, model, photos, "--out", out)


def test_images_that_were_changed_since(model, tmp_path, capsys):
    """The same names and sizes may be other images, which a file system tells by its times alone."""
    images, out = write_images(tmp_path / "images", ["a.png", "b.png"]), tmp_path / "v.npy"
    run(model, images, "--out", out)
    later = out.stat().st_mtime + 10
    os.utime(images / "b.png", (later, later))
    told = fails(capsys, model, images, "--out", out, "--neighbors", "1")
    assert f"out: 1 files of the images, such as b.png, were changed after {out} was written" in told


def test_the_page_shows_what_the_model_was_told_to_show(tmp_path):
    """Of the five bands of a file the model takes four, and its figures show the fourth and second of these."""
    stored = {"channels": [5, 4, 3, 1], "display_channels": [4, 2, 2], "value_range": {"low": [0.0], "high": [255.0]}}
    config = family_config(
        "resnet", image_size=32, num_labels=2, num_channels=4, image_mean=[0.5] * 4, image_std=[0.5] * 4
    )
    config = type(config).from_dict({**config.to_dict(), **stored})
    folder = export_model(A2MIMForImageClassification(config), tmp_path / "net")
    images = tmp_path / "images"
    images.mkdir()
    bands = np.zeros((5, 8, 8), dtype=np.uint8)
    bands[0, :, :4] = bands[3, :, 4:] = 255
    tifffile.imwrite(images / "a.tif", bands, photometric="minisblack", planarconfig="separate")
    tifffile.imwrite(images / "b.tif", bands, photometric="minisblack", planarconfig="separate")
    run(str(folder), images, "--out", tmp_path / "v.npy", "--neighbors", "1")
    data = re.search(r'src="data:image/png;base64,([^"]+)"', (tmp_path / "v.html").read_text())[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[0, 7].tolist() == [0, 255, 255]


def test_other_shards_of_the_same_names(model, tmp_path, capsys):
    shards, out = tmp_path / "shards", tmp_path / "v.npy"
    for name in ("0", "1"):
        write_parquet(shards / f"{name}.parquet", 4)
    run(model, shards, "--out", out)
    times = os.stat(shards / "1.parquet")
    images = {"image": [{"bytes": encoded(number, "BMP")} for number in range(4)]}
    Dataset.from_dict(images, datasets.Features({"image": datasets.Image()})).to_parquet(shards / "1.parquet")
    os.utime(shards / "1.parquet", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "other images" in fails(capsys, model, shards, "--out", out, "--duplicates", "1")


def test_queries_of_files(model, photos, tmp_path, capsys, monkeypatch):
    noise(13).save(tmp_path / "like.png")
    out = tmp_path / "v.parquet"
    own = photos / "12.png"
    run(model, photos, "--out", out, "--neighbors", "2", "--query", own, tmp_path / "like.png")
    lines = (tmp_path / "v.neighbors.csv").read_text().splitlines()
    assert lines[1:4] == ["12.png,1,07 <b>&.png,1.000000", "12.png,2,20.png,1.000000", "like.png,1,13.png,1.000000"]
    missing = fails(capsys, model, photos, "--out", out, "--neighbors", "2", "--query", tmp_path / "none.png")
    assert missing.startswith("error: query: ")
    with_more = ["--neighbors", "2", "--query", tmp_path / "none.png"]
    assert fails(capsys, model, photos, "--out", tmp_path / "w.npy", *with_more).startswith("error: query: ")
    assert not list(tmp_path.glob("w.*"))
    broken = fails(capsys, model, photos, "--out", out, "--neighbors", "2", "--query", photos / "04.png")
    assert broken.startswith(f"error: query: {photos / '04.png'} cannot be read: opening")
    monkeypatch.chdir(photos.parent)
    run(model, "photos", "--out", out, "--neighbors", "1", "--query", "photos/12.png")
    assert (tmp_path / "v.neighbors.csv").read_text().splitlines()[1:] == ["12.png,1,07 <b>&.png,1.000000"]


def test_one_of_several_from_python(model, photos, tmp_path):
    """An argument that the command takes as a list may be one word or path; a list of them is the same."""
    query, outs = sorted(photos.glob("**/*.png"))[0], [tmp_path / "one.npy", tmp_path / "list.npy"]
    embed(model, photos, out=outs[0], query=query, neighbors=1, layer="last", device="cpu")
    embed(model, photos, out=outs[1], query=[str(query)], neighbors=1, layer=("last",), device="cpu")
    one, several = (out.with_suffix(".neighbors.csv").read_text() for out in outs)
    assert one == several
    assert query.name in one


def test_rows_of_shards(model, tmp_path):
    """Which have no files: they are called by their numbers."""
    write_parquet(tmp_path / "images" / "a.parquet", 12)
    out = tmp_path / "v.parquet"
    run(model, tmp_path / "images", "--out", out, "--neighbors", "2", "--queries", "3")
    files, vectors, _ = read_embeddings(out)
    assert files[5] == "row 5 of a.parquet, row group 0"
    assert vectors.shape == (12, 96)
    assert (tmp_path / "v.html").read_text().count("<img class=small") == 9
    images = InferenceImages(open_every_image([tmp_path / "images"]), embedder(model).transform)
    assert images.name(5) == files[5]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "v.csv"], "out: v.csv must end in .parquet or .npy"),
        (["--out", "v.npy", "--layer", "first"], "layer: expected pooled, cls, last, all, stages, or indices"),
        (["--out", "v.npy", "--layer", "cls"], "layer: test_resnet has no class token"),
        (
            ["--out", "v.npy", "--probe_layers", "all", "--neighbors", "1"],
            "normalize: the cosine of all stages",
        ),
        (["--out", "v.npy", "--probe_layers", "all", "last"], "probe_layers: all is read alone, got all last"),
        (["--out", "v.npy", "--probe_layers", "first"], "probe_layers: expected last, all or an index"),
        (["--out", "v.npy", "--layer", "-9"], "layer: test_resnet has 5 feature maps, there is no index -9"),
        (["--out", "v.npy", "--layer", "last", "-1"], "layer: last -1 names one of them twice"),
        (["--out", "v.npy", "--layer", "cls", "cls"], "layer: cls cls names one of them twice"),
        (["--out", "v.npy", "--layer", "last", "4"], "layer: last 4 names one of them twice"),
        (["--out", "v.npy", "--probe_layers", "last", "-1"], "probe_layers: last -1 names one of them twice"),
        (["--out", "v.npy", "--device", "gpu"], "device: gpu cannot be used here; leave it out, or give cpu ("),
        (["--out", "v.npy", "--duplicates", "1.5"], "duplicates: must be a cosine similarity above 0, at most 1"),
        (["--out", "v.npy", "--queries", "3"], "queries: needs --neighbors"),
        (["--out", "v.npy", "--query", "a.png"], "query: needs --neighbors"),
        (["--out", "v.npy", "--neighbors", "0"], "neighbors: must be at least 1, got 0"),
        (["--out", "v.npy", "--batch_size", "0"], "batch_size: must be at least 1, got 0"),
        (["--out", "there.npy"], "out: there.npy is there already"),
        (["--out", "beside.npy"], "out: beside.files.csv is there already"),
        (["--out", "page.npy", "--neighbors", "1"], "out: page.html would be replaced, and was not written by a2mim"),
        (["--out", "table.npy", "--duplicates", "1"], "out: table.duplicates.csv would be replaced"),
        (["--out", "there.npy", "--neighbors", "1"], "there.npy: was not written by a2mim embed"),
    ],
)
def test_what_is_refused(model, photos, tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    precious = ["there.npy", "beside.files.csv", "page.html", "table.duplicates.csv"]
    for name in precious:
        (tmp_path / name).write_text("precious")
    assert fails(capsys, model, photos, *argv).startswith(f"error: {words}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(precious)
    assert {(tmp_path / name).read_text() for name in precious} == {"precious"}


def test_only_broken_images(model, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG nothing")
    run(model, tmp_path / "images", "--out", tmp_path / "v.npy")
    assert read_embeddings(tmp_path / "v.npy").vectors.shape == (0, 96)
    assert "images: none could be read" in fails(
        capsys, model, tmp_path / "images", "--out", tmp_path / "v.npy", "--neighbors", "1"
    )


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Other weights than `model`."""
    import torch

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other") / "net2"
    return str(export_model(A2MIMForImageClassification(family_config("resnet", image_size=32, num_labels=2)), folder))


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_between_the_files_of_an_npy(model, other_model, photos, tmp_path, monkeypatch, renames):
    """Of three that are put in their places; what is there afterwards is never of two models."""
    out, replace, done = tmp_path / "v.npy", os.replace, []
    run(model, photos, "--out", out)

    def killed(source, target):
        if Path(target).name in ("v.npy", "v.files.csv", "v.metadata.json"):
            done.append(target)
            if len(done) > renames:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            run(other_model, photos, "--out", out, "--overwrite")
    assert not out.exists()
    assert (tmp_path / "v.npy.parts").is_dir()
    run(other_model, photos, "--out", out, "--neighbors", "2", "--queries", "2")
    run(other_model, photos, "--out", tmp_path / "whole.npy")
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not (tmp_path / "v.npy.parts").exists()


def test_killed_while_it_overwrites(model, photos, tmp_path, monkeypatch, capsys, caplog):
    """The file is as it was, and is not taken for that of the run that was killed."""
    out = tmp_path / "v.parquet"
    run(model, photos, "--out", out)
    before, embed, calls = out.read_bytes(), Embedder.embed, []

    def killed(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return embed(self, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", killed)
        with pytest.raises(SystemExit):
            run(model, photos, "--out", out, "--batch_size", "4", "--overwrite", "--layer", "last")
    assert "interrupted; the same command goes on with the parts that are written\n" in capsys.readouterr().err
    assert out.read_bytes() == before
    found = fails(capsys, model, photos, "--out", out, "--neighbors", "2")
    assert "holds parts of another run (other layer)" in found
    assert f"parts of a run that was killed are there, so that {out} is not used as it is" in caplog.text
    run(model, photos, "--out", out, "--overwrite")
    assert out.read_bytes() == before


def test_an_npy_of_others(model, other_model, photos, tmp_path, capsys):
    """Put in the place of the one that belongs to the names beside it."""
    run(model, photos, "--out", tmp_path / "v.npy")
    run(other_model, photos, "--out", tmp_path / "w.npy")
    shutil.copy(tmp_path / "w.npy", tmp_path / "v.npy")
    words = "v.npy: does not belong to v.files.csv and v.metadata.json beside it"
    with pytest.raises(ValueError, match=words):
        read_embeddings(tmp_path / "v.npy")
    assert words in fails(capsys, model, photos, "--out", tmp_path / "v.npy", "--neighbors", "2")
    assert not (tmp_path / "v.html").exists()


def test_results_go_with_their_vectors(model, other_model, photos, tmp_path, capsys, caplog):
    out = tmp_path / "v.parquet"
    run(model, photos, "--out", out, "--neighbors", "2", "--queries", "2", "--duplicates", "1")
    results = [tmp_path / f"v.{name}" for name in ("html", "neighbors.csv", "duplicates.csv")]
    assert all(path.exists() for path in results)
    run(other_model, photos, "--out", out, "--overwrite")
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]
    assert all(f"removed: {path}, of the vectors that were there" in caplog.text for path in results)

    run(other_model, photos, "--out", out, "--duplicates", "1")
    (tmp_path / "v.neighbors.csv").write_text("mine")
    run(model, photos, "--out", out, "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.neighbors.csv", "v.parquet"]
    assert (tmp_path / "v.neighbors.csv").read_text() == "mine"

    run(model, photos, "--out", out, "--duplicates", "1")
    out.unlink()
    words = f"out: {tmp_path / 'v.duplicates.csv'} is there, of vectors that were written before; give --overwrite"
    (tmp_path / "v.html").unlink()
    (tmp_path / "v.neighbors.csv").unlink()
    assert words in fails(capsys, other_model, photos, "--out", out)
    assert words in fails(capsys, other_model, photos, "--out", out, "--neighbors", "1")
    assert not out.exists()


def test_queries_through_links(model, photos, tmp_path, caplog):
    """An image is not its own neighbor, whatever the way to it."""
    out = tmp_path / "v.parquet"
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    (tmp_path / "file.png").symlink_to(photos / "03.png")
    queries = [tmp_path / "link" / "03.png", tmp_path / "file.png", photos / "03.png"]
    for images in (photos, tmp_path / "link"):
        run(model, images, "--out", out, "--neighbors", "2", "--query", *queries)
        lines = [line.split(",") for line in (tmp_path / "v.neighbors.csv").read_text().splitlines()[1:]]
        assert {line[0] for line in lines} == {"03.png"}
        assert len(lines) == 6
        assert "03.png" not in {line[2] for line in lines}


def test_flags_without_effect(model, photos, tmp_path, capsys):
    start, out = [model, photos, "--out", tmp_path / "v.parquet"], tmp_path / "v.parquet"
    for flags, words in (
        (["--seed", "1"], "seed: has no effect without --neighbors"),
        (["--seed", "0", "--duplicates", "1"], "seed: has no effect without --neighbors"),
        (["--seed", "1", "--neighbors", "1", "--query", photos / "00.png"], "seed: has no effect with --query"),
        (["--revision", "main"], f"revision: is of a model on the Hub, and {model} is on this machine"),
        (
            ["--dataset_revision", "x"],
            f"dataset_revision: is of a dataset on the Hub, and {photos} is on this machine",
        ),
        (["--dataset_config_name", "x"], f"dataset_config_name: is of a dataset on the Hub, and {photos} is on this"),
    ):
        assert fails(capsys, *start, *flags).startswith(f"error: {words}")
    found = fails(capsys, model, "someone/images", "--out", out, "--dataset_revision", "v1")
    assert found.startswith("error: split: give it beside --dataset_revision")
    files = [photos / "00.png", photos / "01.png"]
    found = fails(capsys, model, *files, "--out", out, "--split", "train")
    assert found.startswith("error: split: has no effect on image files")
    assert not list(tmp_path.iterdir())


def test_configurations_of_a_local_card(model, photos, tmp_path, capsys):
    """Which have an effect where a split is named."""
    data = tmp_path / "data"
    (data / "one").mkdir(parents=True)
    (data / "two").mkdir()
    for number, config in ((0, "one"), (1, "one"), (2, "two")):
        shutil.copy(photos / f"{number:02}.png", data / config)
    card = "---\nconfigs:\n- config_name: one\n  data_dir: one\n- config_name: two\n  data_dir: two\n---\n"
    (data / "README.md").write_text(card)
    named = [model, data, "--out", tmp_path / "v.parquet", "--dataset_config_name", "one"]
    assert fails(capsys, *named).startswith("error: dataset_config_name: has no effect without --split")
    run(*named, "--split", "train")
    assert len(read_embeddings(tmp_path / "v.parquet").files) == 2


def test_one_image(model, photos, tmp_path, caplog):
    run(model, photos / "00.png", "--out", tmp_path / "v.npy", "--neighbors", "2", "--queries", "3")
    text = (tmp_path / "v.html").read_text()
    assert "There is one image, and none to compare it with." in text
    assert "<title>net: 1 embedded image</title>" in text
    assert "nan" not in text.partition("<body>")[2].lower().partition("<img")[0]
    assert "queries: 1, as there are no more images" in caplog.text
    assert "neighbors: 0, as there are no more images" in caplog.text


def grey_vit(folder, values):
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=32, patch_size=8, num_channels=1, **small)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, image_mean=[0.5] * values, image_std=[0.5] * values).save_pretrained(folder)
    return folder


def test_a_grey_model_of_transformers(photos, tmp_path, capsys):
    grey = grey_vit(tmp_path / "grey", 1)
    run(grey, photos, "--out", tmp_path / "v.parquet")
    assert read_embeddings(tmp_path / "v.parquet").vectors.shape == (23, 32)
    pixels = embedder(str(grey)).transform(photos / "03.png")["pixel_values"]
    assert pixels.shape == (1, 32, 32)
    wrong = grey_vit(tmp_path / "wrong", 3)
    found = fails(capsys, wrong, photos, "--out", tmp_path / "w.parquet")
    assert "wrong: cannot be loaded: num_channels: the model takes 1 channel(s), and its image processor" in found
    assert not list(tmp_path.glob("w.*"))


@pytest.mark.ci
def test_a_segmenter(photos, tmp_path, capsys):
    """Which lacks the end of its encoder, as no map comes from there."""
    for family in ("test_resnet", "test_convnext", "test_efficientnet"):
        folder = tmp_path / family
        segmenter = small(family, size=48)
        without_package(segmenter).save_pretrained(folder)
        image_processor(segmenter).save_pretrained(folder)
    run(tmp_path / "test_resnet", photos, "--out", tmp_path / "v.npy")
    assert np.isfinite(read_embeddings(tmp_path / "v.npy").vectors).all()
    found = fails(capsys, tmp_path / "test_convnext", photos, "--out", tmp_path / "w.npy")
    assert "layer: pooled needs weights that test_convnext lacks, as its training had no use for them (head." in found
    assert "it has --layer -2, -3, -4\n" in found  # last is after the norm, as the decoder read it
    run(tmp_path / "test_convnext", photos, "--out", tmp_path / "w.npy", "--layer", "-2")
    assert np.isfinite(read_embeddings(tmp_path / "w.npy").vectors).all()
    found = fails(capsys, tmp_path / "test_efficientnet", photos, "--out", tmp_path / "x.npy")
    assert "conv_head" in found
    assert "it has --layer " in found


def test_what_is_given_of_stored_images_is_said(tmp_path, capsys, caplog):
    """Pages and a range in place of those that the model keeps."""
    import tifffile

    config = family_config("resnet", image_size=32, num_labels=2, num_channels=1, value_range=ValueRange((0,), (999,)))
    folder = str(export_model(A2MIMForImageClassification(config), tmp_path / "net"))
    stack = np.random.default_rng(0).integers(0, 999, (3, 40, 40), np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    run(folder, tmp_path / "stack.tif", "--out", tmp_path / "none.npy")
    assert "3 pages; --pages channels, samples or first says what they are" in caplog.text
    assert not len(read_embeddings(tmp_path / "none.npy").vectors)
    run(folder, tmp_path / "stack.tif", "--out", tmp_path / "own.npy", "--pages", "samples")
    own = read_embeddings(tmp_path / "own.npy").vectors
    assert own.shape == (3, 96)
    assert "as given" not in caplog.text
    run(folder, tmp_path / "stack.tif", "--out", tmp_path / "a.npy", "--pages", "first", "--value_range", "0", "500")
    other = read_embeddings(tmp_path / "a.npy").vectors
    assert other.shape == (1, 96)
    assert not np.allclose(other, own[:1], atol=1e-3)
    told = "value_range: 0 to 500, as given; the model was trained with 0 to 999, which is not used"
    assert caplog.text.count(told) == 1
    with pytest.raises(SystemExit):
        run(folder, tmp_path / "stack.tif", "--out", tmp_path / "b.npy", "--pages", "all")


def rank_embeds(rank, *argv):
    parts.ROWS_IN_PART = 10
    main(list(argv))


@pytest.mark.slow
def test_two_processes(model, photos, tmp_path):
    run(model, photos, "--out", tmp_path / "whole.parquet", "--neighbors", "2", "--duplicates", "1")
    argv = [model, str(photos), "--out", str(tmp_path / "v.parquet"), "--neighbors", "2", "--duplicates", "1"]
    in_two_processes(rank_embeds, *argv, "--device", "cpu")
    one, other = pq.read_table(tmp_path / "whole.parquet"), pq.read_table(tmp_path / "v.parquet")
    assert one.equals(other)
    for name in ("html", "neighbors.csv", "duplicates.csv"):
        assert (tmp_path / f"v.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
