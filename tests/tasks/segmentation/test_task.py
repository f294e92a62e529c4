"""Semantic segmentation: a run gives a folder whose figures its users get."""

import json
import os
import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import run_finetune
from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.arguments.segmentation import (
    SegmentationArguments,
    SegmentationModelArguments,
    SegmentationTrainingArguments,
)
from modeling_a2mim.commands.parser import parse
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.hub import check_files, uploaded_files
from modeling_a2mim.recipes import FOLDER
from modeling_a2mim.tasks.segmentation.maps import MeanIoU
from modeling_a2mim.tasks.segmentation.model import build_segmenter, image_processor
from modeling_a2mim.tasks.segmentation.task import SegmentationTrainer

from ...families import family_config
from .test_model import NAMES, SIZE, small


pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = ["--image_size", str(SIZE), "--head_channels", "8", "--auxiliary_channels", "4", "--use_cpu"]
COMMON += [
    "--per_device_train_batch_size",
    "4",
    "--learning_rate",
    "1e-3",
    "--disable_tqdm",
    "True",
    "--logging_steps",
    "1",
]
COMMON += ["--save_strategy", "no", "--eval_strategy", "no", "--per_device_eval_batch_size", "3"]


def segment(argv):
    return run_finetune.main(["--task", "semantic-segmentation", *COMMON, *argv])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    model = A2MIMForPreTraining(family_config("resnet", image_size=32))
    for parameter in model.parameters():
        parameter.data += 0.01
    return export_model(model, folder)


@pytest.fixture(scope="module")
def trained(maps, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "segmenter"
    source = ["--model_name_or_path", str(encoder), "--dataset_name", str(maps)]
    return out, segment([*source, "--num_train_epochs", "2", "--output_dir", str(out)])


def test_what_a_run_leaves(trained, maps):
    out, metrics = trained
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training.json"}
    files |= {"loss_curve.png", "predictions.png"}
    assert set(uploaded_files(out)) == files
    assert set(uploaded_files(out, pictures_of_data=False)) == files - {"predictions.png"}
    check_files(out, sorted(files))
    shown = (out / "predictions.txt").read_text().splitlines()
    assert len(shown) > 1
    assert str(maps) not in "".join(shown)
    record = json.loads((out / "training.json").read_text())
    assert record["task"] == "fine-tuning"
    assert record["steps"] == 8
    assert record["evaluation"]["mean_iou"] == metrics["eval_mean_iou"]
    card = (out / "README.md").read_text()
    assert f"| mean_iou | {metrics['eval_mean_iou']:.4f} |" in card
    assert "pipeline_tag: image-segmentation" in card
    assert "import modeling_a2mim" not in card
    assert "an encoder pre-trained by masked image modelling" in card
    assert str(maps.parent) not in card


USER = """
import sys
sys.modules["modeling_a2mim"] = None
import json, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, file = sys.argv[1:]
image = Image.open(file)
{code}
answers = pipeline("image-segmentation", model=folder)(file)
found = {{answer["label"]: answer["mask"].histogram()[255] for answer in answers}}
print(json.dumps({{"classes": classes.tolist(), "pipeline": found}}))
"""


@pytest.mark.slow
def test_the_figures_without_this_package(trained, maps, tmp_path):
    """The code of the card, as printed, in a process without this package; and the metrics, from its predictions."""
    out, metrics = trained
    validation = datasets.load_dataset(str(maps), split="validation")
    code = re.search(
        "```python\n(from transformers import AutoImageProcessor.*?)```", (out / "README.md").read_text(), re.S
    )[1]
    file = tmp_path / "image.png"
    validation[0]["image"].resize((55, 47)).save(file)
    script = USER.format(code=code.replace('"ORG/NAME"', "folder"))
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(out), str(file)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    classes = torch.tensor(told["classes"])
    assert classes.shape == (47, 55)
    counts = {NAMES[i]: int((classes == i).sum()) for i in classes.unique()}
    assert told["pipeline"] == counts

    processor = AutoImageProcessor.from_pretrained(out)
    model = AutoModelForSemanticSegmentation.from_pretrained(out)
    metric = MeanIoU(NAMES)
    for row in validation:
        with torch.no_grad():
            outputs = model(**processor(row["image"], return_tensors="pt"))
        found = processor.post_process_semantic_segmentation(outputs, target_sizes=[(SIZE, SIZE)])
        metric.add(prediction=found[0], reference=np.asarray(row["annotation"]))
    theirs = metric.compute()
    # A pixel or two of 8,000 may fall the other way: other batches and other addresses round differently.
    assert theirs["mean_iou"] == pytest.approx(metrics["eval_mean_iou"], abs=1e-3)
    assert theirs["overall_accuracy"] == pytest.approx(metrics["eval_overall_accuracy"], abs=1e-3)


def test_weights_are_the_pretrained_ones(encoder, tmp_path):
    args = SegmentationModelArguments(model_name_or_path=str(encoder), image_size=[SIZE], head_channels=8)
    found = build_segmenter(args, NAMES).backbone.a2mim.encoder.state_dict()
    kept = A2MIMForPreTraining.from_pretrained(encoder, subfolder="pretraining").a2mim.encoder.state_dict()
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)


