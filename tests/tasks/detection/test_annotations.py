"""Annotations in the layouts of the Hub, and average precision against values computed by hand."""

import json

import datasets
import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from modeling_a2mim.data.decoding import ORIENTATIONS, BrokenImage, turned
from modeling_a2mim.tasks.detection.annotations import Annotations, AveragePrecision, as_rows


NAMES = {0: "cat", 1: "dog"}
BOXES = [[1.0, 2.0, 10.0, 20.0], [5.0, 5.0, 30.0, 8.0]]  # x, y, width, height
CORNERS = [[1, 2, 11, 22], [5, 5, 35, 13]]
SQUARE = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]  # a polygon of 10 x 10 pixels


def struct_of_lists(category=None):
    category = category or datasets.ClassLabel(names=list(NAMES.values()))
    return {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": datasets.List(category)}


def rows(boxes=BOXES, classes=(1, 0), **more):
    return {"bbox": boxes, "category": list(classes), **more}


def test_layouts_and_formats_are_read_alike():
    lists, listed = struct_of_lists(), datasets.List({"bbox": datasets.List(datasets.Value("float32"))})
    assert as_rows(rows())[0] == {"bbox": BOXES[0], "category": 1}
    assert as_rows(as_rows(rows())) == as_rows(rows())
    assert as_rows(None) == []
    shares = [[6 / 100, 12 / 50, 10 / 100, 20 / 50], [20 / 100, 9 / 50, 30 / 100, 8 / 50]]
    stored = {"coco": BOXES, "pascal_voc": CORNERS, "yolo": shares}
    for box_format, boxes in stored.items():
        objects = Annotations(lists, box_format=box_format).read(rows(boxes), 50, 100)
        np.testing.assert_allclose(objects.boxes, CORNERS, atol=1e-12)  # shares are rounded
        assert objects.classes.tolist() == [1, 0]
        np.testing.assert_allclose(objects.area, [200, 240])
    by_id = Annotations(None, id2label={"18": "dog", "17": "cat"})  # as COCO's category_id, in the order given
    assert by_id.names == ["dog", "cat"]
    assert [by_id.index(value) for value in (18, "18", "dog", 17)] == [0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"^objects_column_name: 'objects' has bbox, and no category"):
        Annotations(listed)


def test_boxes_are_cut_off_or_dropped_and_counted():
    boxes = [[-5.0, -5.0, 10.0, 10.0], [90.0, 40.0, 50.0, 50.0], [200.0, 10.0, 5.0, 5.0], [1.0, 1.0, 0.0, 5.0]]
    objects = Annotations(struct_of_lists()).read(rows([*boxes, [9.0, 9.0, -3.0, 5.0]], [0] * 5), 50, 100)
    assert objects.boxes.tolist() == [[0, 0, 5, 5], [90, 40, 100, 50]]
    assert objects.dropped == 3
    assert objects.reasons == {"outside the image": 1, "with an empty box": 2}
    assert objects.clipped == 2
    empty = Annotations(struct_of_lists()).read(rows([], []), 50, 100)
    assert empty.boxes.shape == (0, 4)
    assert empty.decoded_masks(50, 100).shape == (0, 50, 100)


def test_masks_in_all_forms():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:12, 2:12] = 1
    packed = rle.encode(np.asfortranarray(mask))
    runs = [2 * 20 + 2, *[10] * 19, 20 * 18 + 8]  # column after column
    forms = [SQUARE, SQUARE[0], packed, {**packed, "counts": packed["counts"].decode()}]
    forms.append({"counts": runs, "size": [20, 30]})
    fields = {**struct_of_lists(), "segmentation": datasets.List(datasets.Value("string"))}
    annotations = Annotations(fields, masks=True)
    for form in forms:
        objects = annotations.read([{"bbox": [2, 2, 10, 10], "category": 0, "segmentation": form}], 20, 30)
        assert torch.equal(objects.decoded_masks(20, 30)[0], torch.from_numpy(mask)), form
        assert objects.area.tolist() == [100]
    # What is no mask, or one of another image, is left out, and the rest is read.
    wrong = [None, [], [[]], [[1.0, 2.0]], [[1.0, 2.0, 3.0, 4.0]], [["a"] * 6], "polygon", {"counts": "x"}, 7]
    wrong += [{**packed, "size": [30, 20]}, {"counts": [7], "size": [20, 30]}, [[float("nan")] * 6]]
    stored = [{"bbox": [2, 2, 10, 10], "category": 0, "segmentation": form} for form in (*wrong, json.dumps(SQUARE))]
    objects = annotations.read(stored, 20, 30)
    assert objects.decoded_masks(20, 30).tolist() == [mask.tolist()]
    assert objects.reasons == {"without a usable mask": len(wrong)}
    with pytest.raises(ValueError, match="^objects_column_name: 'objects' has no segmentation"):
        Annotations(struct_of_lists(), masks=True)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="^id2label: objects.category names no classes"):
        Annotations(struct_of_lists(datasets.Value("int64")))
    with pytest.raises(ValueError, match="^bbox_format: must be one of coco, pascal_voc, yolo, got 'xy'"):
        Annotations(struct_of_lists(), box_format="xy")
    annotations = Annotations(struct_of_lists())
    for value, message in (
        (rows(classes=[0]), "has objects with 2 bbox, 1 category"),
        ("no objects", "holds no objects but 'no objects'"),
    ):
        with pytest.raises(BrokenImage, match=message):
            annotations.read(value, 50, 100)


