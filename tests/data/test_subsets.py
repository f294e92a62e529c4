"""Subsets of labelled images: their sizes, that they are the same again and nested, and the files that keep them."""

import itertools
import json

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Image

from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.data.subsets import checksum_of_images, draw_subset, load_subset, save_subset


# 100, 20 and 3 images of three classes, mixed
LABELS = np.random.default_rng(7).permutation(np.repeat([0, 1, 5], [100, 20, 3]))


def counts(rows):
    return [int((LABELS[rows] == label).sum()) for label in (0, 1, 5)]


def test_the_same_seed_draws_the_same_rows():
    chosen = draw_subset(LABELS, per_class=3, seed=0)
    assert counts(chosen) == [3, 3, 3]
    assert chosen == sorted(set(chosen)) == draw_subset(LABELS.tolist(), per_class=3, seed=0)
    assert chosen != draw_subset(LABELS, per_class=3, seed=1)
    assert all(type(row) is int for row in chosen)


def test_every_image_of_a_class_is_drawn_as_often():
    labels = np.repeat([0, 1], 10)
    drawn = np.bincount(np.concatenate([draw_subset(labels, per_class=5, seed=seed) for seed in range(400)]))
    # Each of 20 images is in half of 400 subsets: 200 with a standard deviation of 10; 5 of them never happen.
    assert drawn.sum() == 400 * 10
    assert abs(drawn - 200).max() < 50


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1.0, [100, 20, 3]),
        (0.5, [50, 10, 2]),  # 1.5 is rounded up
        (0.1, [10, 2, 1]),  # 0.3 would be none
        (0.025, [3, 1, 1]),  # 2.5 and 0.5 are rounded up
        (0.001, [1, 1, 1]),
    ],
)
def test_a_fraction_keeps_the_balance_of_classes(fraction, expected):
    assert counts(draw_subset(LABELS, fraction=fraction, seed=0)) == expected


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_subsets_are_nested(seed):
    sets = [set(draw_subset(LABELS, fraction=f, seed=seed)) for f in (0.01, 0.05, 0.3, 0.31, 1.0)]
    sets += [set(range(len(LABELS)))]
    assert all(one <= two for one, two in itertools.pairwise(sets))
    labels = np.repeat(np.arange(4), 100)
    few, more = (set(draw_subset(labels, per_class=n, seed=seed)) for n in (10, 100))
    assert len(few) == 40
    assert few < more


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "^labels_per_class: give either it or label_fraction"),
        ({"per_class": 1, "fraction": 0.5}, "^labels_per_class: give either it or label_fraction"),
        ({"per_class": 4}, "^labels_per_class: class 5 has only 3 images, not 4$"),
        ({"per_class": 0}, "^labels_per_class: must be at least 1, got 0"),
        ({"fraction": 0.0}, r"^label_fraction: must be in \(0, 1\], got 0.0"),
        ({"fraction": 1.1}, "^label_fraction: must be in"),
    ],
)
def test_what_cannot_be_drawn(kwargs, message):
    with pytest.raises(ValueError, match=message):
        draw_subset(LABELS, seed=0, **kwargs)


@pytest.mark.parametrize("labels", [[], [0, -1], [0, None], [0.5, 1.0], [[0, 1], [1, 0]], ["cat", "dog"]])
def test_labels_must_be_class_indices(labels):
    with pytest.raises(ValueError, match="^label_column_name: expected one class index, 0 or more, for each image"):
        draw_subset(labels, per_class=1, seed=0)


def test_a_saved_subset_comes_back(tmp_path, caplog):
    rows = draw_subset(LABELS, fraction=0.1, seed=3)
    save_subset(tmp_path / "subset.json", rows, LABELS, checksum="names a", seed=3, fraction=0.1)
    assert (
        load_subset(tmp_path / "subset.json", LABELS.tolist(), lambda found: "names a" if found == rows else "names b")
        == rows
    )
    assert not caplog.text
    text = (tmp_path / "subset.json").read_text()
    assert str(tmp_path) not in text
    record = json.loads(text)
    assert (record["seed"], record["label_fraction"], record["labels_per_class"]) == (3, 0.1, None)
    assert record["images"] == len(LABELS)


def same(rows):
    return "names a"


def changed(tmp_path, **changes):
    save_subset(tmp_path / "subset.json", [0, 1], LABELS, checksum="names a", seed=0, per_class=1)
    record = json.loads((tmp_path / "subset.json").read_text()) | changes
    (tmp_path / "subset.json").write_text(json.dumps(record))
    return tmp_path / "subset.json"


def test_a_subset_of_other_images_is_refused(tmp_path):
    path = changed(tmp_path)
    with pytest.raises(ValueError, match="^label_subset: subset.json was made for 123 images, these are 122$"):
        load_subset(path, LABELS[1:], same)
    other = np.roll(LABELS, 1)
    with pytest.raises(ValueError, match="^label_subset: subset.json was made for images with other labels"):
        load_subset(path, other, same)
    with pytest.raises(ValueError, match="^label_subset: the rows in subset.json are other images than those that"):
        load_subset(path, LABELS, lambda rows: "names b")


def test_a_subset_of_images_that_are_stored_otherwise(tmp_path, caplog):
    assert load_subset(changed(tmp_path), LABELS, lambda rows: "contents a") == [0, 1]
    assert "subset.json was drawn from images that are stored otherwise" in caplog.text


def test_a_subset_of_an_earlier_version(tmp_path, caplog):
    path = changed(tmp_path)
    record = json.loads(path.read_text())
    del record["subset_sha256"]
    path.write_text(json.dumps(record))
    assert load_subset(path, LABELS, lambda rows: "b") == [0, 1]
    assert "label_subset: subset.json is of an earlier version" in caplog.text


def test_checksums_of_images_without_files():
    images = np.random.default_rng(0).integers(0, 256, (300, 2, 2), dtype=np.uint8)
    stored = [{"bytes": image.tobytes(), "path": "same.png"} for image in images]
    kinds = {"bytes": [*stored[:-1], None], "arrays": images.tolist()}
    features = {"bytes": Image(), "arrays": Array2D((2, 2), "uint8")}
    found = DatasetSource(Dataset.from_dict(kinds, features=Features(features)))
    for column in kinds:
        source = found.select(column)
        whole = checksum_of_images(source, range(300))
        assert whole == checksum_of_images(found.select(column), list(range(300)))
        assert whole != checksum_of_images(source, range(1, 300))
        assert checksum_of_images(source, [3, 8]) != checksum_of_images(source, [3, 9])


@pytest.mark.parametrize("rows", [[], [0, 0], [-1], [len(LABELS)], [0.5], [True], "01", None])
def test_rows_that_are_none_are_refused(tmp_path, rows):
    with pytest.raises(ValueError, match="^label_subset: the rows in subset.json must be different ones of 0 to 122"):
        load_subset(changed(tmp_path, rows=rows), LABELS, same)


def test_files_that_are_no_subsets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="^label_subset: .*none.json cannot be read: No such file"):
        load_subset(tmp_path / "none.json", LABELS, same)
    for text in ("{", "[]", "{}", "3", "\xff"):
        (tmp_path / "other.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match="^label_subset: other.json is no file of save_subset: "):
            load_subset(tmp_path / "other.json", LABELS, same)
