"""Images out of the training data: which, and that those held out are not trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

import run_pretraining
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.held_out import MOST_CHUNKS, hold_out, spread_rows
from modeling_a2mim.data.shards import ParquetSource
from modeling_a2mim.data.sources import DatasetSource, MixedSource, RowsOf
from modeling_a2mim.data.transforms import PreTrainTransform


SCRIPT = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
SCRIPT += ["--num_channels", "1", "--use_cpu", "--disable_tqdm", "True", "--per_device_train_batch_size", "8"]


def write_images(folder, count, first=0):
    """Images whose grey value is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        PILImage.fromarray(np.full((32, 32), i, dtype=np.uint8)).save(folder / f"{i:03d}.png")


def shards(folder, sizes):
    number, files = 0, []
    for shard, size in enumerate(sizes):
        write_images(folder / "images", size, number)
        rows = [{"bytes": (folder / "images" / f"{i:03d}.png").read_bytes()} for i in range(number, number + size)]
        Dataset.from_dict({"image": rows}, features=Features({"image": Image()})).to_parquet(
            folder / f"{shard}.parquet", batch_size=4
        )
        files.append(str(folder / f"{shard}.parquet"))
        number += size
    return ParquetSource("shards", files)


def numbers(source, rows=None):
    """The grey values of images."""
    import io

    source = source.select("image")
    values = source.read(np.arange(len(source)) if rows is None else rows)
    return [int(np.asarray(PILImage.open(io.BytesIO(image["bytes"])))[0, 0]) for image, _ in values]


def test_rows_are_spread():
    rows = spread_rows(10, [1000])
    assert [row // 100 for row in rows] == list(range(10))
    assert len(set(rows % 100)) > 5  # not evenly spaced
    assert (rows == spread_rows(10, [1000])).all()
    assert spread_rows(10, [4]).tolist() == [0, 1, 2, 3]
    assert spread_rows(3, [1, 1, 1]).tolist() == [0, 1, 2]


def test_few_chunks_are_read():
    chunks = np.full(1000, 50)
    rows = spread_rows(256, chunks)
    assert len(set(rows.tolist())) == 256
    assert (np.diff(rows) > 0).all()
    assert len(set(rows // 50)) == MOST_CHUNKS
    assert rows.min() < 50 * 40
    assert rows.max() > 50 * 960
    assert len(spread_rows(40_000, chunks)) == 40_000  # more than those chunks hold


def test_rows_of_a_source(tmp_path):
    source = shards(tmp_path, [10, 7, 9])
    assert source.chunks.tolist() == [4, 4, 2, 4, 3, 4, 4, 1]
    part = RowsOf(source, [1, 3, 4, 9, 25])
    assert len(part) == 5
    assert part.chunks.tolist() == [2, 1, 1, 1]
    assert numbers(part) == [1, 3, 4, 9, 25]
    assert numbers(part.take(2)) == [1, 3]
    assert part.select("image").describe(3).startswith("row 1 of ")
    assert part.fingerprint != RowsOf(source, [1, 3, 4, 9, 24]).fingerprint
    part.keep_chunks(7)
    assert source.chunks_open == 7


@pytest.mark.parametrize("kind", ["files", "parquet", "mix", "weighted mix"])
def test_held_out_images_are_left_out(kind, tmp_path):
    if kind == "files":
        write_images(tmp_path, 60)
        files = [{"bytes": None, "path": str(path)} for path in sorted(tmp_path.glob("*.png"))]
        source = DatasetSource(Dataset.from_dict({"image": files}, features=Features({"image": Image()})))
    else:
        source = shards(tmp_path, [30, 20, 10])
        if "mix" in kind:
            parts = [RowsOf(source, np.arange(20)), RowsOf(source, np.arange(20, 60))]
            parts = [part.select("image") for part in parts]
            source = MixedSource(parts, [1, 3] if kind == "weighted mix" else None)
    train, held = hold_out(source, 12)
    assert (len(train), len(held)) == (48, 12)
    one, two = numbers(train), numbers(held)
    assert sorted(one + two) == list(range(60))
    assert two == numbers(hold_out(source, 12)[1])
    # And in what is given to a run: two epochs.
    samples = ImageSamples(train, lambda image: {"x": torch.zeros(1)}, None if train.columns else "image")
    keys = samples.order(8).keys(0, 0, 48) + samples.order(8).keys(1, 0, 48)
    assert set(numbers(samples.source, [row for _, row in keys])) <= set(one)
    named = DatasetSource(Dataset.from_dict({"image": [None] * 9}, features=Features({"image": Image()})))
    assert RowsOf(named.select("image"), [4, 7]).file_name(1) == "row 7"
    if kind != "weighted mix":
        assert sorted(numbers(samples.source, [row for _, row in keys[:48]])) == one


def test_too_many_are_refused(tmp_path):
    write_images(tmp_path / "images", 10)
    with pytest.raises(ValueError, match="^holdout: 6 of 10 images leaves fewer than half to train on"):
        run_pretraining.main(
            [*SCRIPT, "--train_dir", str(tmp_path / "images"), "--holdout", "6", "--output_dir", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "images", 64)
    return tmp_path / "images"


def run(images, out, *args):
    # Images are told apart by their grey value; none is dropped, cropped or blurred into another.
    return run_pretraining.main(
        [*SCRIPT, "--train_dir", str(images), "--output_dir", str(out), "--num_train_epochs", "2", *args]
    )


def test_held_out_images_are_never_trained_on(images, tmp_path, monkeypatch):
    seen = {True: set(), False: set()}
    draw = PreTrainTransform.draw

    def spy(self, image):
        sample = draw(self, image)
        seen[self.train].add(round(float(sample["pixel_values"].float().mean())))
        return sample

    monkeypatch.setattr(PreTrainTransform, "draw", spy)
    metrics = run(images, tmp_path / "out", "--holdout", "16", "--seed", "3")
    assert (len(seen[True]), len(seen[False])) == (48, 16)
    assert seen[True] & seen[False] == set()
    assert {"eval_masked_psnr", "eval_mean_fill_psnr", "eval_blur_psnr", "eval_masked_l1"} <= set(metrics)
    record = json.loads(Path(tmp_path, "out", "training.json").read_text())
    assert record["images"] == 48
    assert record["evaluation_data"] == "the training data, held out of it"
    assert record["evaluation"]["images"] == 16
    assert record["evaluation"]["masked_psnr"] == metrics["eval_masked_psnr"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Measured on 16 images of the training data, held out of it, at step 12:" in card
    assert f"| PSNR of masked pixels (dB) | {metrics['eval_masked_psnr']:.4f} |" in card
    # The same ones with another seed.
    held = seen[False]
    seen[False] = set()
    run(images, tmp_path / "other", "--holdout", "16", "--seed", "4")
    assert seen[False] == held


def test_without_it_training_images_are_evaluated_on(images, tmp_path):
    run(images, tmp_path / "out")
    record = json.loads(Path(tmp_path, "out", "training.json").read_text())
    assert (record["images"], record["evaluation"]["images"]) == (64, 64)
    assert record["evaluation_data"] == "the training data itself"


def test_images_for_evaluation_are_given_twice(images, tmp_path):
    with pytest.raises(ValueError, match="^holdout: give either it or images for evaluation"):
        run(images, tmp_path / "out", "--holdout", "4", "--validation_dir", str(images))