@pytest.mark.slow
def test_resume_is_exact(maps, tmp_path):
    common = [
        "--architecture",
        "test_resnet",
        "--dataset_name",
        str(maps),
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
    ]
    common += [
        "--lr_scheduler_type",
        "constant",
        "--warmup_steps",
        "0",
        "--max_eval_samples",
        "2",
        "--logging_steps",
        "2",
    ]
    for name in ("whole", "parts"):
        steps = ["6"] if name == "whole" else ["3", "6"]
        for step in steps:
            again = ["--resume_from_checkpoint", "last"] if step != steps[0] else []
            segment([*common, "--max_steps", step, "--output_dir", str(tmp_path / name), *again])
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()


def test_accumulated_gradients_are_means(tmp_path):
    """UperNet's forward takes any keyword, from which Trainer would conclude that its loss is a sum."""
    model = small()
    args = SegmentationTrainingArguments(
        str(tmp_path), use_cpu=True, gradient_accumulation_steps=2, eval_strategy="no"
    )
    trainer = SegmentationTrainer(
        model=model, args=args, processing_class=image_processor(model), names=NAMES, ignore_index=255
    )
    batch = {"pixel_values": torch.randn(2, 3, SIZE, SIZE), "labels": torch.randint(0, 11, (2, SIZE, SIZE))}
    trainer.current_gradient_accumulation_steps = 2
    half = trainer.training_step(model, dict(batch), num_items_in_batch=None)
    with torch.no_grad():
        assert half.item() == pytest.approx(model(**batch).loss.item() / 2, rel=1e-5)


def test_recipes_parse(tmp_path):
    types = (SegmentationModelArguments, SegmentationArguments, SegmentationTrainingArguments)
    for name in ("ade20k_upernet_r50", "ade20k_upernet_vit"):
        recipe = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        flags = ["--recipe", name, "--dataset_name", "x", "--output_dir", str(tmp_path / name), "--use_cpu"]
        flags += ["--eval_strategy", "no"]
        model_args, data_args, args = parse(types, flags, "run_finetune.py", "semantic-segmentation")[:3]
        assert data_args.do_reduce_labels
        assert args.max_steps == 160_000
        assert args.learning_rate == recipe["arguments"]["learning_rate"]  # the batch is the recipe's
        assert args.step_batch_size == 16
        model_args.architecture = "test_resnet" if "r50" in name else "test_vit"
        model_args.sync_batch_norm, model_args.image_size, model_args.head_channels = False, [64], 8
        model = build_segmenter(model_args, NAMES)
        trainer = SegmentationTrainer(
            model=model, args=args, processing_class=image_processor(model), names=NAMES, ignore_index=255
        )
        trainer.create_optimizer_and_scheduler(args.max_steps)
        kind = torch.optim.SGD if "r50" in name else torch.optim.AdamW
        assert isinstance(getattr(trainer.optimizer, "optimizer", trainer.optimizer), kind)
        if kind is torch.optim.SGD:
            assert trainer.optimizer.param_groups[0]["momentum"] == 0.9
        rates = {round(group["initial_lr"], 12) for group in trainer.optimizer.param_groups}
        assert (len(rates) > 3) == (name == "ade20k_upernet_vit")  # layer-wise decay
        assert max(rates) == pytest.approx(args.learning_rate)
