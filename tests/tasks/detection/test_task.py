"""Detection end to end: training from an export, what users load."""

import functools
import json
import re

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, HfArgumentParser, pipeline

import run_finetune
from benchmarks import shapes
from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.arguments.detection import DetectionArguments, DetectionModelArguments, DetectionTrainingArguments
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection
from modeling_a2mim.tasks.detection.data import DROPPED, Resize

from ...families import family_config
from ...processes import in_two_processes


SMALL = ["--fpn_channels", "16", "--box_channels", "32", "--rois_per_image", "8", "--proposals_per_image", "10"]
SMALL += ["--detections_per_image", "5"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes"), train=12, test=5, size=64)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    torch.manual_seed(5)
    model = A2MIMForPreTraining(family_config("convnext", num_channels=1))
    return export_model(model, tmp_path_factory.mktemp("encoder")), model


def parsed(*flags):
    parser = HfArgumentParser((DetectionModelArguments, DetectionArguments, DetectionTrainingArguments))
    return parser.parse_args_into_dataclasses([*SMALL, *map(str, flags)])


def start(source, folder, out, masks, *flags):
    common = ["--dataset_name", folder, "--output_dir", out, "--use_cpu", "--disable_tqdm", "True", "--max_steps", 2]
    common += ["--per_device_train_batch_size", 3, "--logging_steps", 1, "--save_strategy", "no"]
    task = "instance-segmentation" if masks else "object-detection"
    flags = [*SMALL, *source, *common, "--eval_strategy", "no", *flags]
    return run_finetune.main(["--task", task, *map(str, flags)])


@pytest.fixture(scope="module")
def trained(folder, export, tmp_path_factory):
    out = tmp_path_factory.mktemp("segmenter")
    return out, start(["--model_name_or_path", export[0], "--num_channels", 1], folder, out, True)


def test_training_measures_and_writes_everything(trained):
    out, metrics = trained
    assert {"eval_map", "eval_map_50", "eval_mask_map", "eval_mask_map_50", "train_loss"} <= set(metrics)
    assert all(0 <= value <= 1 for name, value in metrics.items() if "map" in name)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "predictions.png"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "loss_mask", "loss_objectness", DROPPED} <= set(log[0])
    terms = [value for name, value in log[0].items() if name.startswith("loss_")]
    assert log[0]["loss"] == pytest.approx(sum(terms), rel=1e-4)  # is rounded
    figure = Image.open(out / "predictions.png")
    assert figure.size == (4 * 322 + 2, 2 * 322 + 2)  # four images, each with its annotation, 320 px and frames
    assert len(figure.getcolors(1_000_000)) > 100
    assert (out / "predictions.txt").read_text().splitlines() == [f"row {row}" for row in range(4)]
    card = (out / "README.md").read_text()
    assert "from modeling_a2mim import A2MIMForObjectDetection" in card
    assert "instance-segmentation" in card


def test_what_users_load(trained, folder):
    out, _ = trained
    model, processor = A2MIMForObjectDetection.from_pretrained(out), AutoImageProcessor.from_pretrained(out)
    assert list(model.config.id2label.values()) == list(shapes.CLASSES)
    row = datasets.load_dataset(str(folder), split="test")[0]
    with torch.no_grad():
        outputs = model.eval()(**processor(row["image"], return_tensors="pt"))
    (found,) = model.post_process_object_detection(outputs, 0.0, [row["image"].size[::-1]])
    assert found["masks"].shape == (len(found["scores"]), 64, 64)


def test_the_code_in_the_card_runs(trained, capsys):
    import modeling_a2mim

    if not hasattr(modeling_a2mim, "A2MIMForObjectDetection"):
        pytest.fail("modeling_a2mim must export A2MIMForObjectDetection, as the card says")
    out, _ = trained
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    assert code.count("ORG/NAME") == 2
    exec(code.replace("ORG/NAME", str(out)), {"image": Image.new("L", (50, 40))})
    assert "torch.Size([" in capsys.readouterr().out


def test_the_pipeline_of_transformers(folder, tmp_path):
    config = A2MIMDetectorConfig.for_encoder(
        architecture="test_convnext", image_size=64, num_labels=2, fpn_channels=16, score_threshold=0.0
    )
    model = A2MIMForObjectDetection(config).eval()
    detect = pipeline("object-detection", model=model, image_processor=Resize((64, 64)).processor(config))
    found = detect(Image.new("RGB", (100, 60), "red"), threshold=0.0)
    assert found
    assert all(set(thing) == {"score", "label", "box"} and thing["label"] in ("LABEL_0", "LABEL_1") for thing in found)
    assert max(thing["box"]["xmax"] for thing in found) <= 100
    assert max(thing["box"]["ymax"] for thing in found) <= 60


