"""Segmenters and detectors as the start of others, and to be evaluated: through the command line, with the figures
that they had when they were trained."""

import json
import logging
import shutil

import datasets
import pytest
import torch
from safetensors.torch import load_file

import run_finetune
from benchmarks import shapes
from modeling_a2mim import A2MIMForObjectDetection
from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.models.heads import load_head, places_of
from modeling_a2mim.pretrained import open_pretrained
from modeling_a2mim.tasks.encoder import build_classifier


pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 48
NAMES = list(shapes.id2label().values())
FAST = ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no", "--eval_strategy", "no"]
FAST += ["--per_device_train_batch_size", "2", "--warmup_steps", "0", "--image_size", str(SIZE)]
STILL = ["--max_steps", "1", "--learning_rate", "0"]  # all but statistics stays as it was
UPERNET = ["--task", "semantic-segmentation", "--head_channels", "8", "--auxiliary_channels", "4"]
RCNN = ["--fpn_channels", "8", "--box_channels", "16", "--rois_per_image", "8", "--proposals_per_image", "20"]


def run(*argv) -> dict:
    return run_finetune.main([*map(str, argv)])


def weights(folder) -> dict:
    """What a step at a rate of 0 leaves as it was."""
    found = load_file(folder / "model.safetensors")
    return {name: value for name, value in found.items() if "running" not in name and "num_batches" not in name}


def differing(one, two) -> set[str]:
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    return {name for name, value in one.items() if not torch.equal(value, two[name])}


