"""All objects are looked at before training: what is left out is counted."""

import logging

import datasets
import pytest

from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.tasks.detection.annotations import Annotations
from modeling_a2mim.tasks.detection.scan import FoundObjects, look_at_objects, stored_classes, with_sizes

from .test_annotations import BOXES, NAMES, as_rows, rows


pytestmark = pytest.mark.usefixtures("one_thread")


def source(*values, **more):
    stored = {"image_id": list(range(len(values))), "objects": list(values), **more}
    return DatasetSource(datasets.Dataset.from_dict(stored))


def annotations(found, names=NAMES, **options):
    return Annotations(found.features["objects"], "objects", names, **options)


@pytest.mark.parametrize("listed", [False, True])
def test_what_cannot_be_used_is_counted(listed, caplog):
    wrong = [[1.0, 1.0, 0.0, 1.0], [1.0, 2.0, float("nan"), 1.0], [1.0, 2.0, 3.0]]
    values = [rows(), rows([], []), rows([*BOXES, *wrong, BOXES[0]], [0, 0, 0, 0, 0, 7])]
    found = source(*(as_rows(value) for value in values) if listed else values)
    assert stored_classes([found], "objects") == {0: "0", 1: "1", 7: "7"}
    caplog.set_level(logging.INFO, "a2mim")
    counts = look_at_objects(found, annotations(found), "training data")
    assert (counts.images, counts.empty, counts.objects, counts.classes) == (3, 1, 8, {0: 3, 1: 1})
    assert (
        "training data: 4 objects to use in 3 images, 1 of which have none; 2 classes: cat (3), dog (1)" in caplog.text
    )
    assert "training data: 1 of 8 objects are left out: with an empty box" in caplog.text
    assert "training data: 2 of 8 objects are left out: with a box that is not four finite numbers" in caplog.text
    assert "training data: 1 of 8 objects are left out: of no known class (7)" in caplog.text
    assert "do not occur" not in caplog.text


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (rows([], []), {}, "^objects_column_name: 'objects' of the x holds no objects at all, in 1 images"),
        (rows(classes=[7, 8]), {}, r"^id2label: 2 of 2 .* without a name \(7, 8\); there is no such class among cat"),
        (rows([[1.0, 2.0, 3.0]], [0]), {}, "has 1 of 1 objects with a box that is not four finite numbers$"),
        (
            rows([[50.0, 50.0, 20.0, 9.0], [40.0, 9.0, 9.0, 30.0]]),
            {"box_format": "pascal_voc"},
            "^bbox_format: 2 of 2 boxes of the x have no area when read as pascal_voc; there are coco",
        ),
        (
            rows(segmentation=[[[1.0, 1.0, 2.0, 2.0]], []]),
            {"masks": True},
            "has 2 of 2 objects without a usable mask; --task object-detection needs none",
        ),
    ],
)
def test_what_is_mostly_wrong_is_an_error(value, options, message):
    found = source(value)
    with pytest.raises(ValueError, match=message):
        look_at_objects(found, annotations(found, **options), "x")


def test_sizes_tell_what_is_cut_off(caplog):
    boxes = [[90.0, 40.0, 50.0, 50.0], [200.0, 10.0, 5.0, 5.0], [0.0, 0.0, 100.0, 50.0 + 1e-5], *BOXES]
    found = source(rows(boxes, [0, 0, 0, 1, 1], iscrowd=[0, 0, 0, 1, None]), width=[100], height=[50])
    counts = look_at_objects(found, annotations(found), "data")
    assert (counts.clipped, counts.reasons, counts.crowds, counts.classes) == (
        1,
        {"outside the image": 1},
        1,
        {0: 2, 1: 1},
    )
    for words in ("1 boxes reach out of their image", "1 of 5 objects are left out: outside", "1 objects are crowds"):
        assert words in caplog.text
    selected = with_sizes(found).select("image_id", "objects")
    ((number, sized),) = selected.read([0])
    assert (number, sized.height, sized.width) == (0, 50, 100)
    assert selected.fingerprint == found.fingerprint
    assert with_sizes(source(rows(), width=[1.5], height=[2.5])).read is not with_sizes(found).read


def test_annotations_that_are_none(caplog):
    found = FoundObjects()
    reader = Annotations(None, "objects", NAMES)
    for row, value in enumerate((rows(), rows(classes=[0]), "nothing", None)):
        found.add(row, value, reader, None, None)
    assert [row for row, _ in found.unreadable] == [1, 2]
    assert (found.images, found.empty) == (4, 1)