def test_many_sizes_and_frozen_norms(folder, tmp_path):
    source = ["--architecture", "test_resnet", "--num_channels", 1, "--image_size", 64, "--batch_norm", "frozen"]
    sizes = ["--shortest_edge", 48, 64, "--longest_edge", 96, "--horizontal_flip", 0]
    metrics = start(source, folder, tmp_path, False, *sizes)
    assert "eval_map" in metrics
    assert "eval_mask_map" not in metrics
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {
        "shortest_edge": 64,
        "longest_edge": 96,
    }


@pytest.mark.ci
def test_resume_is_exact(folder, tmp_path):
    """Of a stream; the regions that a step learns from are drawn, too."""
    source = ["--architecture", "test_resnet", "--num_channels", 1, "--image_size", 64]
    common = ["--save_strategy", "steps", "--save_steps", 3, "--lr_scheduler_type", "constant", "--warmup_steps", 0]
    common += ["--do_eval", "False", "--streaming"]
    logs = {}
    for name, stops in {"whole": [6], "parts": [3, 6]}.items():
        for stop in stops:
            again = ["--resume_from_checkpoint", "last"] if stop != stops[0] else []
            start(source, folder, tmp_path / name, True, *common, "--max_steps", stop, *again)
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        logs[name] = [{k: v for k, v in line.items() if k.startswith("loss")} for line in log if "loss" in line]
    assert len(logs["whole"]) == 6
    assert logs["parts"] == logs["whole"]
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()


def two(rank, folder, out):
    torch.set_num_threads(1)
    common = ["--per_device_train_batch_size", 1, "--eval_strategy", "steps", "--eval_steps", 1, "--eval_on_start"]
    common += ["--per_device_eval_batch_size", 2, "--save_strategy", "best", "--max_steps", 1]
    source = ["--architecture", "test_convnext", "--num_channels", 1, "--image_size", 64, "--anchor_scale", 4]
    many = ["--proposals_per_image", 60, "--detections_per_image", 100]  # by chance, some are right
    start(source, folder, out, False, *common, *many)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(folder, tmp_path):
    """Five images, of which the second process gets one twice; both processes choose the best checkpoint."""
    in_two_processes(two, str(folder), str(tmp_path / "two"))
    two(0, folder, tmp_path / "one")
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")]
    found = [[{k: v for k, v in line.items() if "_ma" in k} for line in log if "eval_map" in line] for log in logs]
    assert found[0] == found[1]
    assert [line["eval_map"] > 0 for line in found[0]] == [True, True]  # before and after a step at a rate of 0


def test_a_frozen_encoder_stays_as_it_is(folder, tmp_path):
    """With its running statistics; pyramid and heads are trained."""
    source = ["--architecture", "test_resnet", "--num_channels", 1, "--image_size", 64, "--freeze_encoder"]
    after = []
    for steps in (1, 3):
        out = tmp_path / str(steps)
        start(source, folder, out, False, "--max_steps", steps, "--learning_rate", 0.01, "--warmup_steps", 0)
        after.append(load_file(out / "model.safetensors"))
    frozen = {name for name in after[0] if name.startswith("backbone.a2mim.")}
    assert {name for name, tensor in after[0].items() if not tensor.equal(after[1][name])} == set(after[0]) - frozen
    assert any("running_mean" in name for name in frozen)


def test_wrong_arguments(folder, tmp_path):
    vit = {"embed_dim": 32, "depth": 4, "num_heads": 1}
    base = ["--architecture", "vit_tiny_patch16_224", "--model_args", json.dumps(vit)]
    base += ["--num_channels", 1, "--image_size", 64]
    wrong = functools.partial(start, base, folder, tmp_path, False)
    for flags, message in (
        (["--shortest_edge", 64, 96], "^shortest_edge: vit_tiny_patch16_224 takes only images of"),
        (["--shortest_edge", 0], "^shortest_edge: must be positive"),
        (["--shortest_edge", 800, "--longest_edge", 600], "^longest_edge: 600 is less than"),
        (["--horizontal_flip", 2], r"^horizontal_flip: must be in \[0, 1\]"),
        (["--id2label", "names.json"], "^id2label: expected a JSON object or a file of one"),
        (["--id2label", "[1]"], "^id2label: expected a JSON object"),
        (
            ["--id2label", '{"0": "shoe"}'],
            "^id2label: 27 of 30 .*; there is no such class among shoe",
        ),
        (["--objects_column_name", "things"], "^objects_column_name: the dataset has no column 'things'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong(*flags)
    assert not (tmp_path / "config.json").exists()
