"""Which parameters are decayed, how fast each layer learns, and how that changes; optimisers and layers are timm's."""

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from ..arguments.training import A2MIMTrainingArguments, with_values
from ..modeling_a2mim import find_core


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    token_lr_scale: float = 1.0,
    layer_decay: float | None = None,
    layer_decay_layers: int | None = None,
) -> list[dict]:
    """Groups for an optimiser: decayed weights; norms, biases, layer scales, tokens and position embeddings (timm's
    `no_weight_decay` and everything of one dimension) without decay; and the mask token with its gamma, without decay
    and at `learning_rate * token_lr_scale` (0.1 in the release's CNN settings).

    Args:
        model: any that holds one A2MIMModel.
        learning_rate, weight_decay: of the last layer, and of what is decayed.
        token_lr_scale: of the mask token, relative.
        layer_decay: each layer of the encoder learns so much more slowly than the one after it (BEiT,
            https://arxiv.org/abs/2106.08254), with the layers of timm's `group_matcher`; what comes after the encoder
            learns at `learning_rate`.
        layer_decay_layers: the number of steps from the first layer to the last that `layer_decay` was chosen for. For
            an encoder with more or fewer, the decay is spread so that its first layer learns as fast.

    Raises:
        ValueError: naming `layer_decay`, if timm knows of one layer only.
    """
    core = find_core(model)
    encoder, token = core.encoder, core.mask_token
    skip = set(getattr(encoder, "no_weight_decay", set)())
    special = [] if token is None else [p for p in token.parameters() if p.requires_grad]
    done = {id(p) for p in special}
    groups = []
    if layer_decay is None or layer_decay == 1.0:
        prefix = next(name for name, module in model.named_modules() if module is encoder)
        skip = {f"{prefix}.{name}" for name in skip}
    else:
        groups = layer_groups(encoder, learning_rate, weight_decay, skip, layer_decay, layer_decay_layers)
        done |= {id(p) for p in encoder.parameters()}
    for group in param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip):
        groups.append({**group, "params": [p for p in group["params"] if id(p) not in done]})
    if special:
        groups.append({"params": special, "weight_decay": 0.0, "lr": learning_rate * token_lr_scale})
    return [group for group in groups if group["params"]]


def layer_groups(
    encoder: nn.Module, learning_rate: float, weight_decay: float, skip: set[str], decay: float, layers: int | None
) -> list[dict]:
    """Groups of a timm encoder with the layer-wise decay of `parameter_groups`, each with its `lr`."""
    # An encoder without a classifier ends one layer before what is put onto it.
    above = 0 if getattr(encoder, "num_classes", 0) else 1
    scales = [group["lr_scale"] for group in param_groups_layer_decay(encoder, layer_decay=0.5)]
    steps = round(-math.log2(min(scales, default=1.0))) + above
    if steps == above and scales:
        raise ValueError(f"layer_decay: timm knows no layers of {type(encoder).__name__}; leave it out")
    decay = decay if layers is None else decay ** (layers / steps)
    groups = param_groups_layer_decay(encoder, weight_decay, no_weight_decay_list=skip, layer_decay=decay)
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": learning_rate * group["lr_scale"] * decay**above,
        }
        for group in groups
    ]


def timm_optimizer(groups: list[dict], args: A2MIMTrainingArguments) -> torch.optim.Optimizer:
    """The optimiser of timm that `args.timm_optim` names, with `args.optim_args` (`key=value,key=value`). Its betas
    and eps are timm's, where `args.adam_beta1`, `adam_beta2` and `adam_epsilon` are transformers' defaults.

    Raises:
        ValueError: naming `optim_args`, if it takes no such arguments, or `adam_beta1`, if it has not two betas.
    """
    options: dict[str, Any] = {"lr": args.learning_rate}
    info = get_optimizer_info(args.timm_optim)
    if (args.adam_beta1, args.adam_beta2) != (TrainingArguments.adam_beta1, TrainingArguments.adam_beta2):
        if info.has_betas and info.num_betas != 2:
            raise ValueError(f"adam_beta1: timm's {args.timm_optim} has {info.num_betas} betas; leave it out")
        options["betas"] = (args.adam_beta1, args.adam_beta2)
    if args.adam_epsilon != TrainingArguments.adam_epsilon:
        options["eps"] = args.adam_epsilon
    for name, text in _optim_args(args).items():
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ValueError(f"optim_args: expected key=number,key=number, got {args.optim_args!r}") from None
        # timm drops some that the optimiser has not, and has others itself, for models and not for groups.
        if name not in inspect.signature(get_optimizer_class(args.timm_optim, bind_defaults=False)).parameters:
            raise ValueError(f"optim_args: timm's {args.timm_optim} does not take '{name}={text}'; leave it out")
    try:
        return create_optimizer_v2(groups, args.timm_optim, weight_decay=0.0, **options)
    except TypeError as error:
        raise ValueError(f"optim_args: timm's {args.timm_optim} does not take {args.optim_args!r}: {error}") from error


