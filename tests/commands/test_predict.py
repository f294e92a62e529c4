"""`a2mim predict` from outside: images of every kind of source, kills, several processes, and the Hub."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from modeling_a2mim import A2MIMForImageClassification
from modeling_a2mim.commands.predict import main
from modeling_a2mim.export.folder import export_model

from ..processes import forked, in_two_processes
from ..small_models import make


pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT = 70


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    model = make("resnet", A2MIMForImageClassification, image_size=32)
    return export_model(model, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(COUNT):
        place = folder / ("train", "test")[number % 2]
        place.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return folder


def predict(*args):
    main([*map(str, args), "--num_workers", "0", "--device", "cpu"])


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(photos):
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))


def refused(capsys, *args):
    with pytest.raises(SystemExit) as exited:
        predict(*args)
    assert exited.value.code == 2
    return capsys.readouterr().err


def test_images_of_every_kind_of_source(export, photos, tmp_path, monkeypatch):
    """The same scores, whatever the images are in."""
    monkeypatch.chdir(photos / "train")
    files = [path.name for path in sorted((photos / "train").iterdir())]
    sources = {"folder": [photos / "train"], "files": files, "here": ["."]}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in files:
            archive.add(name)
    images = {"image": [{"bytes": (photos / "train" / n).read_bytes(), "path": n} for n in files]}
    dataset = Dataset.from_dict(images, Features({"image": ImageFeature()}))
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    sources |= {name: [tmp_path / name] for name in ("a.tar", "a.parquet", "saved")}
    scores = {}
    for name, images in sources.items():
        predict(export, *images, "--out", tmp_path / f"{name}.csv")
        found = rows(tmp_path / f"{name}.csv")
        assert len({row["file"] for row in found}) == len(found) == COUNT // 2
        scores[name] = [[row["score_LABEL_0"], row["class"]] for row in found]
        if name in ("folder", "files", "here"):
            assert [row["file"] for row in found] == files
    assert all(found == scores["folder"] for found in scores.values())
    predict(export, files[3], "--out", tmp_path / "one.csv")
    assert [row["file"] for row in rows(tmp_path / "one.csv")] == [files[3]]


def test_the_table_beside_the_images(export, photos, tmp_path, capsys):
    """A run goes on where it was though its parts lie among the images."""
    folder = shutil.copytree(photos, tmp_path / "images")
    out = folder / "predictions.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_a2mim.inference.prediction.Decisions.of", after(1))
        with pytest.raises(SystemExit) as exited:
            predict(export, folder, "--out", out)
    assert exited.value.code == 130
    words = capsys.readouterr().err
    assert f"interrupted; parts of the result in {out}.parts: 1; the same command goes on from there" in words
    predict(export, folder, "--out", out)
    assert [row["file"] for row in rows(out)] == names(photos)
    predict(export, folder, "--out", tmp_path / "again.csv")
    assert rows(tmp_path / "again.csv") == rows(out)


def after(count):
    """`Decisions.of` that Ctrl-C interrupts after so many batches."""
    from modeling_a2mim.inference.prediction import Decisions

    real, calls = Decisions.of, []

    def interrupted(self, logits):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return real(self, logits)

    return interrupted


def test_another_run_is_told_from_this_one(export, photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_a2mim.inference.prediction.Decisions.of", after(1))
        with pytest.raises(SystemExit):
            predict(export, photos, "--out", out)
    other = export_model(make("convnext", A2MIMForImageClassification, image_size=32), tmp_path / "other")
    for args, what in (
        ([export, photos / "train"], "images"),
        ([other, photos], "model"),
        ([export, photos, "--dtype", "bfloat16"], "dtype"),
        ([export, photos, "--threshold", "0.5", "--positive_class", "LABEL_0"], "decision"),
    ):
        assert f"{what}" in refused(capsys, *args, "--out", out).split("another run (other")[1]
    predict(export, photos, "--out", out, "--batch_size", "7")
    assert [row["file"] for row in rows(out)] == names(photos)
    assert "is there already; give --overwrite" in refused(capsys, export, photos, "--out", out)
    predict(export, photos, "--out", out, "--overwrite", "--dtype", "bfloat16")
    assert len(rows(out)) == COUNT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out.csv"]


def test_what_cannot_be_written(export, photos, tmp_path, capsys):
    assert "must end in .csv or .parquet" in refused(capsys, export, photos, "--out", tmp_path / "x.txt")
    assert not list(tmp_path.iterdir())


def test_killed_while_it_puts_the_table_together(export, photos, tmp_path, monkeypatch):
    """Between putting the table in its place and removing the parts."""
    out = tmp_path / "out.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_a2mim.inference.parts.PartedTable.remove", lambda self: os._exit(9))
        process = forked(predict, export, photos, "--out", out)
        process.join()
        assert process.exitcode == 9
    assert out.exists()
    predict(export, photos, "--out", out)
    assert [row["file"] for row in rows(out)] == names(photos)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_images_that_are_replaced_meanwhile(export, photos, tmp_path, capsys):
    """Of the same names, and even of the same sizes: their rows are not joined with those of the images before."""
    own, out = tmp_path / "photos", tmp_path / "out.csv"
    shutil.copytree(photos, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_a2mim.inference.prediction.Decisions.of", after(1))
        with pytest.raises(SystemExit):
            predict(export, own, "--out", out)
    first, last = sorted(own.rglob("*.png"))[0], sorted(own.rglob("*.png"))[-1]
    shutil.copyfile(last, first)
    assert "another run (other images)" in refused(capsys, export, own, "--out", out)
    predict(export, own, "--out", out, "--overwrite")
    found = rows(out)
    assert float(found[0]["score"]) == pytest.approx(float(found[-1]["score"]), abs=1e-6)  # in batches of other sizes


def of_process(rank, export, photos, out):
    main([export, photos, "--out", out, "--num_workers", "0"])  # without a device, as on a machine without a GPU


@pytest.mark.slow
def test_two_processes(export, photos, tmp_path):
    in_two_processes(of_process, str(export), str(photos), str(tmp_path / "two.csv"))
    predict(export, photos, "--out", tmp_path / "one.csv")
    assert rows(tmp_path / "two.csv") == rows(tmp_path / "one.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "two.csv"]


@pytest.mark.slow
def test_killed_by_the_system_and_resumed(export, photos, tmp_path):
    """In processes of its own, two of them at a time, with workers that read images."""
    out = tmp_path / "out.csv"
    program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [sys.executable, *program, "modeling_a2mim.commands.predict", str(export), str(photos)]
    command += ["--out", str(out), "--num_workers", "1", "--device", "cpu", "--batch_size", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for _ in range(2):
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not (tmp_path / "out.csv.parts").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        if process.poll() is None:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:  # torchrun's processes would outlive it
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=30)
        process.wait()
    if not out.exists():
        subprocess.run(command, env=env, check=True, stderr=subprocess.DEVNULL)
    assert [row["file"] for row in rows(out)] == names(photos)


def test_model_and_images_of_the_hub(hub, export, photos, tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import HfApi

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    HfApi().create_repo("tester/model", private=True)
    HfApi().upload_folder(folder_path=str(export), repo_id="tester/model", repo_type="model")
    dataset = Dataset.from_dict(
        {"image": [{"bytes": (photos / n).read_bytes(), "path": n} for n in names(photos)[:5]]},
        Features({"image": ImageFeature()}),
    )
    dataset.push_to_hub("tester/data", private=True)
    predict("tester/model", "tester/data", "--out", tmp_path / "hub.csv")
    predict(export, photos, "--out", tmp_path / "local.csv")
    local = {row["file"]: row["score_LABEL_1"] for row in rows(tmp_path / "local.csv")}
    found = rows(tmp_path / "hub.csv")
    scores = [[float(row["score_LABEL_1"]) for row in found], [float(local[name]) for name in names(photos)[:5]]]
    np.testing.assert_allclose(*scores, rtol=0, atol=2e-6)  # in a batch of another size
    assert "hf_" not in json.dumps(found)
