"""Layer-wise decay, optimisers of timm, and schedules."""

import re

import pytest
import torch
from torch import nn
from transformers import SchedulerType, Trainer, get_scheduler

from modeling_a2mim import A2MIMBackbone, A2MIMConfig, A2MIMForImageClassification
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.encoders.meta import NoValues
from modeling_a2mim.encoders.plan import classifier_parameters
from modeling_a2mim.training.optimization import (
    check_schedule,
    milestone_schedule,
    parameter_groups,
    timm_optimizer,
    transformers_optimizer,
)


def classifier(architecture, **model_args):
    """Shapes are enough: on the meta device, without values."""
    config = A2MIMConfig.for_encoder(architecture=architecture, model_args=model_args, num_labels=7)
    with torch.device("meta"), NoValues():
        return A2MIMForImageClassification(config)


def settings(model, **kwargs):
    """{parameter: (learning rate, weight decay)}"""
    names = {id(p): name.removeprefix("a2mim.encoder.") for name, p in model.named_parameters()}
    groups = parameter_groups(model, 1.0, 0.3, **kwargs)
    found = [(names[id(p)], (g.get("lr", 1.0), g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(dict(found)) == len(found) == len(names)
    assert not any("lr_scale" in group for group in groups)
    return dict(found)


def vit_layer(name):
    """0: embedding; 1 to 12: blocks; 13: what comes after."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else 13


def convnext_layer(name):
    """0: stem; then every block of the four stages, its downsampling with the first; 36 blocks of ConvNeXt-S."""
    first = (0, 3, 6, 33)
    block = re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name)
    if block:
        return first[int(block[1])] + int(block[2]) + 1
    down = re.match(r"stages\.(\d)\.downsample", name)
    if down:
        return first[int(down[1])] + 1
    return 0 if name.startswith("stem") else 37


@pytest.mark.parametrize(
    ("architecture", "model_args", "layer_of", "last", "decay"),
    [
        ("vit_small_patch16_224", {"global_pool": "avg"}, vit_layer, 13, 0.65),
        ("convnext_small", {}, convnext_layer, 37, 0.9),
    ],
)
def test_layer_decay_parameter_by_parameter(architecture, model_args, layer_of, last, decay):
    model = classifier(architecture, **model_args)
    found = settings(model, layer_decay=decay)
    spread = settings(model, layer_decay=0.7, layer_decay_layers=13)
    shapes = {n.removeprefix("a2mim.encoder."): p.ndim for n, p in model.named_parameters()}
    for name, (rate, weight_decay) in found.items():
        free = shapes[name] <= 1 or name in ("pos_embed", "cls_token")
        assert weight_decay == (0.0 if free else 0.3), name
        # Powers of floats, computed in another way.
        assert rate == pytest.approx(decay ** (last - layer_of(name)), rel=1e-9), name
        assert spread[name][0] == pytest.approx(0.7 ** (13 * (last - layer_of(name)) / last), rel=1e-9), name


def test_layers_of_encoders_of_all_kinds():
    """The stem is slowest, the classifier has the full rate."""
    for name in ("resnet18", "swin_tiny_patch4_window7_224", "efficientnet_b0", "hiera_tiny_224", "mixer_s32_224"):
        model = classifier(name)
        rates = {parameter: rate for parameter, (rate, _) in settings(model, layer_decay=0.5).items()}
        first = next(parameter for parameter, _ in model.a2mim.encoder.named_parameters())
        assert rates[first] == min(rates.values()), name
        assert {rates[parameter] for parameter in classifier_parameters(model.a2mim.encoder)} == {1.0}, name
        assert len(set(rates.values())) >= 5, name


def test_without_a_classifier_the_encoder_ends_one_layer_earlier():
    config = A2MIMConfig.for_encoder(architecture="vit_tiny_patch16_224", model_args={"depth": 3})
    head = nn.Module()
    with torch.device("meta"), NoValues():
        head.backbone, head.decode = A2MIMBackbone(config), nn.Linear(2, 2)
    names = {id(p): name for name, p in head.named_parameters()}
    rates = {
        names[id(p)]: g.get("lr", 1.0) for g in parameter_groups(head, 1.0, 0.1, layer_decay=0.5) for p in g["params"]
    }
    assert rates["decode.weight"] == 1.0
    encoder = "backbone.a2mim.encoder."
    assert [rates[f"{encoder}blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert rates[f"{encoder}patch_embed.proj.weight"] == 0.0625


def args(tmp_path, **kwargs):
    return A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=0.5, **kwargs)


def test_optimisers_of_timm(tmp_path):
    def groups():
        decayed = {"params": [nn.Parameter(torch.ones(3, 3))], "weight_decay": 0.02, "lr": 0.1}
        return [decayed, {"params": [nn.Parameter(torch.ones(3))], "weight_decay": 0.0}]

    own = args(tmp_path, optim="lamb")
    assert own.optimizer_name == own.timm_optim == "lamb"
    optimizer = timm_optimizer(groups(), own)
    assert type(optimizer).__name__ == "Lamb"
    found = [(g["lr"], g["weight_decay"], g["eps"]) for g in optimizer.param_groups]
    assert found == [(0.1, 0.02, 1e-6), (0.5, 0.0, 1e-6)]
    other = timm_optimizer(groups(), args(tmp_path, optim="lamb", adam_epsilon=1e-4, optim_args="max_grad_norm=2e-1"))
    assert (other.param_groups[0]["eps"], other.param_groups[0]["max_grad_norm"]) == (1e-4, 0.2)
    with pytest.raises(ValueError, match="^optim_args: timm's lamb does not take 'nonsense=1'"):
        timm_optimizer(groups(), args(tmp_path, optim="lamb", optim_args="nonsense=1"))
    for wrong in ("momentum", "betas=(0.9,0.99)"):
        with pytest.raises(ValueError, match="^optim_args: expected key=number"):
            timm_optimizer(groups(), args(tmp_path, optim="lamb", optim_args=wrong))
    # What timm itself would leave out without a word.
    for name, given in (("lion", "eps=1e-3"), ("adamw", "momentum=0.5"), ("momentum", "layer_decay=0.5")):
        with pytest.raises(ValueError, match=f"^optim_args: timm's {name} does not take '{given}'"):
            timm_optimizer(groups(), args(tmp_path, optim=name, optim_args=given))
    with pytest.raises(ValueError, match="^adam_beta1: timm's adan has 3 betas"):
        timm_optimizer(groups(), args(tmp_path, optim="adan", adam_beta1=0.7))


@pytest.mark.parametrize(
    ("optim", "given", "key", "value"),
    [
        ("sgd", "momentum=0.9, nesterov=True", "nesterov", True),
        ("sgd", "momentum=0.9,foo=3", "foo", None),
        ("sgd", "weight_decay=0.3", "weight_decay", None),
        ("adafactor", "scale_parameter=False", "scale_parameter", False),
        ("adafactor", "scale_parameter=True", "scale_parameter", None),
        ("adamw_torch_fused", "amsgrad=True", "amsgrad", None),
        ("adamw_torch", "foreach=False", "foreach", None),
        ("adamw_torch", "eps=1e-3", "eps", None),
        ("adamw_torch", "beta1=0.9", "betas", (0.9, 0.999)),
        ("rmsprop", "alpha=0.5,centered=yes", "alpha", 0.5),
        ("rmsprop", "alpha", "key=number", None),
    ],
)
def test_options_of_optimisers_of_transformers(tmp_path, optim, given, key, value):
    """Those that transformers does not hand on are refused (`value` is None)."""
    options = args(tmp_path, optim=optim, optim_args=given)
    groups = [{"params": [nn.Parameter(torch.ones(3, 3))], "weight_decay": 0.02}]

    def make():
        return transformers_optimizer(groups, options, Trainer.get_optimizer_cls_and_kwargs)

    if value is not None:
        assert make().param_groups[0][key] == value
        return
    with pytest.raises(ValueError, match=f"^optim_args: .*{key}"):
        make()


def test_milestones(tmp_path):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 2.0}])
    schedule = milestone_schedule(optimizer, args(tmp_path, lr_milestones=[0.6, 80], warmup_steps=10), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[i] for i in (0, 5, 10, 59, 60, 79, 80, 99)] == pytest.approx([0, 1, 2, 2, 0.2, 0.2, 0.02, 0.02])


@pytest.mark.parametrize(
    ("given", "steps", "said"),
    [
        (
            {"warmup_steps": 0.05},
            1,
            ["warmup_steps: the learning rate is 0 in all of the 1 steps, and nothing is learned"],
        ),
        (
            {"warmup_steps": 10},
            5,
            ["warmup_steps: a warm-up of 10 steps in a run of 5: the learning rate never gets to"],
        ),
        ({"warmup_steps": 0}, 1, []),
        ({"warmup_steps": 0.05}, 100, []),
        ({"lr_milestones": [0.5, 100.0]}, 50, ["lr_milestones: 100 come after the last of the 50 steps"]),
    ],
)
def test_schedules_that_teach_nothing_are_named(tmp_path, given, steps, said):
    args = A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=0.1, **given)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = (
        milestone_schedule(optimizer, args, steps)
        if args.lr_milestones
        else get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps)
    )
    found = check_schedule(scheduler, args, steps)
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_a_schedule_of_no_length_is_refused(tmp_path):
    """Which transformers would divide by, after the last step."""
    args = A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, warmup_steps=4)
    args.lr_scheduler_type = SchedulerType.POLYNOMIAL
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = get_scheduler("polynomial", optimizer, 4, 4)
    with pytest.raises(ValueError, match="^lr_scheduler_type: polynomial has nothing to fall over in 4 steps"):
        check_schedule(scheduler, args, 4)