def test_objects_that_cannot_be_used_are_left_out():
    """Each with its reason; what can be used is read as ever."""
    wrong = [[1, 2, 3], [1, 2, 3, float("inf")], [1, 2, float("nan"), 4], None, ["a"] * 4, [1, 2, 3, None]]
    stored = as_rows(rows([*wrong, *BOXES, BOXES[0], BOXES[0], BOXES[0]], [0] * 6 + [1, 0, 7, None, [0]]))
    objects = Annotations(struct_of_lists()).read(stored, 50, 100)
    assert objects.boxes.tolist() == CORNERS
    assert objects.classes.tolist() == [1, 0]
    assert objects.reasons == {"with a box that is not four finite numbers": 6, "of no known class": 3}
    # Sizes of other kinds than numbers are those of the boxes.
    sizes = Annotations(struct_of_lists()).read(rows(area=[float("nan"), None]), 50, 100).area
    assert sizes.tolist() == [200, 240]


def test_objects_turn_with_their_image():
    """Boxes around the pixels of masks stay that, in each of the eight ways that an image may be stored."""
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[3:8, 4:20] = 1
    fields = {**struct_of_lists(), "segmentation": datasets.List(datasets.Value("string"))}
    one = {"bbox": [4, 3, 16, 5], "category": 1, "segmentation": rle.encode(np.asfortranarray(mask))}
    objects = Annotations(fields, masks=True).read([one], 20, 30)
    seen = set()
    for stored in [(False, False, False), *ORIENTATIONS.values()]:
        after, whole = objects.turned(stored, 20, 30), turned(mask, stored)
        assert torch.equal(after.decoded_masks(*whole.shape)[0], torch.from_numpy(whole))
        x0, y0, x1, y1 = after.boxes[0].astype(int)
        assert whole[y0:y1, x0:x1].all()
        assert whole.sum() == (x1 - x0) * (y1 - y0) == 80
        seen.add((x0, y0, x1, y1))
    assert len(seen) == 8


def test_classes_of_other_data_are_told_apart_by_names():
    annotations = Annotations(struct_of_lists(datasets.ClassLabel(names=["dog", "bird", "cat"])))
    annotations.renumber(["cat", "dog"], [1, None, 0])
    objects = annotations.read(rows([BOXES[0]] * 3, [0, 1, 2]), 50, 100)
    assert objects.classes.tolist() == [1, 0]
    assert objects.reasons == {"of no known class": 1}


