"""Arguments of training: transformers' TrainingArguments with the defaults of the paper, and a few more."""

import copy
import difflib
import logging
import math
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar, cast

from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.trainer_utils import HubStrategy, IntervalStrategy
from transformers.training_args import OptimizerNames

from ..recipes import recipe_names


logger = logging.getLogger("a2mim")

SomeArguments = TypeVar("SomeArguments", bound=TrainingArguments)

WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")  # of the schedules of transformers
LOGGING_STEPS = 50
MIXUP_MODES = ["batch", "pair", "elem"]  # timm's


NUMBERS = (  # fields of TrainingArguments: the least value, and the one that is too large
    ("per_device_train_batch_size", 1, math.inf),
    ("per_device_eval_batch_size", 1, math.inf),
    ("gradient_accumulation_steps", 1, math.inf),
    *((name, 0, math.inf) for name in ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon")),
    *((name, 0, math.inf) for name in ("dataloader_num_workers", "warmup_steps")),
    *((name, 0, 1) for name in ("adam_beta1", "adam_beta2")),
    *((name, 0, 2**32) for name in ("seed", "data_seed")),
)


@dataclass
class A2MIMTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of A2MIM pre-training, and a few arguments more. Each field is
    a flag of `run_pretraining.py`, whose help describes it.

    Attributes:
        USUAL_RATE: a learning rate, and the batch that it is for.
        USUAL_STEPS: as many as it takes to learn.
        USUAL_EPOCHS: the fewest and the most epochs for so many steps.
        MOST_EVALUATIONS: in a run whose length and evaluations are not given; `None`: as many as epochs.

    Raises:
        ValueError: naming the field whose value is out of its range or has no effect.
    """

    # By measurement: benchmarks/results/rates.md, first_run.md and few_labels.md.
    USUAL_RATE: ClassVar[tuple[float, int]] = (1e-3, 16)
    USUAL_STEPS: ClassVar[int] = 2000
    USUAL_EPOCHS: ClassVar[tuple[int, int]] = (3, 400)
    MOST_EVALUATIONS: ClassVar[int | None] = None

    recipe: str | None = HfArg(
        default=None, help=f"Published settings, which other flags override: {', '.join(recipe_names())}; or a file."
    )
    overwrite_output_dir: bool = HfArg(
        default=False, help="Replace what another run left in output_dir: it is deleted when training begins."
    )
    per_device_train_batch_size: int = HfArg(default=64, help="Images per device and step.")
    per_device_eval_batch_size: int = HfArg(default=64, help="Images per device for evaluation.")
    num_train_epochs: str = HfArg(
        default="auto", help="Passes over the data; auto: as many as give enough steps to learn from, see the log."
    )
    learning_rate: float | None = HfArg(
        default=None, help="Learning rate; if not given, one that learns with the total batch size, see the log."
    )
    base_learning_rate: float | None = HfArg(
        default=None, help="Learning rate for a total batch of 256 images, scaled linearly with it (the paper's rule)."
    )
    total_train_batch_size: int | None = HfArg(
        default=None, help="Images in a step, over devices and accumulation, that the learning rate is meant for."
    )
    batch_scaling: str = HfArg(
        default="accumulate",
        help="How to get to total_train_batch_size: accumulate gradients, or scale the learning_rate instead. "
        "The rate is scaled as well where no accumulation gives it.",
        metadata={"choices": ["accumulate", "learning_rate"]},
    )
    learning_rate_scaling: str = HfArg(
        default="linear",
        help="How the rate goes with the batch when scaled.",
        metadata={"choices": ["linear", "sqrt"]},
    )
    optim: str = HfArg(
        default=TrainingArguments.optim,
        help="Optimiser: a name of transformers (adamw_torch, sgd, ...), or of timm (lamb, lars, ...).",
    )
    lr_milestones: list[float] | None = HfArg(
        default=None,
        help="Multiply the rate by lr_gamma at these steps (below 1: shares of the run), constant between.",
        metadata={"nargs": "+"},
    )
    lr_gamma: float = HfArg(default=0.1, help="What the rate is multiplied by at each of lr_milestones.")
    weight_decay: float = HfArg(default=0.05, help="Weight decay (not of norms, biases and tokens).")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=0.05, help="Steps of linear warm-up, or below 1 their share.")
    layer_decay: float | None = HfArg(
        default=None, help="Each layer learns so much more slowly than the one after it, e.g. 0.65."
    )
    layer_decay_layers: int | None = HfArg(
        default=None, help="Layers that layer_decay was chosen for, if the encoder has more or fewer (timm's blocks)."
    )
    freeze_encoder_steps: float = HfArg(
        default=0.0,
        help="Leave the encoder as it is for so many steps, or below 1 their share, in which only what is new on it "
        "learns: for an encoder that starts from good weights.",
    )
    max_grad_norm: float = HfArg(default=5.0, help="Gradients are clipped to this norm; 0: not at all.")
    token_lr_scale: float | None = HfArg(
        default=None, help="Learning rate of mask token and gamma, relative; default 0.1 with a gamma, else 1."
    )
    logging_steps: float | None = HfArg(
        default=None,
        help="Log every so many steps, or below 1 their share; default: 50, for a run below 1,000 steps less.",
    )
    reconstruction_steps: int = HfArg(
        default=500, help="Write a picture of reconstructions every so many steps; 0: only at the end."
    )
    early_stopping_patience: int | None = HfArg(
        default=None,
        help="Stop when metric_for_best_model has not become better in so many evaluations; needs "
        "load_best_model_at_end.",
    )
    early_stopping_threshold: float = HfArg(default=0.0, help="How much better it must become.")

    hub_license: str | None = HfArg(
        default=None, help="Licence of the weights, for the model card: apache-2.0, cc-by-nc-4.0, ..."
    )
    hub_commit_message: str = HfArg(default="End of training", help="Message of the last push.")
    hub_pictures: bool = HfArg(
        default=True, help="Push pictures that show images of the data (reconstruction.png, example.png)."
    )

    @classmethod
    def from_plain(cls, args: TrainingArguments | None) -> "A2MIMTrainingArguments":
        """`args` as this class has them: themselves if they are, else with their own values of all that they have, and
        the defaults of what they have not. `None`: all defaults, and Trainer's `output_dir`.

        Raises:
            ValueError: if they are those of another trainer of this package.
        """
        if isinstance(args, cls):
            return args
        if isinstance(args, A2MIMTrainingArguments):  # which has worked out its rate and length already
            raise ValueError(f"args: this trainer takes {cls.__name__}, not {type(args).__name__}")
        known = {f.name for f in fields(cls) if f.init}
        lost = [f.name for f in fields(args) if f.init and f.name not in known] if args is not None else []
        if lost:
            logger.warning(
                "args: %s of %s are not known to %s, and have no effect",
                ", ".join(lost),
                type(args).__name__,
                cls.__name__,
            )
        given = [f.name for f in fields(args) if f.init and f.name in known] if args is not None else []
        return cls(**{"output_dir": "tmp_trainer", **{name: getattr(args, name) for name in given}})

    def __post_init__(self):
        self._check_numbers()
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size: is not supported, as the learning rate is for one batch; give a "
                "--per_device_train_batch_size that fits into memory, and --total_train_batch_size for larger steps"
            )
        if self.enable_jit_checkpoint and self.save_only_model:
            raise ValueError(
                "enable_jit_checkpoint: is for runs that go on later, for which --save_only_model keeps too little"
            )
        self.timm_optim = self._find_timm_optim()
        self.length_given = str(self.num_train_epochs) != "auto"
        self._read_epochs()
        self.logging_steps_given = self.logging_steps is not None
        if not self.logging_steps_given:
            self.logging_steps = LOGGING_STEPS
        self.greater_is_better_given = self.greater_is_better
        self._check_early_stopping()
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith(("_l1", "feature_cosine")):
            self.greater_is_better = False  # transformers takes only losses for what should be low
        super().__post_init__()
        if self.device.type in ("cpu", "mps"):
            self.dataloader_pin_memory = False  # nothing to copy to; torch warns of it at each epoch
        self._check_reports()
        if self.push_to_hub and self.hub_strategy == HubStrategy.ALL_CHECKPOINTS:
            raise ValueError("hub_strategy: expected end, every_save or checkpoint; the Hub gets no optimiser states")
        if self.push_to_hub and self.hub_strategy == HubStrategy.CHECKPOINT:
            logger.warning(
                "hub_strategy checkpoint: the Hub gets the weights of each checkpoint, as with every_save, and no "
                "optimiser state; exact resuming needs the checkpoints in output_dir"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: must be in (0, 1], got {self.layer_decay}")
        frozen = self.freeze_encoder_steps
        if not (0 <= frozen < 1 or (frozen >= 1 and float(frozen).is_integer())):
            raise ValueError(f"freeze_encoder_steps: expected a number of steps, or below 1 their share, got {frozen}")
        if self.reconstruction_steps < 0:
            raise ValueError(f"reconstruction_steps: must not be negative, got {self.reconstruction_steps}")
        if self.lr_milestones and min(self.lr_milestones) <= 0:
            raise ValueError(f"lr_milestones: must be positive, got {self.lr_milestones}")
        if self.total_train_batch_size is not None and self.total_train_batch_size < 1:
            raise ValueError(f"total_train_batch_size: must be at least 1, got {self.total_train_batch_size}")
        self.batch_note = self._scale()

    @property
    def optimizer_name(self) -> str:
        """The optimiser as `--optim` names it, one of timm or of transformers, or the class of one that was given."""
        return self.timm_optim or str(getattr(self.optim, "value", self.optim))

    @property
    def optimizes_like_adam(self) -> bool:
        """Whether the optimiser is of the family that the usual rates were measured with."""
        return "adam" in self.optimizer_name.lower()

    @property
    def warms_up(self) -> bool:
        """Whether the schedule of the learning rate begins with a warm-up."""
        name = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        return bool(self.lr_milestones) or name not in WITHOUT_WARM_UP

    def get_warmup_steps(self, num_training_steps: int) -> int:
        return super().get_warmup_steps(num_training_steps) if self.warms_up else 0

    @property
    def step_batch_size(self) -> int:
        """Images in an optimiser step, over all devices."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def usual_learning_rate(self) -> float:
        """A rate that learns with this batch: the same for all but small ones, where it falls with the square root."""
        rate, batch = self.USUAL_RATE
        return rate * min(1.0, self.step_batch_size / batch) ** 0.5

    def steps_per_epoch(self, images: int) -> int:
        """Optimiser steps in an epoch of so many images."""
        at_once = self.train_batch_size * self.world_size
        batches = images // at_once if self.dataloader_drop_last else math.ceil(images / at_once)
        return max(1, math.ceil(batches / self.gradient_accumulation_steps))

    def usual_epochs(self, images: int) -> int:
        """How many epochs of so many images are enough to learn from."""
        least, most = self.USUAL_EPOCHS
        return min(most, max(least, math.ceil(self.USUAL_STEPS / self.steps_per_epoch(images))))

    def _read_epochs(self):
        if not self.length_given:  # "auto" until the number of images is known
            self.num_train_epochs = 3.0 if self.max_steps > 0 else "auto"  # max_steps counts, transformers compares
            return
        try:
            epochs = float(self.num_train_epochs)
        except (TypeError, ValueError):
            epochs = math.nan
        if not 0 < epochs < math.inf:
            raise ValueError(f"num_train_epochs: expected a number above 0 or auto, got {self.num_train_epochs!r}")
        self.num_train_epochs = epochs

    def _check_early_stopping(self):
        if self.early_stopping_patience is None:
            if self.early_stopping_threshold:
                raise ValueError("early_stopping_threshold: is for --early_stopping_patience")
            return
        if self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience: must be at least 1, got {self.early_stopping_patience}")
        if self.early_stopping_threshold < 0:
            raise ValueError(f"early_stopping_threshold: must not be negative, got {self.early_stopping_threshold}")
        evaluates, saves = (str(getattr(s, "value", s)) for s in (self.eval_strategy, self.save_strategy))
        if not self.load_best_model_at_end or evaluates == "no" or saves not in (evaluates, "best"):
            raise ValueError(
                "early_stopping_patience: needs --load_best_model_at_end True, and --eval_strategy and "
                f"--save_strategy alike (both epoch, or both steps); they are {evaluates} and {saves}"
            )
        self.restore_callback_states_from_checkpoint = True  # how much patience is left

    def _check_numbers(self):
        """Refuse numbers with which transformers would fail without their name, or do something else."""
        for name, least, below in NUMBERS:
            value = getattr(self, name)
            if isinstance(value, int | float) and not (value >= least and value < below):
                limit = f" and below {below:g}" if below < math.inf else ", and finite" if math.isinf(value) else ""
                raise ValueError(f"{name}: must be at least {least:g}{limit}, got {value}")
        for name in ("logging_steps", "save_steps", "eval_steps"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise ValueError(f"max_steps: must be at least 1, or -1 for --num_train_epochs, got {self.max_steps}")
        if self.output_dir is not None and not str(self.output_dir):
            raise ValueError("output_dir: is empty")

    def _check_reports(self):
        """Refuse a package to report to that is not installed, of which Trainer makes an error without a field."""
        from transformers.integrations import get_available_reporting_integrations  # takes seconds, as below

        named = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        there = get_available_reporting_integrations()
        missing = [name for name in named if name not in ("none", "all", *there)]
        if missing:
            raise ValueError(
                f"report_to: {missing[0]} is not installed here (pip install {missing[0]}), or not known to "
                f"transformers; there is {', '.join(there) or 'nothing to report to'}, or none"
            )

    def _find_timm_optim(self) -> str | None:
        """The name of an optimiser of timm, which TrainingArguments would refuse."""
        from timm.optim import (
            get_optimizer_info,
            list_optimizers,
        )  # takes seconds, without which --help is there at once

        name = str(getattr(self.optim, "value", self.optim))
        if name in [known.value for known in OptimizerNames]:
            return None
        if name in list_optimizers() and get_optimizer_info(name).second_order:
            raise ValueError(f"optim: {name} needs second derivatives, which no step computes; give another")
        if name not in list_optimizers():
            known = cast(list[str], list_optimizers())  # without descriptions
            close = difflib.get_close_matches(name, [*known, *(o.value for o in OptimizerNames)])
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"optim: {name!r} is no optimiser of transformers or timm{hint}")
        self.optim = TrainingArguments.optim
        return name

    def _scale(self) -> str:
        """Set accumulation and learning rate for the batch that the rate is meant for; says what was done."""
        wanted, at_once = self.total_train_batch_size, self.train_batch_size * self.world_size
        free = self.batch_scaling == "accumulate" and self.gradient_accumulation_steps == 1
        if wanted is not None and free and wanted % at_once == 0:
            self.gradient_accumulation_steps = wanted // at_once
        total = self.step_batch_size
        note = f"{total} images in a step ({self.gradient_accumulation_steps} x {at_once})"
        note += "" if wanted in (None, total) else f" instead of {wanted}"
        if self.learning_rate is None and self.base_learning_rate is not None:
            self.learning_rate = self.base_learning_rate * total / 256
            return f"{note}; learning rate {self.learning_rate:g}, from {self.base_learning_rate:g} for 256"
        if self.learning_rate is None:
            self.learning_rate = self.usual_learning_rate()
            other = "" if self.optimizes_like_adam else f" with AdamW; {self.optimizer_name} may want another"
            return f"{note}; learning rate {self.learning_rate:g}, the usual one for so many{other}"
        if wanted in (None, total):
            return f"{note}; learning rate {self.learning_rate:g} as given"
        given, ratio = self.learning_rate, total / wanted
        self.learning_rate *= ratio if self.learning_rate_scaling == "linear" else ratio**0.5
        return f"{note}; learning rate scaled from {given:g} to {self.learning_rate:g} ({self.learning_rate_scaling})"


def with_values(args: SomeArguments, **values) -> SomeArguments:
    """A copy with other values of some fields; what was worked out from the old ones stays."""
    args = copy.copy(args)
    for name, value in values.items():
        setattr(args, name, value)
    return args


def data_seed(args: TrainingArguments) -> int:
    """The seed of what is drawn of the data: `data_seed`, if it is given, else `seed`."""
    return args.seed if args.data_seed is None else args.data_seed


@dataclass
class FineTuningArguments(A2MIMTrainingArguments):
    """`A2MIMTrainingArguments` for fine-tuning: evaluates after every epoch; mixing, losses and averaged weights are
    timm's, by timm's names. Each field is a flag of `run_finetune.py`, whose help describes it.

    Raises:
        ValueError: naming the field whose value is out of its range.
    """

    USUAL_RATE: ClassVar[tuple[float, int]] = (5e-4, 64)
    USUAL_STEPS: ClassVar[int] = 400
    USUAL_EPOCHS: ClassVar[tuple[int, int]] = (3, 50)
    MOST_EVALUATIONS: ClassVar[int | None] = 10  # of few images, an epoch is a step or two

    eval_strategy: str | None = HfArg(
        default=None,
        help="When to evaluate: no, steps or epoch; default: after each epoch, 10 times if the length is auto.",
    )
    mixup: float = HfArg(default=0.0, help="Alpha of mixup; 0: none.")
    cutmix: float = HfArg(default=0.0, help="Alpha of CutMix; 0: none. With mixup: in turn, at random.")
    mixup_prob: float = HfArg(default=1.0, help="Share of the batches that are mixed.")
    mixup_switch_prob: float = HfArg(default=0.5, help="Share of CutMix where there is mixup, too.")
    mixup_mode: str = HfArg(
        default="batch", help="Mix whole batches alike, or each pair or image.", metadata={"choices": MIXUP_MODES}
    )
    bce_loss: bool = HfArg(default=False, help="Binary cross-entropy of each class instead of softmax.")
    bce_target_thresh: float | None = HfArg(
        default=None, help="Make targets of bce_loss above this 1, and the others 0."
    )
    class_weights: list[str] | None = HfArg(
        default=None,
        help="How much an image of each class counts in the loss: balanced (the inverse of how often it is "
        "there), or a number for each class, in the order of their names.",
        metadata={"nargs": "+"},
    )
    model_ema_decay: float | None = HfArg(
        default=None, help="Average the weights over steps, e.g. 0.9999; the averages are evaluated."
    )
    model_ema_warmup: bool = HfArg(default=False, help="Average over fewer steps at the beginning.")

    def __post_init__(self):
        self.evaluations_given = self.eval_strategy is not None
        if not self.evaluations_given:
            self.eval_strategy = IntervalStrategy.EPOCH
        super().__post_init__()
        for name, low, high in (
            ("mixup", 0, math.inf),
            ("cutmix", 0, math.inf),
            ("mixup_prob", 0, 1),
            ("mixup_switch_prob", 0, 1),
            ("bce_target_thresh", 0, 1),
            ("model_ema_decay", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: must be in [{low}, {high}], got {value}")
        if self.bce_target_thresh is not None and not self.bce_loss:
            raise ValueError("bce_target_thresh: is for --bce_loss")
        if self.class_weights is not None:
            self._check_class_weights()

    def _check_class_weights(self):
        if self.bce_loss:
            raise ValueError("class_weights: weigh the softmax loss; leave --bce_loss out")
        if self.class_weights == ["balanced"]:
            return
        try:
            numbers = [float(weight) for weight in self.class_weights]
        except ValueError:
            numbers = [-1.0]
        if not all(0 <= number < math.inf for number in numbers) or not any(numbers):
            raise ValueError(
                "class_weights: expected balanced, or a number of at least 0 for each class, got "
                f"{' '.join(map(str, self.class_weights))}"
            )
