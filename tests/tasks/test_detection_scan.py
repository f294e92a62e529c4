"""All objects are looked at before training: what is left out is counted, splits are named; by the command line."""

import json
import logging
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

import run_finetune
from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.tasks.detection_annotations import Annotations
from modeling_a2mim.tasks.detection_data import CLIPPED, DROPPED
from modeling_a2mim.tasks.detection_scan import FoundObjects, Sized, look_at_objects, stored_classes, with_sizes

from .test_annotation_folders import coco, image, write
from .test_detection import SMALL, make
from .test_detection_annotations import BOXES, NAMES, as_rows, rows, struct_of_lists
from .test_segmentation_labels import encoded


pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = [*SMALL, "--architecture", "test_convnext", "--image_size", "32", "--use_cpu", "--disable_tqdm", "True"]
COMMON += ["--per_device_train_batch_size", "2", "--max_steps", "1", "--logging_steps", "1", "--save_strategy", "no"]
COMMON += ["--eval_strategy", "no", "--overwrite_output_dir"]


def start(source, out, *flags, task="object-detection"):
    argv = ["--task", task, *COMMON, *map(str, source), "--output_dir", str(out), *map(str, flags)]
    return run_finetune.main(argv)


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


KINDS = SimpleNamespace(
    features={"objects": {**struct_of_lists(), "segmentation": datasets.List(datasets.Value("string"))}}
)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("told", [(20, 40), (40, 20), (None, None)])
@pytest.mark.parametrize("number", [6, 8])
def test_boxes_turn_with_photographs(told, number, masks):
    """A bright rectangle and its box, in a JPEG that is shown turned: annotated as stored (20 x 40) or as shown."""
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[8:16, 24:40] = 255
    exif = Image.Exif()
    exif[274] = number
    polygon = {"bbox": [24.0, 8.0, 16.0, 8.0], "segmentation": [[24, 8, 40, 8, 40, 16, 24, 16]]}
    if told != (20, 40):
        shown = [[4, 24, 12, 40], [8, 0, 16, 16]][number == 8]
        x0, y0, x1, y1 = shown
        polygon = {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
    transform = make(KINDS, canvas=(40, 40), masks=masks, train=False)
    sample = transform(encoded(Image.fromarray(pixels), "JPEG", exif=exif), Sized([{**polygon, "category": 1}], *told))
    (box,) = sample["truth"]["objects"].boxes.astype(int)
    bright = np.asarray(sample["pixel_values"][0]) > 0
    assert bright.shape == (40, 20)
    inside = np.zeros_like(bright)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert (bright == inside).mean() > 0.98
    if masks:
        assert (sample["labels"]["masks"][0].numpy() == inside).all()


def test_objects_of_another_image_are_broken():
    with pytest.raises(ValueError, match="its objects are in pixels of an image of 100 x 80, it has 20 x 40"):
        make(KINDS, masks=False)(Image.new("L", (40, 20)), Sized(rows(), 100, 80))


# By the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In COCO's form: other ids and another order of the classes in the part for evaluation, which lacks a class."""
    folder = tmp_path_factory.mktemp("coco")
    for split, names, files in (
        ("train", ("cat", "dog", "bird"), [f"{i}.jpg" for i in range(6)]),
        ("val", ("dog", "cat"), ["a.jpg", "b.jpg"]),
    ):
        for name in files:
            image(folder / split / name)
        data = coco(names, files, first=3)
        for one in data["annotations"]:
            one["segmentation"] = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]
        write(folder / split / "_annotations.coco.json", data)
    return folder


def test_a_folder_in_coco_form(folder, tmp_path, caplog):
    """An empty and a 2-point polygon, a crowd and a box outside are left out, and the run goes on."""
    other = tmp_path / "data"
    for name in ("0.jpg", "1.jpg"):
        image(other / name)
    data = coco(files=["0.jpg", "1.jpg"])
    good = {**data["annotations"][0], "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    wrong = [{"segmentation": []}, {"segmentation": [[1, 1, 5, 5]]}, {"bbox": [90, 2, 5, 5]}, {"iscrowd": 1}]
    data["annotations"] = [
        good,
        {**good, "image_id": 101},
        {**good, "category_id": 11},
        {**good, "bbox": [2, 2, 90, 9]},
    ]
    data["annotations"] += [{**good, **change} for change in wrong]
    write(other / "labels.json", data)
    caplog.set_level(logging.INFO, "a2mim")
    metrics = start(
        ["--train_dir", other, "--validation_dir", folder / "val"], tmp_path / "out", task="instance-segmentation"
    )
    assert "eval_mask_map" in metrics
    assert "eval_map_class_cat" in metrics
    assert "training data: 2 of 8 objects are left out: without a usable mask" in caplog.text
    assert "training data: 1 of 8 objects are left out: outside the image" in caplog.text
    assert "training data: 1 boxes reach out of their image" in caplog.text
    assert "training data: 1 objects are crowds" in caplog.text
    (line, *_) = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    assert (line[DROPPED], line[CLIPPED]) == (3, 1)


def test_classes_are_told_apart_by_names(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    metrics = start(["--dataset_name", folder], tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert list(config["id2label"].values()) == ["cat", "dog", "bird"]
    assert {name for name in metrics if "class" in name} == {"eval_map_class_cat", "eval_map_class_dog"}
    for told in ("training data: 6 objects to use in 6 images", "3 classes: cat (2), dog (2), bird (2)"):
        assert told in caplog.text
    for told in ("evaluation data: 2 objects to use in 2 images", "3 classes: cat (1), dog (1), bird (0)"):
        assert told in caplog.text
    assert "evaluation data: these classes do not occur: bird" in caplog.text
    for flags, message in (
        (["--id2label", '{"0": "x"}'], "^id2label: the annotations in .* name their classes"),
        (["--bbox_format", "pascal_voc"], "^bbox_format: .* is in COCO's or YOLO's form"),
        (["--validation_split", "test"], "no split 'test'; there are train, validation"),
    ):
        with pytest.raises(ValueError, match=message):
            start(["--dataset_name", folder], tmp_path / "out", *flags)


def test_a_validation_set_without_objects(folder, tmp_path, caplog):
    """Is named: an error where the user asked for it, else there is no evaluation."""
    other = tmp_path / "data"
    image(other / "a.jpg")
    write(other / "empty.json", {**coco(files=["a.jpg"]), "annotations": []})
    named = ["--train_dir", folder / "train", "--validation_dir", other]
    with pytest.raises(ValueError, match="^objects_column_name: 'objects' of the evaluation data holds no objects"):
        start(named, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="^objects_column_name: 'objects' of the training data holds no objects"):
        start(["--train_dir", other, "--validation_dir", folder / "val"], tmp_path / "out")