# Segmentation


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """6 and 4 canvases with their maps of classes, and the names of those."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "data").mkdir()
    rows = shapes.compose("test", 10, SIZE, channels=3, most=2)
    for split, part in (("train", range(6)), ("validation", range(6, 10))):
        rows.select(part).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    (folder / "id2label.json").write_text(json.dumps(shapes.id2label()))
    return folder


@pytest.fixture(scope="module")
def renamed(scenes, tmp_path_factory):
    """The same maps under other numbers: classes in the opposite order, one of them with another name."""
    folder = tmp_path_factory.mktemp("renamed")
    count = len(NAMES)

    def turn(row):
        import numpy as np
        from PIL import Image

        pixels = np.asarray(row["annotation"])
        return {"annotation": Image.fromarray(np.where(pixels == 255, 255, count - 1 - pixels).astype("uint8"))}

    (folder / "data").mkdir()
    for split in ("train", "validation"):
        rows = datasets.load_dataset(str(scenes), split=split)
        rows = rows.map(turn, features=rows.features)
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES[::-1]))))
    return folder


@pytest.fixture(scope="module", params=["test_efficientnet", "test_vit"])
def segmenter(request, scenes, tmp_path_factory):
    """One that loads without this package, whose file lacks the end of its encoder, and one with a pyramid."""
    out = tmp_path_factory.mktemp("segmenter")
    source = ["--architecture", request.param, "--dataset_name", scenes, "--output_dir", out]
    return out, run(*UPERNET, *FAST, *source, "--learning_rate", "1e-3")


@pytest.mark.ci
@pytest.mark.few(2)
def test_a_segmenter_is_evaluated(segmenter, scenes, renamed, tmp_path, caplog):
    out, trained = segmenter
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    source = ["--task", "semantic-segmentation", "--model_name_or_path", out, "--eval_only", "--use_cpu"]
    source += ["--disable_tqdm", "True", "--output_dir", tmp_path / "eval"]
    found = run(*source, "--dataset_name", scenes)
    figures = {name for name in trained if name.startswith(("eval_iou", "eval_mean", "eval_overall", "eval_loss"))}
    assert len(figures) > 4
    assert {name: found[name] for name in figures} == pytest.approx(
        {n: trained[n] for n in figures}, abs=1e-4, nan_ok=True
    )
    assert json.loads((tmp_path / "eval/eval_results.json").read_text())["eval_mean_iou"] == found["eval_mean_iou"]
    assert {path.name for path in (tmp_path / "eval").iterdir()} <= {
        "eval_results.json",
        "all_results.json",
        "evaluation.yaml",
    }
    assert before == {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    # Numbers are the data's business, names are what classes are told apart by.
    other = run(*source, "--dataset_name", renamed)
    assert {n: other[n] for n in figures} == pytest.approx({n: found[n] for n in figures}, abs=1e-6, nan_ok=True)


def test_a_segmenter_is_trained_further(segmenter, scenes, renamed, tmp_path, caplog):
    out, _ = segmenter
    common = ["--task", "semantic-segmentation", *FAST, "--model_name_or_path", out, *STILL]
    with caplog.at_level(logging.INFO, "a2mim"):
        run(*common, "--dataset_name", scenes, "--output_dir", tmp_path / "same")
    assert f"weights: the segmenter in {out} (with its head: 11 of its 11 classes are kept, 0 are new)" in caplog.text
    assert differing(out, tmp_path / "same") == set()
    assert json.loads((tmp_path / "same/training.json").read_text())["start"] == "a segmenter of 11 classes"
    assert "fine-tuned from a segmenter of 11 classes" in (tmp_path / "same/README.md").read_text()
    if "pyramid" in str(weights(out).keys()):
        return  # is the same again
    # Other classes: those of the same name are kept, wherever they are.
    data = tmp_path / "data"
    shutil.copytree(renamed, data)
    (data / "id2label.json").write_text(json.dumps(dict(enumerate(["hat", *NAMES[::-1][1:]]))))
    with caplog.at_level(logging.INFO, "a2mim"):
        run(*common, "--dataset_name", data, "--output_dir", tmp_path / "other")
    assert "(with its head: 10 of its 11 classes are kept, 1 are new)" in caplog.text
    changed = differing(out, tmp_path / "other")
    assert changed == {
        f"{head}.classifier.{kind}" for head in ("decode_head", "auxiliary_head") for kind in ("weight", "bias")
    }
    one, two = (
        weights(out)["decode_head.classifier.weight"],
        weights(tmp_path / "other")["decode_head.classifier.weight"],
    )
    assert torch.equal(two[1:], one.flip(0)[1:])
    assert not torch.equal(two[0], one[-1])


def test_a_classifier_from_a_segmenter(segmenter, tmp_path):
    """Its encoder, if the file has all of that."""
    out, _ = segmenter
    start = open_pretrained(str(out))
    arguments = ClassifierArguments(model_name_or_path=str(out))
    if start.config.architecture == "test_efficientnet":
        with pytest.raises(ValueError, match="^model_name_or_path: weights missing or left over: .*conv_head"):
            build_classifier(arguments, ["a", "b"])
        with pytest.raises(ValueError, match="its encoder lacks weights: .*conv_head"):
            load_model(str(out))
        return
    model, _ = build_classifier(arguments, ["a", "b"])
    own = model.a2mim.encoder.state_dict()
    stored = start.encoder_weights()
    assert len(stored) > 50
    named = load_model(str(out))
    assert all(torch.equal(named.model.encoder.state_dict()[name], value) for name, value in stored.items())
    assert all(torch.equal(own[name], value) for name, value in stored.items())


def test_flags_that_contradict_a_segmenter(segmenter, scenes, tmp_path):
    out, _ = segmenter
    source = ["--task", "semantic-segmentation", *FAST, "--model_name_or_path", out, "--dataset_name", scenes]
    source += ["--output_dir", tmp_path / "out"]
    for flags, message in (
        (["--head_channels", 16], "^head_channels: the segmenter in .* has 8, not 16; leave --head_channels out"),
        (["--auxiliary_channels", 8], "^auxiliary_channels: the segmenter in .* has 4, not 8"),
        (["--out_indices", 1, 2, 3], r"^out_indices: the segmenter in .* has \[.*\], not \[1, 2, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*source, *flags)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_evaluated(segmenter, scenes, tmp_path):
    out, _ = segmenter
    base = ["--eval_only", "--use_cpu", "--output_dir", tmp_path / "out"]
    with pytest.raises(
        ValueError, match="^model_name_or_path: --eval_only needs a model of this task .*a segmenter of"
    ):
        run("--task", "object-detection", "--model_name_or_path", out, "--dataset_name", scenes, *base)
    task = ["--task", "semantic-segmentation", *base]
    with pytest.raises(ValueError, match="^model_name_or_path: --eval_only needs a model of this task"):
        run(*task, "--architecture", "test_resnet", "--dataset_name", scenes)
    with pytest.raises(ValueError, match="^validation_dir: there are no images to evaluate on"):
        run(*task, "--model_name_or_path", out, "--train_dir", scenes / "data")
    (tmp_path / "names.json").write_text(json.dumps(["hat", *NAMES[1:]]))
    with pytest.raises(ValueError, match="^labels_file: 'hat' is no class of the model, which knows"):
        run(*task, "--model_name_or_path", out, "--dataset_name", scenes, "--labels_file", tmp_path / "names.json")
    assert not (tmp_path / "out").exists()


# Detection


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("objects"), train=6, test=4, size=64)


@pytest.fixture(scope="module")
def detector(objects, tmp_path_factory):
    out = tmp_path_factory.mktemp("detector")
    source = ["--architecture", "test_convnext", "--num_channels", 1, "--dataset_name", objects, "--output_dir", out]
    found = run("--task", "instance-segmentation", *FAST, *RCNN, *source, "--image_size", 64, "--anchor_scale", 4)
    return out, found


@pytest.mark.ci
@pytest.mark.few(1)
def test_a_detector_is_evaluated(detector, objects, tmp_path):
    out, trained = detector
    source = ["--model_name_or_path", out, "--dataset_name", objects, "--eval_only", "--use_cpu"]
    source += ["--disable_tqdm", "True", "--output_dir", tmp_path / "eval"]
    found = run("--task", "instance-segmentation", *source)
    figures = {name for name in trained if name.startswith("eval_ma") or name.startswith("eval_mask_ma")}
    assert len(figures) >= 24
    assert {n: found[n] for n in figures} == pytest.approx({n: trained[n] for n in figures}, abs=1e-6, nan_ok=True)
    boxes = run("--task", "object-detection", *source)
    assert boxes["eval_map"] == pytest.approx(found["eval_map"], abs=1e-6)
    assert "eval_mask_map" not in boxes


@pytest.mark.ci
def test_a_detector_is_trained_further(detector, objects, tmp_path, caplog):
    out, _ = detector
    common = [*FAST[:-2], "--model_name_or_path", out, "--dataset_name", objects, *STILL]
    with caplog.at_level(logging.INFO, "a2mim"):
        run("--task", "instance-segmentation", *common, "--output_dir", tmp_path / "same")
    assert f"weights: the instance segmenter in {out} (with its head: 10 of its 10 classes are kept" in caplog.text
    assert differing(out, tmp_path / "same") == set()
    assert A2MIMForObjectDetection.from_pretrained(tmp_path / "same").config.anchor_scale == 4
    with caplog.at_level(logging.INFO, "a2mim"):
        run("--task", "object-detection", *common, "--output_dir", tmp_path / "boxes")
    assert "it predicts masks, which are left out" in caplog.text
    kept, boxes = weights(out), weights(tmp_path / "boxes")
    assert not any(".mask_" in name for name in boxes)
    assert all(torch.equal(kept[name], value) for name, value in boxes.items())
    with pytest.raises(ValueError, match=r"^model_name_or_path: --eval_only needs .* \(instance segmenter\)"):
        run(
            "--task",
            "instance-segmentation",
            "--eval_only",
            *common,
            "--output_dir",
            tmp_path / "x",
            "--model_name_or_path",
            tmp_path / "boxes",
        )
    with pytest.raises(ValueError, match="^fpn_channels: the detector in .* has 8, not 16"):
        run(
            "--task",
            "object-detection",
            *common,
            "--output_dir",
            tmp_path / "x",
            "--model_name_or_path",
            tmp_path / "boxes",
            "--fpn_channels",
            16,
        )


@pytest.mark.ci
def test_rows_of_classes(detector):
    """Each class has one row of scores and four of boxes, after those of the background."""
    start = open_pretrained(str(detector[0]))
    names = [start.names[3], "boat", start.names[0]]
    predictor = torch.nn.ModuleDict({"cls_score": torch.nn.Linear(16, 4), "bbox_pred": torch.nn.Linear(16, 16)})
    new = predictor["cls_score"].weight.detach().clone()
    load_head(predictor, start, "heads.roi_heads.box_predictor.", ["cls_score", "bbox_pred"], names, first=1)
    scores, boxes = (start.weights[f"heads.roi_heads.box_predictor.{n}.weight"] for n in ("cls_score", "bbox_pred"))
    rows = [0, 4, None, 1]
    for i, row in enumerate(rows):
        assert torch.equal(predictor["cls_score"].weight[i], new[i] if row is None else scores[row])
        if row is not None:
            assert torch.equal(predictor["bbox_pred"].weight[4 * i : 4 * i + 4], boxes[4 * row : 4 * row + 4])
    assert places_of([start.names[3], start.names[0]], start) == [3, 0]
    with pytest.raises(ValueError, match="do not fit: .*other"):
        load_head(torch.nn.ModuleDict({"other": torch.nn.Linear(1, 1)}), start, "heads.rpn.")