def evaluated(truth, found, size=(200, 200), classes=None, scores=None, crowd=None, masks=False):
    """An image with objects and detections, all as x, y, width, height, of class 0 if nothing else is said."""
    count, fields = len(truth), {**struct_of_lists(), "segmentation": datasets.List(datasets.Value("string"))}

    def polygon(x, y, w, h):
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]

    stored = rows(truth, classes or [0] * count, iscrowd=crowd or [0] * count)
    stored["segmentation"] = [polygon(*box) for box in truth]
    objects = Annotations(fields, masks=masks).read(stored, *size)
    boxes = torch.tensor(found, dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    detections = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)}
    detections["scores"] = torch.tensor(scores or [0.9] * len(boxes))
    if masks:
        filled = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(filled, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        detections["masks"] = filled
    return AveragePrecision.evaluated(objects, size, detections)


def measured(*images, masks=False):
    precision = AveragePrecision(["cat", "dog"], masks)
    precision.add(list(images))
    return precision.compute()


def test_average_precision_by_hand():
    # Two objects; a hit, a miss, a hit: precision 1 up to half of the recall (51 of COCO's 101 points), then 2/3.
    figures = measured(
        evaluated([[10, 10, 50, 50]], [[10, 10, 50, 50], [100, 100, 50, 50]], scores=[0.9, 0.8]),
        evaluated([[20, 20, 50, 50]], [[20, 20, 50, 50]], scores=[0.7]),
    )
    expected = (51 + 50 * 2 / 3) / 101
    for name in ("map", "map_50", "map_75", "map_medium", "map_class_cat"):
        assert figures[name] == pytest.approx(expected, abs=1e-9), name
    assert figures["mar_100"] == figures["mar_1"] == 1.0
    # There are no dogs, nothing small and nothing large.
    assert not {"map_class_dog", "map_small", "map_large", "mask_map"} & set(figures)


def test_overlap_crowds_and_classes_by_hand():
    # 50 x 50, moved by 10: overlap 40 * 50 of 60 * 50, 0.667: enough for four thresholds of ten.
    shifted = measured(evaluated([[10, 10, 50, 50]], [[20, 10, 50, 50]]))
    assert (shifted["map"], shifted["map_50"], shifted["map_75"]) == pytest.approx((0.4, 1.0, 0.0))
    # What lies in a crowd is not counted as wrong, and the crowd not as missed.
    crowded = [[10, 10, 50, 50], [100, 100, 80, 80]], [[10, 10, 50, 50], [110, 110, 20, 20]]
    assert measured(evaluated(*crowded, crowd=[0, 1], scores=[0.5, 0.9]))["map"] == pytest.approx(1.0)
    assert measured(evaluated(*crowded, scores=[0.5, 0.9]))["map"] == pytest.approx(51 * 0.5 / 101)
    # A dog that was found as a cat: cats perfect but for one false alarm below, dogs not found.
    both = measured(evaluated([[10, 10, 50, 50], [100, 100, 50, 50]], [[10, 10, 50, 50]], classes=[0, 1]))
    assert (both["map_class_cat"], both["map_class_dog"], both["map"]) == pytest.approx((1.0, 0.0, 0.5))
    assert measured(evaluated([[10, 10, 50, 50]], []))["map"] == 0.0


def test_masks_and_sizes_by_hand():
    # Sizes follow the area of the mask: 30 x 30 is small, 50 x 50 medium, 100 x 100 large.
    truth = [[0, 0, 30, 30], [40, 40, 50, 50], [95, 95, 100, 100]]
    figures = measured(evaluated(truth, [*truth[:2], [95, 95, 80, 100]], masks=True), masks=True)
    for prefix in ("", "mask_"):  # all masks fill their boxes
        assert figures[f"{prefix}map_small"] == pytest.approx(1.0)
        assert figures[f"{prefix}map_medium"] == pytest.approx(1.0)
        assert figures[f"{prefix}map_large"] == pytest.approx(0.7)  # IoU 0.8: seven thresholds
    halves = evaluated([[10, 10, 50, 50]], [[10, 10, 50, 50]], masks=True)
    half = np.zeros((200, 200), dtype=np.uint8)
    half[10:60, 10:40] = 1  # 0.6 of the object, in the right box
    halves["masks"] = [rle.encode(np.asfortranarray(half))]
    figures = measured(halves, masks=True)
    assert figures["map"] == pytest.approx(1.0)
    assert figures["mask_map"] == pytest.approx(0.3)
