"""Recipes: all of them load, make the optimiser and the schedule that they say, and train."""

import math

import pytest
import yaml

import run_finetune
import run_pretraining
from benchmarks import shapes
from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.arguments.training import FineTuningArguments
from modeling_a2mim.commands.parser import parse
from modeling_a2mim.recipes import FOLDER, as_flags, load_recipe, recipe_names
from modeling_a2mim.tasks.classification.trainer import FineTuningTrainer
from modeling_a2mim.tasks.encoder import build_classifier

from ..training.test_optimization import convnext_layer, vit_layer


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
FAST = ["--use_cpu", "--disable_tqdm", "True", "--num_channels", "1", "--save_strategy", "no"]
FAST += ["--per_device_train_batch_size", "4"]


def recipes(script, task=None):
    found = {name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in recipe_names()}
    return [name for name, recipe in found.items() if (recipe["script"], recipe.get("task")) == (script, task)]


def test_every_recipe_says_what_it_is():
    names = recipe_names()
    assert {"rsb_a2", "rsb_a3", "vit_finetune", "convnext_finetune", "linear_probe", "knn"} <= set(names)
    for name in names:
        recipe = load_recipe(name, yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["script"])
        assert all(isinstance(recipe[key], str) for key in ("description", "source", "expected")), name
        assert recipe["arguments"], name


# Two steps of each on a small encoder. The batch of a recipe would be hundreds of small ones.


@pytest.mark.few(4)
@pytest.mark.parametrize("name", recipes("run_pretraining.py"))
def test_two_steps_of_pretraining(tmp_path, name):
    small = ["--architecture", "test_vit" if "vit" in name else "test_convnext", "--image_size", "32"]
    if name.startswith("swin"):
        args = '{"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}'
        small = ["--image_size", "64", "--model_args", args]
    small += ["--mask_patch_size", "16" if "vit" in name or name.startswith("swin") else "8"]
    small += [] if "vit" in name or name.startswith("swin") else ["--mask_site", "-3"]
    steps = ["--max_steps", "2", "--total_train_batch_size", "8", "--max_train_samples", "16"]
    metrics = run_pretraining.main(
        ["--recipe", name, *FAST, *small, *steps, "--output_dir", str(tmp_path / "out"), "--logging_steps", "1"]
    )
    assert 0 < metrics["train_loss"] < 10


@pytest.mark.few(3)
@pytest.mark.parametrize("name", recipes("run_finetune.py", "image-classification"))
def test_two_steps_of_fine_tuning(tmp_path, name):
    small = ["--architecture", "test_vit" if name == "vit_finetune" else "test_convnext", "--image_size", "32"]
    small += ["--image_size", "64", "--train_image_size", "32"] if name == "rsb_a3" else []
    steps = [
        "--max_steps",
        "2",
        "--total_train_batch_size",
        "8",
        "--labels_per_class",
        "2",
        "--max_eval_samples",
        "20",
    ]
    metrics = run_finetune.main(["--recipe", name, *FAST, *small, *steps, "--output_dir", str(tmp_path / "out")])
    assert any(0 <= value <= 1 for key, value in metrics.items() if key.endswith("accuracy"))


@pytest.fixture(scope="module")
def canvases(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("canvases"), train=8, test=4, size=64)


DENSE = {
    "ade20k_upernet_r50": ["--architecture", "test_resnet", "--photometric_distortion", "False"],
    "ade20k_upernet_vit": ["--architecture", "test_vit", "--photometric_distortion", "False"],
    "coco_mask_rcnn_r50": ["--architecture", "test_resnet", "--shortest_edge", "64", "--longest_edge", "64"],
}
SMALL_HEADS = ["--head_channels", "8", "--auxiliary_channels", "8", "--do_reduce_labels", "False"]
SMALL_DETECTOR = [
    "--fpn_channels",
    "8",
    "--box_channels",
    "16",
    "--rois_per_image",
    "8",
    "--proposals_per_image",
    "10",
]


@pytest.mark.ci
@pytest.mark.few(2)
@pytest.mark.parametrize("name", DENSE)
def test_two_steps_of_segmentation_and_detection(tmp_path, canvases, name):
    steps = ["--max_steps", "2", "--total_train_batch_size", "4", "--per_device_train_batch_size", "2"]
    heads = SMALL_DETECTOR if name.startswith("coco") else SMALL_HEADS
    argv = ["--recipe", name, *FAST, *DENSE[name], "--image_size", "64", *heads, *steps, "--warmup_steps", "1"]
    metrics = run_finetune.main([*argv, "--dataset_name", str(canvases), "--output_dir", str(tmp_path / "out")])
    assert 0 <= metrics["eval_mask_map" if name.startswith("coco") else "eval_mean_iou"] <= 1
    assert f"| recipe | {name} |" in (tmp_path / "out" / "README.md").read_text()