def transformers_optimizer(
    groups: list[dict], args: A2MIMTrainingArguments, find: Callable[[TrainingArguments], tuple[Any, dict[str, Any]]]
) -> torch.optim.Optimizer:
    """The optimiser of transformers that `args.optim` names.

    Args:
        find: gives its class and arguments, as `Trainer.get_optimizer_cls_and_kwargs`.

    Raises:
        ValueError: naming `optim_args`, if transformers does not hand them on to it.
    """
    given = _optim_args(args)
    kind, options = find(args)
    optimizer = kind(groups, **options)
    known = {**optimizer.defaults, **options}
    known |= {f"beta{i}": beta for i, beta in enumerate(known.get("betas") or (), 1)}
    for name, text in given.items():
        if name not in known or not _same(known[name], text):
            raise ValueError(
                f"optim_args: {name}={text} has no effect on transformers' {args.optimizer_name}; leave it out, or "
                "give an optimiser of timm (--optim adamw, ...), which takes all of its own"
            )
    return optimizer


def _optim_args(args: A2MIMTrainingArguments) -> dict[str, str]:
    """`args.optim_args` by their names. Raises ValueError naming it."""
    found = {}
    for pair in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
        name, _, found[name] = pair.partition("=")
        if not found[name]:
            raise ValueError(f"optim_args: expected key=number,key=number, got {args.optim_args!r}")
        if name in ("lr", "weight_decay"):
            flag = "learning_rate" if name == "lr" else name
            raise ValueError(f"optim_args: {name} is that of each group of parameters; give --{flag} instead")
    return found


def _same(value: Any, text: str) -> bool:
    """Whether a value is what a text says."""
    text = {"true": "1", "yes": "1", "false": "0", "no": "0"}.get(text.lower(), text)
    try:
        return float(value) == float(text)
    except (TypeError, ValueError):
        return str(value).removeprefix("torch.") == text


def with_optimizer(args: A2MIMTrainingArguments, kind: Any, options: dict[str, Any]) -> A2MIMTrainingArguments:
    """The arguments as those of an optimiser that was given in place of theirs.

    Args:
        kind, options: its class and its arguments, as `Trainer` takes them; of these `lr` and `weight_decay` count.

    Raises:
        ValueError: naming `optimizer_cls_and_kwargs`, if it is no class of an optimiser, or has no learning rate; or
            `optim_args`, which are for the optimiser of the arguments.
    """
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"optimizer_cls_and_kwargs: expected a class of torch.optim.Optimizer, got {kind!r}")
    if options.get("lr", args.learning_rate) is None:
        raise ValueError("optimizer_cls_and_kwargs: expected a learning rate (lr), to which layers and token relate")
    if args.optim_args:
        raise ValueError(f"optim_args: are not for the {kind.__name__} that is given; leave them out")
    named = {"learning_rate": "lr", "weight_decay": "weight_decay"}
    values = {flag: float(options[name]) for flag, name in named.items() if name in options}
    return with_values(args, optim=kind.__name__, timm_optim=None, **values)


def largest_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`lr` and `weight_decay` of an optimiser, of its groups the largest."""
    groups = optimizer.param_groups
    return {
        "lr": max(float(group.get("initial_lr", group["lr"])) for group in groups),
        "weight_decay": max(float(group.get("weight_decay", 0.0)) for group in groups),
    }


def check_schedule(scheduler, args: A2MIMTrainingArguments, steps: int) -> list[str]:
    """What is wrong with the learning rates of a run of so many steps, in words; nothing of most.

    Args:
        scheduler: of torch; only those that are functions of the step are looked at.

    Raises:
        ValueError: naming `lr_scheduler_type`, if it has no rate for one of the steps.
    """
    warmup, found = args.get_warmup_steps(steps), []
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    factors = []
    for function in getattr(scheduler, "lr_lambdas", ())[:1]:
        try:  # that of the step after the last is asked for as well
            factors = [function(step) for step in {*range(min(steps, 1000)), warmup, steps - 1, steps}]
        except ZeroDivisionError:
            raise ValueError(
                f"lr_scheduler_type: {name} has nothing to fall over in {steps} steps with a warm-up of {warmup}; "
                "give fewer --warmup_steps, or more steps (--num_train_epochs, --max_steps)"
            ) from None
        factors = [function(step) for step in range(min(steps, 1000))]
    more = "give --warmup_steps 0, or more steps (--num_train_epochs, --max_steps)"
    if factors and not any(factors) and steps <= 1000:
        found.append(
            f"warmup_steps: the learning rate is 0 in all of the {steps} steps, and nothing is learned; {more}"
        )
    elif warmup and warmup >= steps:
        found.append(
            f"warmup_steps: a warm-up of {warmup} steps in a run of {steps}: the learning rate never gets to "
            f"{args.learning_rate:g}; {more}"
        )
    late = [value for value in args.lr_milestones or () if value >= steps]
    if late:
        found.append(f"lr_milestones: {', '.join(f'{v:g}' for v in late)} come after the last of the {steps} steps")
    return found


def milestone_schedule(optimizer: torch.optim.Optimizer, args: A2MIMTrainingArguments, steps: int) -> LambdaLR:
    """Linear warm-up, then a constant rate that is multiplied by `args.lr_gamma` at each of `args.lr_milestones`
    (steps, or below 1 shares of the run).

    Not torch's SequentialLR(LinearLR, MultiStepLR): LinearLR cannot begin at a rate of 0, as this warm-up does, and
    checkpoints hold the state of a LambdaLR, from which a run goes on also with another number of steps.
    """
    warmup = args.get_warmup_steps(steps)
    milestones = [value if value >= 1 else value * steps for value in args.lr_milestones]

    def factor(step: int) -> float:
        rise = min(1.0, step / warmup) if warmup else 1.0
        return rise * args.lr_gamma ** sum(step >= milestone for milestone in milestones)

    return LambdaLR(optimizer, factor)
