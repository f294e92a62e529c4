"""Semantic segmentation: maps are read and moved with their images, counted as by hand, and a run gives a folder whose
figures its users get."""

import io
import json
import logging
import os
import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import run_finetune
from benchmarks import shapes
from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.arguments.segmentation import (
    SegmentationArguments,
    SegmentationModelArguments,
    SegmentationTrainingArguments,
)
from modeling_a2mim.commands.parser import parse
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.splits import load_training_split
from modeling_a2mim.data.transforms import seeded
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.hub import check_files, uploaded_files
from modeling_a2mim.models.backbone import FeaturePyramid
from modeling_a2mim.recipes import FOLDER
from modeling_a2mim.tasks.segmentation import SegmentationTrainer
from modeling_a2mim.tasks.segmentation_data import SegmentationTransform, find_columns, read_maps
from modeling_a2mim.tasks.segmentation_labels import LabelValues
from modeling_a2mim.tasks.segmentation_maps import MeanIoU, colours, confusion, plot_predictions, resized_prediction
from modeling_a2mim.tasks.segmentation_model import build_segmenter, image_processor, without_package

from ..families import FAMILIES, family_config


pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = list(shapes.id2label().values())
SIZE = 40
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


def png(pixels, mode=None):
    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([255 - i // 3 for i in range(768)])
    image.save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """16 and 5 canvases of test images (the training part takes longer to decode), and their names."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "data").mkdir()
    rows = shapes.compose("test", 21, SIZE, channels=3, most=2)
    for split, part in (("train", range(16)), ("validation", range(16, 21))):
        rows.select(part).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    (folder / "id2label.json").write_text(json.dumps(shapes.id2label()))
    return folder


def segment(argv):
    return run_finetune.main(["--task", "semantic-segmentation", *COMMON, *argv])


def small(architecture="test_resnet", channels=3, size=SIZE, **kwargs):
    args = SegmentationModelArguments(
        architecture=architecture,
        image_size=[size],
        num_channels=channels,
        head_channels=8,
        auxiliary_channels=4,
        **kwargs,
    )
    torch.manual_seed(0)
    return build_segmenter(args, NAMES).eval()


# The metric


def test_mean_iou_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 2, 255]])
    prediction = torch.tensor([[0, 1, 1], [1, 0, 2]])
    counts = confusion(prediction, truth, 4, 255)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    metric = MeanIoU(["a", "b", "c", "nowhere"])
    result = metric.compute(predictions=[prediction.tolist()], references=[truth.tolist()])
    # a: 1 of (2 true + 2 predicted - 1); b: 2 of (2 + 3 - 2); c: 0 of 1. "nowhere" is in no mean.
    expected = {"iou_a": 1 / 3, "iou_b": 2 / 3, "iou_c": 0.0, "mean_iou": 1 / 3}
    expected |= {"mean_accuracy": (1 / 2 + 1 + 0) / 3, "overall_accuracy": 3 / 5}
    assert result == pytest.approx(expected)


def test_mean_iou_adds_up_and_starts_anew():
    generator = torch.Generator().manual_seed(0)
    truths = [torch.randint(0, 3, size, generator=generator) for size in ((5, 4), (2, 7), (3, 3))]
    predictions = [torch.randint(0, 3, truth.shape, generator=generator) for truth in truths]
    whole = [torch.cat([one.flatten() for one in maps])[None] for maps in (predictions, truths)]
    metric, other = MeanIoU(list("abc")), MeanIoU(list("abc"))
    expected = other.compute(predictions=[whole[0]], references=[whole[1]])
    for prediction, truth in zip(predictions, truths, strict=True):
        metric.add(prediction=prediction, reference=truth)
    assert metric.compute() == expected
    metric.add_counts(torch.stack([confusion(*pair, 3, 255) for pair in zip(predictions, truths, strict=True)]))
    assert metric.compute() == expected
    with pytest.raises(ValueError, match="^references: no pixel has a class, all are 255"):
        metric.compute()


def test_predictions_are_resized_as_users_do():
    logits = torch.randn(2, 5, 8, 9)
    processor = image_processor(small())
    outputs = type("Outputs", (), {"logits": logits})
    theirs = processor.post_process_semantic_segmentation(outputs, target_sizes=[(13, 6), (4, 20)])
    for one, size, expected in zip(logits, ((13, 6), (4, 20)), theirs, strict=True):
        assert torch.equal(resized_prediction(one, size), expected)


# Reading


def rows(**columns):
    kinds = {name: datasets.Image() for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def test_names_and_columns_that_are_found(data, tmp_path):
    args = SegmentationArguments(dataset_name=[str(data)])
    train = load_training_split(args)
    assert find_columns(args, train) == ("image", "annotation")
    assert read_maps(args, train, None, "annotation").labels.names == NAMES
    beside = SegmentationArguments(train_dir=[str(data / "data")])  # of which the file is
    assert read_maps(beside, train, None, "annotation").labels.names == NAMES
    maps = [png(np.uint8([[3, 255, 1]])), png(np.uint8([[0, 0, 1]]))]
    found = rows(annotation=maps, image=maps)  # images need not come first
    args = SegmentationArguments(dataset_name=[str(tmp_path)])
    assert find_columns(args, found) == ("image", "annotation")
    assert read_maps(args, found, None, "annotation").labels.names == ["class 0", "class 1", "class 3"]
    args = SegmentationArguments(dataset_name=[str(tmp_path)], do_reduce_labels=True)
    assert read_maps(args, found, None, "annotation").labels.names == ["class 0", "class 2"]
    with pytest.raises(ValueError, match="^label_column_name: the dataset has no column of maps"):
        find_columns(args, rows(image=maps, other=maps))
    with pytest.raises(ValueError, match="^image_column_name: no column of images beside 'mask'"):
        find_columns(args, rows(mask=maps))
    with pytest.raises(ValueError, match="^ignore_index: 2 is the class 'Trouser'"):
        read_maps(SegmentationArguments(dataset_name=[str(data)], ignore_index=2), train, None, "annotation")


# Augmentation


def transform(size=(24, 16), channels=1, names=16, train=True, **kwargs):
    config = A2MIMConfig.for_encoder(list(size), architecture="test_resnet", num_channels=channels)
    model = type("Model", (), {"backbone": type("Backbone", (), {"config": config})})
    return SegmentationTransform(image_processor(model), channels, LabelValues(NAMES[:1] * names), train, **kwargs)


def test_maps_move_with_their_images():
    """Each pixel's class is its grey value over 16, and 15 never occurs, which is where padding would be seen."""
    classes = np.repeat(np.arange(15), 4)[None].repeat(30, 0)
    image, label = png((classes * 16).astype(np.uint8)), png(classes.astype(np.uint8))
    augment, seen = transform(), set()
    for seed in range(30):
        with seeded(seed):
            sample = augment(image, label)
        pixels, labels = sample["pixel_values"], sample["labels"]
        assert pixels.shape == (1, 24, 16)
        assert labels.shape == (24, 16)
        assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
        known = labels != 255
        grey = (pixels[0] * 0.5 + 0.5) * 255 / 16
        # Interpolated pixels lie between those of their neighbours, so a class or less away.
        assert (grey - labels)[known].abs().max() < 1.01
        assert (pixels[0][~known].abs() < 0.01).all()  # padded with the mean
        order = labels[12][known[12]]
        seen.add((bool((~known).any()), bool(order[0] > order[-1])))
        with seeded(seed):
            assert torch.equal(augment(image, label)["pixel_values"], pixels)
    assert seen == {(padded, flipped) for padded in (True, False) for flipped in (True, False)}


def test_without_augmentation_nothing_changes():
    values = np.arange(24 * 16, dtype=np.uint8).reshape(24, 16) % 16
    plain = transform(resize_scale=[1.0, 1.0], horizontal_flip=False)
    sample = plain(png(values), png(values))
    assert sample["labels"].tolist() == values.tolist()
    assert torch.allclose(sample["pixel_values"][0], torch.tensor(values / 255 * 2 - 1).float(), atol=1e-6)


def test_evaluation_is_what_users_do():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (33, 50, 3), dtype=np.uint8)
    classes = generator.integers(0, 16, (33, 50), dtype=np.uint8)
    whole = transform(channels=3, train=False)
    sample = whole(png(pixels), png(classes))
    theirs = whole.processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(sample["pixel_values"], theirs)
    assert sample["pixel_values"].shape == (3, 24, 16)
    assert sample["maps"].tolist() == classes.tolist()
    assert sample["labels"].shape == (24, 16)
    grey = transform(train=False)
    made = grey(png(pixels[..., 0]), png(classes))["pixel_values"]
    assert torch.equal(made, grey.processor(Image.fromarray(pixels[..., 0]), return_tensors="pt")["pixel_values"][0])


def test_wrong_maps():
    image = png(np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(BrokenImage, match="its map of classes has 8 x 7 pixels, the image 8 x 8"):
        transform()(image, png(np.zeros((8, 7), dtype=np.uint8)))
    with pytest.raises(BrokenImage, match="its map of classes holds the value 16, which is no class"):
        transform()(image, png(np.full((8, 8), 16, dtype=np.uint8)))
    with pytest.raises(ValueError, match="^photometric_distortion: is for RGB images"):
        transform(photometric_distortion=True)
    with pytest.raises(ValueError, match="^resize_scale: "):
        SegmentationArguments(dataset_name=["x"], resize_scale=[2.0, 0.5])
    with pytest.raises(ValueError, match="^per_device_train_batch_size: must be at least 2"):
        SegmentationTrainingArguments(output_dir="x", per_device_train_batch_size=1)


def test_photometric_distortion_leaves_the_map():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    values = np.arange(24 * 16, dtype=np.uint8).reshape(24, 16) % 16
    options = {"channels": 3, "resize_scale": [1.0, 1.0], "horizontal_flip": False}
    same, other = transform(**options), transform(photometric_distortion=True, **options)
    with seeded(1):
        distorted = other(png(pixels), png(values))
    assert distorted["labels"].tolist() == values.tolist()
    assert not torch.equal(distorted["pixel_values"], same(png(pixels), png(values))["pixel_values"])


# Models


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_plain_models_are_the_same(architecture):
    model = small(architecture, channels=1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    twin = without_package(model)
    images = torch.randn(2, 1, 50, 70)
    with torch.no_grad():
        assert torch.equal(twin(images).logits, model(images).logits)
    assert twin.config.backbone_config.model_type == "timm_backbone"


@pytest.mark.parametrize(
    ("family", "reason"), [("vit", "feature pyramid"), ("swin", "it has no"), ("convnext", "it has no")]
)
def test_models_that_need_the_package(family, reason, caplog, tmp_path):
    arguments = {"size": 64, "model_args": json.dumps(FAMILIES[family].get("model_args", {}))}
    if family == "convnext":
        arguments["model_args"] = '{"depths": [1, 1, 1, 1]}'
    model = small(FAMILIES[family]["architecture"], **arguments)
    with caplog.at_level(logging.WARNING, "a2mim"):
        assert without_package(model) is None
    assert re.search(f"{reason}.*import modeling_a2mim", caplog.text)
    model.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        # Not bit for bit: safetensors hands out weights at addresses where kernels round differently.
        assert torch.allclose(again(images).logits, model(images).logits, atol=1e-5)


def test_feature_pyramid():
    pyramid = FeaturePyramid([4, 4, 6, 4])
    maps = pyramid(tuple(torch.randn(2, channels, 5, 6) for channels in (4, 4, 6, 4)))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 20, 24), (4, 10, 12), (6, 5, 6), (4, 3, 3)]
    with pytest.raises(ValueError, match="^out_indices: a feature pyramid is made of four maps, not of 2"):
        small("test_vit", size=64, out_indices=[2, 5])


def test_ignored_images_do_no_harm():
    """The mean over no pixels is NaN, but its gradient is zero."""
    model = small().train()
    labels = torch.full((2, SIZE, SIZE), 255)
    model(torch.randn(2, 3, SIZE, SIZE), labels=labels).loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert not any(grad.any() for grad in grads)


# Runs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    model = A2MIMForPreTraining(family_config("resnet", image_size=32))
    for parameter in model.parameters():
        parameter.data += 0.01
    return export_model(model, folder)


@pytest.fixture(scope="module")
def trained(data, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "segmenter"
    source = ["--model_name_or_path", str(encoder), "--dataset_name", str(data)]
    return out, segment([*source, "--num_train_epochs", "2", "--output_dir", str(out)])


def test_what_a_run_leaves(trained, data):
    out, metrics = trained
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training.json"}
    files |= {"loss_curve.png", "predictions.png"}
    assert set(uploaded_files(out)) == files
    assert set(uploaded_files(out, pictures_of_data=False)) == files - {"predictions.png"}
    check_files(out, sorted(files))
    shown = (out / "predictions.txt").read_text().splitlines()
    assert len(shown) > 1
    assert str(data) not in "".join(shown)
    record = json.loads((out / "training.json").read_text())
    assert record["task"] == "fine-tuning"
    assert record["steps"] == 8
    assert record["evaluation"]["mean_iou"] == metrics["eval_mean_iou"]
    card = (out / "README.md").read_text()
    assert f"| mean_iou | {metrics['eval_mean_iou']:.4f} |" in card
    assert "pipeline_tag: image-segmentation" in card
    assert "import modeling_a2mim" not in card
    assert "an encoder pre-trained by masked image modelling" in card
    assert str(data.parent) not in card


STRANGER = """
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


def test_strangers_get_the_figures(trained, data, tmp_path):
    """The code of the card, as printed, in a process without this package; and the metrics, from its predictions."""
    out, metrics = trained
    validation = datasets.load_dataset(str(data), split="validation")
    code = re.search(
        "```python\n(from transformers import AutoImageProcessor.*?)```", (out / "README.md").read_text(), re.S
    )[1]
    file = tmp_path / "image.png"
    validation[0]["image"].resize((55, 47)).save(file)
    script = STRANGER.format(code=code.replace('"ORG/NAME"', "folder"))
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


def test_a_frozen_encoder_is_not_trained():
    """Neither its weights nor its running statistics move, also not in a model that is in training mode."""
    model = small(freeze_encoder=True)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = torch.randn(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE, dtype=torch.long)
    model(pixel_values=images, labels=labels).loss.backward()
    moved = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert moved  # statistics of the head
    moved |= {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not [name for name in moved if name.startswith("backbone.")]


@pytest.mark.slow
def test_resume_is_exact(data, tmp_path):
    common = [
        "--architecture",
        "test_resnet",
        "--dataset_name",
        str(data),
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
        model_args, data_args, args = parse(*types, flags, "run_finetune.py", "semantic-segmentation")
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


def test_picture():
    truth = torch.tensor([[0, 1], [255, 2]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    prediction = torch.full((16, 16), 3)
    picture = plot_predictions([Image.new("RGB", (16, 16))], [truth], [prediction], list("abcde"))
    shown = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}
    palette = [tuple(round(255 * v) for v in colour) for colour in colours(5)]

    def close(colour):
        return any(max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= 1 for other in shown)

    assert [close(colour) for colour in palette] == [True] * 4 + [False]
    assert len(set(colours(150))) == 150