def test_every_recipe_is_tried():
    tried = {*recipes("run_pretraining.py"), *recipes("run_finetune.py", "image-classification"), *DENSE}
    assert tried == set(recipe_names())


# What is made of them, parameter by parameter and step by step.


def prepared(tmp_path, recipe, architecture, *more):
    """The trainer of a recipe for a network of full size, and how it was asked for."""
    argv = ["--recipe", recipe, "--architecture", architecture, "--output_dir", str(tmp_path), "--use_cpu", *more]
    argv += ["--eval_strategy", "no"]
    kinds = (ClassifierArguments, ClassificationArguments, FineTuningArguments)
    model_args, data_args, args = parse(kinds, argv, "run_finetune.py", "image-classification")[:3]
    model, _ = build_classifier(model_args, [str(i) for i in range(10)])
    if model_args.linear_probe:
        model.freeze_encoder()
    return FineTuningTrainer(model=model, args=args), data_args


def groups_of(trainer):
    names = {id(p): n.removeprefix("a2mim.encoder.") for n, p in trainer.model.named_parameters()}
    optimizer = trainer.create_optimizer()
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
    assert len(dict(found)) == len(found) == sum(p.requires_grad for p in trainer.model.parameters())
    return optimizer, dict(found)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("recipe", "architecture", "optimizer", "rate", "decay", "scale"),
    [
        ("rsb_a3", "resnet50", "Lamb", 8e-3, 0.02, lambda name: 1.0),
        ("rsb_a2", "resnet50", "Lamb", 5e-3, 0.02, lambda name: 1.0),
        ("vit_finetune", "vit_small_patch16_224", "AdamW", 1e-2, 0.05, lambda name: 0.65 ** (13 - vit_layer(name))),
        (
            "convnext_finetune",
            "convnext_small",
            "AdamW",
            4e-4,
            0.01,
            lambda name: 0.7 ** (13 * (37 - convnext_layer(name)) / 37),
        ),
    ],
)
def test_groups_of_full_networks(tmp_path, recipe, architecture, optimizer, rate, decay, scale):
    trainer, _ = prepared(tmp_path, recipe, architecture, "--per_device_train_batch_size", "64")
    made, found = groups_of(trainer)
    assert type(made).__name__ == optimizer
    shapes = {n.removeprefix("a2mim.encoder."): p.ndim for n, p in trainer.model.named_parameters()}
    assert set(found) == set(shapes)
    for name, (lr, weight_decay) in found.items():
        free = shapes[name] <= 1 or name in ("pos_embed", "cls_token")
        assert weight_decay == (0.0 if free else decay), name
        assert lr == pytest.approx(rate * scale(name), rel=1e-9), name
    if optimizer == "AdamW":
        assert {(tuple(g["betas"]), g["eps"]) for g in made.param_groups} == {((0.9, 0.999), 1e-8)}


def test_the_rest_of_the_settings(tmp_path):
    """As the table in the paper's release has them."""
    trainer, data = prepared(tmp_path, "rsb_a3", "resnet50", "--per_device_train_batch_size", "64")
    args = trainer.args
    assert (args.num_train_epochs, args.step_batch_size, args.gradient_accumulation_steps) == (100, 2048, 32)
    assert (data.train_image_size, data.auto_augment, data.aug_repeats) == ([160], "rand-m6-mstd0.5-inc1", 1)
    assert (args.mixup, args.cutmix, args.bce_loss, args.model_ema_decay) == (0.1, 1.0, True, None)
    assert trainer.model.config.crop_pct == 0.95
    trainer, data = prepared(tmp_path, "rsb_a2", "resnet18", "--per_device_train_batch_size", "64")
    args = trainer.args
    assert (args.num_train_epochs, args.step_batch_size, data.aug_repeats) == (300, 2048, 3)
    assert (args.mixup, args.cutmix, args.bce_loss, args.model_ema_decay) == (0.1, 1.0, True, 0.9999)
    assert trainer.averages.decay == 0.9999
    assert (data.auto_augment, trainer.model.config.model_args) == ("rand-m7-mstd0.5-inc1", {"drop_path_rate": 0.05})
    trainer, data = prepared(tmp_path, "vit_finetune", "vit_tiny_patch16_224", "--mixup", "0.5", "--drop_path", "0.3")
    args, encoder = trainer.args, trainer.model.a2mim.encoder
    assert (args.num_train_epochs, args.step_batch_size, args.max_grad_norm) == (100, 1024, 5.0)
    assert (args.mixup, args.cutmix, args.label_smoothing_factor) == (0.5, 1.0, 0.1)  # a flag overrides
    assert (args.model_ema_decay, data.reprob, data.auto_augment) == (0.99996, 0.25, "rand-m9-mstd0.5-inc1")
    assert trainer.model.config.model_args == {"drop_path_rate": 0.3, "global_pool": "avg"}
    assert type(encoder.norm).__name__ == "Identity" != type(encoder.fc_norm).__name__
    assert trainer.model.config.crop_pct == 0.875
    trainer, _ = prepared(tmp_path, "linear_probe", "test_resnet", "--image_size", "64")
    made, found = groups_of(trainer)
    assert (type(made).__name__, made.param_groups[0]["momentum"]) == ("SGD", 0.9)
    assert found == {"fc.weight": (30.0, 0.0), "fc.bias": (30.0, 0.0)}


