"""All maps are looked through before training: the classes, what is ignored, what is left out; by the command line."""

import io
import json
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import run_finetune
from modeling_a2mim.arguments.segmentation import SegmentationArguments
from modeling_a2mim.data.splits import find_evaluation_split, load_evaluation_split
from modeling_a2mim.tasks.segmentation.data import read_maps
from modeling_a2mim.tasks.segmentation.maps import MeanIoU
from modeling_a2mim.tasks.segmentation.scan import FoundInMaps, choose_labels, count_values


pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32
COMMON = ["--task", "semantic-segmentation", "--architecture", "test_resnet", "--image_size", str(SIDE), "--use_cpu"]
COMMON += ["--head_channels", "4", "--auxiliary_weight", "0", "--max_steps", "1", "--eval_strategy", "no"]
COMMON += ["--per_device_train_batch_size", "2", "--disable_tqdm", "True", "--save_strategy", "no"]


def encoded(pixels, form="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(stream, form, **options)
    return {"bytes": stream.getvalue(), "path": None}


def halves(*values):
    """A map whose columns have these values, in equal parts."""
    return np.repeat(np.uint8(values), SIDE // len(values))[None].repeat(SIDE, 0)


def write(folder, train, validation=(), names=None):
    """Parquet files of images with these maps (arrays, or as stored), and their names beside them."""
    (folder / "data").mkdir(parents=True)
    kinds = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    generator = np.random.default_rng(0)
    for split, maps in (("train", train), ("validation", validation)):
        maps = [encoded(one) if isinstance(one, np.ndarray) else one for one in maps]
        images = [encoded(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in maps]
        if maps:
            rows = datasets.Dataset.from_dict({"image": images, "mask": maps}, features=kinds)
            rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    if names is not None:
        (folder / "id2label.json").write_text(json.dumps(names))
    return folder


def start(folder, *flags):
    out = folder.with_name(f"{folder.name}-out")
    argv = [*COMMON, "--dataset_name", str(folder), "--output_dir", str(out), *map(str, flags)]
    try:
        return run_finetune.main(argv)
    finally:
        assert flags or (out / "config.json").exists() or not out.exists()


BINARY = [halves(0, 255), halves(0, 0, 0, 255)]


def test_masks_of_0_and_255(tmp_path, caplog):
    """Two classes of 0 and 255: a model of one class is told from a good one."""
    folder = write(tmp_path, BINARY * 2, BINARY, {"0": "ground", "255": "defect"})
    with caplog.at_level(logging.INFO, "a2mim"):
        metrics = start(folder)
    assert {"eval_iou_ground", "eval_iou_defect"} <= set(metrics)
    # Of 2,048 pixels 1,280 are ground: a model of one class has no more than half of the IoU of that class.
    assert metrics["eval_mean_iou"] < 0.9
    if metrics["eval_iou_defect"] == 0:
        assert metrics["eval_mean_iou"] == pytest.approx(1280 / 2048 / 2)
    config = json.loads((folder.with_name(f"{folder.name}-out") / "config.json").read_text())
    assert config["id2label"] == {"0": "ground", "1": "defect"}
    assert "2 classes by the values in the maps: 0 ground, 255 defect" in caplog.text
    assert "training maps: 0% of their pixels are ignored (no value)" in caplog.text
    record = json.loads((folder.with_name(f"{folder.name}-out") / "training.json").read_text())
    assert record["labels"] == "by the values in the maps: 0 ground, 255 defect"
    assert "0 ground, 255 defect" in (folder.with_name(f"{folder.name}-out") / "README.md").read_text()
    # By hand: maps as they are read, and a prediction of ground everywhere.
    metric = MeanIoU(["ground", "defect"])
    truth = torch.tensor((BINARY[1] == 255).astype(int))
    assert metric.compute(predictions=[torch.zeros_like(truth)], references=[truth])["mean_iou"] == 0.375


ONE = (
    r"^labels_file: training maps hold one class, '{}' \(value 0 \({}% of the pixels\)\), and there is nothing to tell"
)


@pytest.mark.parametrize(
    ("train", "names", "flags", "message"),
    [
        (
            BINARY,
            ["ground", "defect"],
            [],
            ONE.format("ground", 62.5) + r".*ignored: 255 \(37.5%",
        ),
        (BINARY, None, [], ONE.format("class 0", 62.5) + ".*give --ignore_index none"),
        ([halves(0, 0)] * 2, ["a", "b"], [], ONE.format("a", 100) + ".*; nothing is ignored$"),
        (BINARY, {"0": "a", "255": "b"}, ["--ignore_index", "255"], "^ignore_index: 255 is the class 'b'"),
        (BINARY, {"0": "a", "255": "b"}, ["--ignore_index", "all"], "^ignore_index: expected a value of pixels"),
        (BINARY, ["a", "b"], ["--ignore_index", "none"], r"^labels_file: training maps hold values of .* 255 \(37.5%"),
        (BINARY, ["a", "b"], ["--ignore_index", "-100"], "^labels_file: training maps hold values of no class: 255"),
        ([halves(0, 1, 7, 8)], ["a", "b"], [], r"no class: 7 \(25% of the pixels\), 8 \(25%.*in 1 of 1 maps or more"),
        ([halves(255, 255)], None, [], "^labels_file: training maps hold no class, .* ignored: 255"),
        ([None, None], ["a", "b"], [], "^label_column_name: no training image has a map in 'mask' with a class"),
    ],
)
def test_what_is_wrong_is_said_before_training(tmp_path, train, names, flags, message):
    with pytest.raises(ValueError, match=message):
        start(write(tmp_path, train, (), names), "--do_eval", "False", *flags)
    assert not tmp_path.with_name(f"{tmp_path.name}-out").exists()


def test_classes_that_occur_late(tmp_path, caplog):
    late = [halves(0, 3)]
    with pytest.raises(ValueError, match=r"^labels_file: evaluation maps hold values of no class: 3 \(50% of the pix"):
        start(write(tmp_path / "named", [halves(0, 1)] * 2, late, ["a", "b"]))
    # Without names, both splits tell which there are; and 2 is none.
    caplog.set_level(logging.INFO, "a2mim")
    metrics = start(write(tmp_path / "found", [halves(0, 1)] * 2, late))
    assert metrics["eval_iou_class 3"] == 0
    assert "eval_iou_class 2" not in metrics
    assert "3 classes by the values in the maps: 0 class 0, 1 class 1, 3 class 3" in caplog.text
    assert "training maps: these classes do not occur: class 3" in caplog.text
    assert "evaluation maps: these classes do not occur: class 1" in caplog.text


def test_values_0_and_128_and_labels_that_are_not_there(tmp_path, caplog):
    """Two classes, not 129; images without a map, or with nothing but ignored pixels, are left out of both splits."""
    train = [halves(0, 128), None, halves(255, 255), halves(128, 0, 255, 255)]
    with caplog.at_level(logging.INFO, "a2mim"):
        metrics = start(write(tmp_path, train, [None, halves(0, 128)]))
    config = json.loads((tmp_path.with_name(f"{tmp_path.name}-out") / "config.json").read_text())
    assert config["id2label"] == {"0": "class 0", "1": "class 128"}
    assert config["loss_ignore_index"] == 255
    assert (
        "training maps: 2 of 4 images are left out (1 without a map, 1 ignored in all pixels), as row 1" in caplog.text
    )
    assert "evaluation maps: 1 of 2 images are left out (1 without a map)" in caplog.text
    assert "training maps: 50% of their pixels are ignored (255)" in caplog.text
    record = json.loads((tmp_path.with_name(f"{tmp_path.name}-out") / "training.json").read_text())
    assert (record["images"], record["evaluation"]["images"]) == (2, 1)
    assert metrics["eval_overall_accuracy"] == pytest.approx(0.5, abs=0.5)


def test_streams_are_looked_through_as_well(tmp_path, caplog):
    """Parquet files on this machine, with the same classes and images; `--streaming` changes nothing."""
    folder = write(tmp_path, [halves(0, 128), None, halves(128, 0)], [None])
    with caplog.at_level(logging.INFO, "a2mim"):
        start(folder, "--streaming")
    assert "2 classes by the values in the maps: 0 class 0, 128 class 128" in caplog.text
    assert "training maps: 1 of 3 images are left out (1 without a map)" in caplog.text
    assert "the split validation has no maps with classes: there is no evaluation" in caplog.text
    assert json.loads((folder.with_name(f"{folder.name}-out") / "training.json").read_text())["images"] == 2
    with pytest.raises(ValueError, match="^validation_split: no image for evaluation has a map in 'mask'"):
        start(folder, "--validation_split", "validation", "--overwrite_output_dir")


def test_jpeg_maps(tmp_path, caplog):
    noisy = np.uint8(np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 7 > 3) * 255
    maps = [encoded(noisy, "JPEG", quality=75)] * 2
    values = len(np.unique(np.asarray(Image.open(io.BytesIO(maps[0]["bytes"])))))
    assert values > 30
    told = "2 of 2 maps are JPEG files, whose compression changes values"
    with pytest.raises(ValueError, match=f"^label_column_name: {told}: there are {values - 1}, .*as PNG"):
        start(write(tmp_path / "found", maps), "--do_eval", "False")
    told = "2 of the training maps are JPEG files, whose compression changes values: save the original maps as PNG"
    with pytest.raises(ValueError, match=f"^labels_file: training maps hold values of no class: .*; {told}"):
        start(write(tmp_path / "named", maps, (), {"0": "a", "255": "b"}), "--do_eval", "False")
    # A JPEG that holds just two values is taken.
    exact = encoded(halves(0, 255), "JPEG", quality=100)
    labels = choose({"1": exact, "2": exact}, {0: "a", 255: "b"})
    assert labels.names == ["a", "b"]


def choose(maps, named=None, **options):
    found = FoundInMaps()
    for row, value in enumerate(maps.values()):
        found.add(row, value, {options.get("ignore_value")} - {None}, options.get("colours", False), 10**6)
    return choose_labels({"training maps": found}, named, **options)


def test_colour_maps(tmp_path):
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, :8] = (255, 0, 0)
    pixels[:, 8:10] = (0, 0, 255)
    named = {"#000000": "ground", "#ff0000": "car"}
    with pytest.raises(ValueError, match="^labels_file: training maps hold colours: #000000, #ff0000, #0000ff; name"):
        start(write(tmp_path / "found", [pixels] * 2, (), ["a", "b"]), "--do_eval", "False")
    with pytest.raises(ValueError, match="^labels_file: training maps hold values of no class: #0000ff"):
        start(write(tmp_path / "named", [pixels] * 2, (), named), "--do_eval", "False")
    metrics = start(write(tmp_path / "all", [pixels] * 2, [pixels], named), "--ignore_index", "#0000ff")
    assert {"eval_iou_ground", "eval_iou_car"} <= set(metrics)


def test_classes_of_a_segmenter_that_is_evaluated(tmp_path, caplog):
    """In its order, by names from a file, or by numbers; one class alone is said."""
    folder = write(tmp_path, [halves(0, 255)], [halves(0, 0)])
    args = SegmentationArguments(dataset_name=[str(folder)])
    maps = load_evaluation_split(args, find_evaluation_split(args))
    found = read_maps(args, None, maps, "mask", names=["ground", "defect"]).labels
    assert found.stored == {0: 0, 1: 1}
    assert "evaluation maps hold one class, 'ground' (value 0 (100% of the pixels))" in caplog.text
    found = read_maps(args, None, maps, "mask", names=["class 128", "class 0"]).labels
    assert found.stored == {128: 0, 0: 1}
    (folder / "id2label.json").write_text('{"0": "ground", "255": "defect"}')
    found = read_maps(args, None, maps, "mask", names=["sky", "defect", "ground"]).labels
    assert found.stored == {255: 1, 0: 2}
    with pytest.raises(ValueError, match="^labels_file: 'defect' is no class of the model"):
        read_maps(args, None, maps, "mask", names=["ground", "sky"])


def test_noise_of_png_maps_is_said(caplog):
    """What interpolation leaves between two values of classes."""
    blurred = np.uint8([[0] * 20_000 + [100] * 20_000 + list(range(1, 40))])
    labels = choose({"1": encoded(blurred)})
    assert len(labels.names) == 41
    assert "39 of the 41 values that are taken for classes are rare: if the maps were resized" in caplog.text


def test_broken_maps(tmp_path, caplog):
    stored = encoded(halves(0, 1))
    broken = {"bytes": stored["bytes"][:50], "path": None}
    flags = ["--do_eval", "False"]
    with pytest.raises(ValueError, match=r"^max_skipped_ratio: 1 of 2 training maps cannot be read, .* row 0 of"):
        start(write(tmp_path / "few", [broken, stored], (), ["a", "b"]), *flags)
    start(write(tmp_path / "more", [broken, stored, stored], (), ["a", "b"]), *flags, "--max_skipped_ratio", "0.5")
    assert "training maps: 1 of 3 images are left out (1 broken)" in caplog.text


def test_counts():
    generator = np.random.default_rng(0)
    for pixels in (generator.integers(0, 300, (9, 7)), generator.integers(-3, 2**20, (9, 7))):
        values, counts = np.unique(pixels, return_counts=True)
        assert count_values(pixels.astype(np.int32)) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    one, two, whole = FoundInMaps(), FoundInMaps(), FoundInMaps()
    for row, value in enumerate([encoded(halves(0, 1)), None, encoded(halves(1, 1)), encoded(halves(5, 255))]):
        (one if row < 2 else two).add(row, value, {255}, False, 10**6)
        whole.add(row, value, {255}, False, 10**6)
    one.merge(two)
    assert one == whole
    assert one.first == {0: 0, 1: 0, 5: 3, 255: 3}
