"""Images with annotated objects, as the command line names them: their splits, classes and columns."""

import json
import logging

import datasets
import pytest
from PIL import Image

import run_finetune
from modeling_a2mim.arguments.detection import DetectionArguments
from modeling_a2mim.tasks.detection.data import CLIPPED, DROPPED
from modeling_a2mim.tasks.detection.images import annotated_samples, given_names, load_annotated
from modeling_a2mim.tasks.detection.scan import Sized

from .test_annotation_folders import coco, image, write
from .test_annotations import NAMES, as_rows, rows
from .test_task import SMALL


pytestmark = pytest.mark.usefixtures("one_thread")


COMMON = [*SMALL, "--architecture", "test_convnext", "--image_size", "32", "--use_cpu", "--disable_tqdm", "True"]
COMMON += ["--per_device_train_batch_size", "2", "--max_steps", "1", "--logging_steps", "1", "--save_strategy", "no"]
COMMON += ["--eval_strategy", "no", "--overwrite_output_dir"]


def start(source, out, *flags, task="object-detection"):
    argv = ["--task", task, *COMMON, *map(str, source), "--output_dir", str(out), *map(str, flags)]
    return run_finetune.main(argv)


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


def test_a_class_that_was_not_trained_on_is_named(folder, tmp_path, caplog):
    """By its name, as the number that is stored is that of another class elsewhere."""
    other = tmp_path / "data"
    image(other / "a.jpg")
    image(other / "b.jpg")
    write(other / "labels.json", coco(("Dog", "cat"), ["a.jpg", "b.jpg"]))
    load_annotated(DetectionArguments(train_dir=[str(folder / "train")], validation_dir=str(other)), masks=False)
    assert "evaluation data: 1 of 2 objects are left out: of no known class (Dog)" in caplog.text


def test_images_to_evaluate_on_alone(folder, tmp_path):
    run = tmp_path / "run"
    start(["--train_dir", folder / "train", "--validation_dir", folder / "val"], run)
    alone = ["--validation_dir", str(folder / "val"), "--model_name_or_path", str(run)]
    argv = ["--task", "object-detection", "--eval_only", *alone, "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    assert "eval_map" in run_finetune.main(argv)
    with pytest.raises(ValueError, match="^dataset_name: annotated images are needed; give --dataset_name or --tr"):
        start(["--validation_dir", folder / "val"], tmp_path / "other")


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


def test_a_stream_with_sizes(tmp_path):
    """Of parquet files whose rows tell the size of their image, as many on the Hub do."""
    values = {"image": [Image.new("L", (40, 30))] * 3, "width": [40] * 3, "height": [30] * 3}
    stored = datasets.Dataset.from_dict({**values, "objects": [as_rows(rows())] * 3})
    stored = stored.cast_column("image", datasets.Image())
    stored.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    args = DetectionArguments(dataset_name=[str(tmp_path)], streaming=True, id2label=json.dumps(NAMES))
    images = load_annotated(args, masks=False)
    source = annotated_samples(args, images.train, dict, 0, images.column).source
    for part in (source, source.take(2)):
        ((_, value),) = part.read([1])
        assert isinstance(value, Sized)
        assert (value.height, value.width) == (30, 40)


def test_given_names(tmp_path):
    (tmp_path / "names.json").write_text('{"7": "cat"}', encoding="utf-8-sig")
    assert given_names(None) is None
    assert given_names(' {"7": "cat"}') == given_names(str(tmp_path / "names.json")) == {"7": "cat"}
    (tmp_path / "other.json").write_text('{"7": "cat"}', encoding="utf-16")
    for wrong in ("names.json", str(tmp_path / "other.json"), "[1]", "{", "{}", '{"7": 1}'):
        with pytest.raises(ValueError, match="^id2label: expected a JSON object"):
            given_names(wrong)