def cosine(peak, lowest, warmup):
    def rate(step, steps):
        if step < warmup * steps:
            return peak * step / (warmup * steps)
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * (step / steps - warmup) / (1 - warmup))) / 2

    return rate


@pytest.mark.parametrize(
    ("recipe", "steps", "rate"),
    [
        ("rsb_a3", 1000, cosine(8e-3, 1e-6, 0.05)),
        ("vit_finetune", 1000, cosine(1e-2, 1e-6, 0.2)),
        ("linear_probe", 1000, lambda step, steps: 30 * 0.1 ** ((step >= 600) + (step >= 800))),
    ],
)
def test_rates_at_chosen_steps(tmp_path, recipe, steps, rate):
    trainer, _ = prepared(
        tmp_path, recipe, "test_resnet" if recipe != "vit_finetune" else "test_vit", "--image_size", "64"
    )
    optimizer = trainer.create_optimizer()
    schedule = trainer.create_scheduler(steps, optimizer)
    found = []
    for _ in range(steps):
        found.append(max(schedule.get_last_lr()))
        optimizer.step()
        schedule.step()
    for step in (0, 1, 49, 50, 199, 200, 500, 599, 600, 799, 800, 999):
        assert found[step] == pytest.approx(rate(step, steps), rel=1e-6, abs=1e-12), step


def test_the_recipe_is_told(tmp_path, caplog):
    with caplog.at_level("INFO", "a2mim"):
        prepared(tmp_path, "rsb_a3", "test_resnet", "--image_size", "64", "--per_device_train_batch_size", "50")
    assert "recipe rsb_a3: --image_size 224 --train_image_size 160 " in caplog.text
    # 2048 is no multiple of 50.
    assert (
        "50 images in a step (1 x 50) instead of 2048; learning rate scaled from 0.008 to 0.00125 (sqrt)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arguments: {optim: lamb", "^recipe: .*mine.yaml is no YAML"),
        ("description: none", "^recipe: .*mine.yaml has no `arguments"),
        ("arguments: {}\nbatch: 3", "^recipe: .*mine.yaml has unknown keys batch; known are description"),
        ("arguments: {learning_rat: 3}", "^recipe: there is no argument --learning_rat"),
        ("arguments: {learning_rate: }", "^recipe: --learning_rate has no value"),
        ("script: run_pretraining.py\narguments: {seed: 1}", "^recipe: .* is for script run_pretraining.py, not"),
    ],
)
def test_recipes_of_ones_own(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8-sig")
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, str(path), "test_resnet")


def test_unknown_recipes_and_tasks(tmp_path):
    with pytest.raises(ValueError, match="^recipe: there is no recipe or file 'rsb'; recipes: .*rsb_a2"):
        prepared(tmp_path, "rsb", "test_resnet")
    with pytest.raises(ValueError, match="^task: expected one of image-classification.*, got 'depth'"):
        run_finetune.main(["--task", "depth", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_flags():
    arguments = {"bce_loss": True, "crop_scale": [0.1, 1.0], "model_args": {"depth": 3}, "learning_rate": 1e-4}
    flags = as_flags(arguments, set(arguments))
    assert flags == [
        "--bce_loss",
        "True",
        "--crop_scale",
        "0.1",
        "1.0",
        "--model_args",
        '{"depth": 3}',
        "--learning_rate",
        "0.0001",
    ]
