"""`A2MIMTrainer`: transformers' Trainer with both loss terms in its logs, the paper's parameter groups, pictures of
reconstructions, checkpoints without pickled arguments, and a plain timm / transformers folder at the end."""

import functools
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from .analysis.reconstruction import reconstruction_picture
from .checkpoints import (
    ASIDE,
    check_settings,
    complete,
    find_checkpoint,
    prepare_aside,
    read_record,
    remove_leftovers,
    rotate,
    verify,
)
from .data import REPORT, ImageSamples, TrainingData, collate
from .export import UPLOADED_FILES, export_model
from .modeling_a2mim import A2MIMForPreTraining
from .optimization import parameter_groups
from .transforms import PreTrainTransform


LOSS_TERMS = ("spatial_loss", "frequency_loss")
PICTURE = "reconstruction.png"


@dataclass
class A2MIMTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of A2MIM pre-training, and a few arguments more."""

    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per device and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images per device for evaluation."})
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate; if not given, base_learning_rate * total batch size / 256."},
    )
    base_learning_rate: float = field(
        default=1.5e-4, metadata={"help": "Learning rate for a total batch of 256 images (the paper's for CNNs)."}
    )
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay (not of norms, biases and tokens)."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of linear warm-up, or below 1 their share."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm; 0: not at all."})
    token_lr_scale: float | None = field(
        default=None,
        metadata={"help": "Learning rate of mask token and gamma, relative; default 0.1 with a gamma, else 1."},
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps, or below 1 their share."})
    reconstruction_steps: int = field(
        default=500,
        metadata={"help": "Write a picture of reconstructions every so many steps; 0: only at the end."},
    )

    def __post_init__(self):
        super().__post_init__()
        total = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * total / 256
        if self.reconstruction_steps < 0:
            raise ValueError(f"reconstruction_steps: must not be negative, got {self.reconstruction_steps}")


@dataclass
class FineTuningArguments(A2MIMTrainingArguments):
    """The same for fine-tuning: evaluates after every epoch."""

    base_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate for a total batch of 256 images."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})


class A2MIMTrainer(Trainer):
    """Pre-train an `A2MIMForPreTraining` or fine-tune an `A2MIMForImageClassification`; arguments as `Trainer`'s, and

    Args:
        picture_samples: samples (dicts with pixel_values and bool_masked_pos) whose reconstructions are shown in
            `output_dir/reconstructions/step-N.png` every `args.reconstruction_steps`, and at the end in
            `output_dir/reconstruction.png`.
        pretraining_model: for a classifier, the model it was made from, exported beside it.
    """

    def __init__(self, *args, picture_samples=None, pretraining_model: A2MIMForPreTraining | None = None, **kwargs):
        kwargs.setdefault("data_collator", default_data_collator)
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"n_gpu: this process sees {self.args.n_gpu} GPUs; start one process for each, "
                f"torchrun --nproc_per_node {self.args.n_gpu} ..., or hide all but one with CUDA_VISIBLE_DEVICES=0"
            )
        if self.args.push_to_hub and self.args.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"hub_strategy: expected end or every_save (no optimiser state goes to the Hub), "
                f"got {self.args.hub_strategy}"
            )
        self.pretraining_model = pretraining_model
        self._terms: dict[str, list] = {}
        if isinstance(self.model, A2MIMForPreTraining):
            # Evaluation needs to know that a loss can be had from pixels alone, and to keep nothing but the loss.
            self.label_names = ["pixel_values"]
            self.args.prediction_loss_only = True
        if picture_samples:
            self.add_callback(ReconstructionCallback(default_data_collator(picture_samples)))

    # Data

    _data: TrainingData | None = None
    _pixels: torch.Tensor | None = None
    _record: dict | None = None  # of the data, in the checkpoint that the run goes on from

    def get_train_dataloader(self):
        """Batches of this process, in an order that follows from seed and position (see `order`); for other datasets
        than `ImageSamples`, Trainer's."""
        samples, args = self.train_dataset, self.args
        if not isinstance(samples, ImageSamples):
            return super().get_train_dataloader()
        self._data = TrainingData(
            samples,
            self._train_batch_size,
            args.process_index,
            args.world_size,
            args.gradient_accumulation_steps,
            args.dataloader_drop_last,
            args.dataloader_num_workers,
            self._record,
        )
        self.remove_callback(PassCallback)
        self.add_callback(PassCallback(self._data))
        loader = DataLoader(
            samples,
            batch_sampler=self._data.batches,
            collate_fn=collate
            if self.data_collator is default_data_collator
            else functools.partial(collate, collator=self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        # The batches are those of this process already.
        accelerator = self.accelerator
        return prepare_data_loader(
            loader, accelerator.device, 1, 0, put_on_device=True, non_blocking=accelerator.non_blocking
        )

    def set_initial_training_values(self, args, dataloader):
        values = list(super().set_initial_training_values(args, dataloader))
        if self._data is None or self._record is None:
            return tuple(values)
        # Steps left count from where the data is: a step may hold more or fewer images than before.
        _, updates, _, _, _, _, max_steps = values
        number, given = self._data.batches.resumed[0], self._data.batches.skipped // args.gradient_accumulation_steps
        done = self._record["global_step"]
        if args.max_steps < 0:
            max_steps = done + max(0, max_steps - number * updates - given)
        values[0] = number + math.ceil((given + max(0, max_steps - done)) / updates)
        values[-1] = max_steps
        return tuple(values)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        passes, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if self._data is not None and checkpoint is not None:
            passes, batches = self._data.batches.resumed[0], self._data.batches.skipped
        return passes, batches

    def training_step(self, model, inputs, num_items_in_batch=None):
        report = inputs.pop(REPORT, None)
        if report is not None and isinstance(self.train_dataset.transform, PreTrainTransform):
            # Into the same memory every step: on a CPU, new memory costs as much as the arithmetic.
            self._pixels = self.train_dataset.transform.normalize(inputs["pixel_values"], out=self._pixels)
            inputs["pixel_values"] = self._pixels
        loss = super().training_step(model, inputs, num_items_in_batch)
        if report is not None:
            self._data.trained(report)
        return loss

    def data_state(self) -> dict | None:
        """Where the run is in its data, for a checkpoint; called by all processes."""
        if self._data is None:
            return None
        states = gather_object([self._data.state()])
        totals = {name: dict(sum((Counter(s[name]) for s in states), Counter())) for name in ("seen", "skipped")}
        return {**states[0], **totals, "global_step": self.state.global_step}

    # Loss and optimiser

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        transform = getattr(self.train_dataset, "transform", None)
        if model.training and isinstance(transform, PreTrainTransform):  # whose masks all have as many cells
            inputs = {**inputs, "num_masked": transform.config.num_masked}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name in LOSS_TERMS:
            value = outputs.get(name) if isinstance(outputs, dict) else None
            if value is not None:
                kept = self._terms.setdefault(name if model.training else f"eval_{name}", [0.0, 0])
                kept[0] = kept[0] + value.detach().mean()
                kept[1] += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if self._data is not None and "loss" in logs:
            skipped = torch.tensor([self._data.skipped.skipped.total()], device=self.accelerator.device)
            logs[REPORT] = int(self.accelerator.gather(skipped).sum())
        for prefix in ("", "eval_"):
            if f"{prefix}loss" not in logs:
                continue
            for name in LOSS_TERMS:
                total, count = self._terms.pop(f"{prefix}{name}", (None, 0))
                if count:
                    logs[f"{prefix}{name}"] = self.accelerator.gather((total / count).view(1)).mean().item()
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            module = self.model if model is None else model
            optimizer_cls, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            groups = self.parameter_groups(module)
            self.optimizer = optimizer_cls(groups, **options)
        return self.optimizer

    def parameter_groups(self, model) -> list[dict]:
        """The groups that the optimiser is made with (`optimization.parameter_groups`)."""
        scale = self.args.token_lr_scale
        if scale is None:
            scale = 1.0 if model.config.mask_gamma_init is None else 0.1
        return parameter_groups(model, self.args.learning_rate, self.args.weight_decay, scale)

    # Checkpoints and results

    _aside: str | None = None  # while a checkpoint is written: the folder that stands in for the output folder

    def run(self) -> dict[str, float]:
        """Train (or go on, as `args.resume_from_checkpoint` says), save, evaluate if there is anything to evaluate on,
        and push if `args.push_to_hub`. Returns the metrics."""
        metrics = self.train(resume_from_checkpoint=self.args.resume_from_checkpoint).metrics
        self.save_model()
        self.save_metrics("train", metrics)
        self.save_state()
        if self.eval_dataset is not None:
            evaluation = self.evaluate()
            self.save_metrics("eval", evaluation)
            metrics |= evaluation
        if self.args.push_to_hub:
            self.push_to_hub()
        return metrics

    def train(self, resume_from_checkpoint=None, **kwargs):
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        self._record = None if checkpoint is None else read_record(checkpoint)["data"]
        if self._record is not None:
            self.args.ignore_data_skip = False  # nothing is read to be skipped
        elif checkpoint is not None and isinstance(self.train_dataset, ImageSamples):
            raise ValueError(f"resume_from_checkpoint: {checkpoint} does not say how far it was in these images")
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _find_checkpoint(self, value):
        """Found by one process for each disk; all go on from the same checkpoint, or raise the same error."""
        answer = []
        if self.args.should_save:
            try:
                checkpoint = find_checkpoint(value, self.args.output_dir, thorough=True)
                if checkpoint is not None:
                    check_settings(checkpoint, self._unwrapped())
                answer = [(checkpoint, None)]
            except ValueError as problem:
                answer = [(None, str(problem))]
        answers = gather_object(answer)
        if error := next((error for _, error in answers if error), None):
            raise ValueError(error)
        found = {checkpoint for checkpoint, _ in answers}
        if len(found) > 1:
            names = ", ".join(sorted(map(str, found)))
            raise ValueError(f"resume_from_checkpoint: the machines have different checkpoints, {names}; name one")
        return found.pop()

    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _get_output_dir(self, trial):
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            prepare_aside(run_dir)
        self.accelerator.wait_for_everyone()
        self._aside = str(run_dir / ASIDE)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._aside = None
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == target or best.is_dir()):
            self.state.best_model_checkpoint = str(best)  # where it will be, not where it is written
        data = self.data_state()
        self.accelerator.wait_for_everyone()  # each process has files of its own
        if self.args.should_save:
            folder = run_dir / ASIDE / target.name
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            complete(folder, target, self._unwrapped(), data, self.args.save_only_model)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run_dir, self.args.save_total_limit, keep=[target, *([best] if best else [])])

    def _load_best_model(self):
        if problems := verify(self.state.best_model_checkpoint):
            raise ValueError(f"load_best_model_at_end: {self.state.best_model_checkpoint}: {'; '.join(problems)}")
        super()._load_best_model()

    def save_model(self, output_dir=None, _internal_call=False):
        """Write the folder that users load and the Hub gets (see `export`); Trainer itself saves checkpoints."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            export_model(self._unwrapped(), output_dir or self.args.output_dir, self.pretraining_model)

    def _save(self, output_dir=None, state_dict=None):
        # Trainer would pickle its arguments here, the Hub token among them.
        if self.args.should_save:
            self._unwrapped().save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """Export to `output_dir`, and upload what belongs on the Hub (`export.UPLOADED_FILES`) and nothing else."""
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        return huggingface_hub.upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            allow_patterns=UPLOADED_FILES,
            commit_message=commit_message,
            token=token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder):
        # Trainer asks for this before the checkpoint is complete, `_save_checkpoint` after.
        if self._aside is None and self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")


class PassCallback(TrainerCallback):
    """Tells the data which pass begins."""

    def __init__(self, data: TrainingData):
        self.data, self.next = data, data.batches.resumed[0]

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.begin(self.next)
        self.next += 1


class ReconstructionCallback(TrainerCallback):
    """Writes pictures of the reconstructions of the same images while training goes on, and one at the end."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if args.reconstruction_steps and state.global_step % args.reconstruction_steps == 0:
            name = f"step-{state.global_step:07d}.png"
            self._write(args, state, model, Path(args.output_dir) / "reconstructions" / name)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._write(args, state, model, Path(args.output_dir) / PICTURE)

    def _write(self, args, state, model, path: Path):
        picture = reconstruction_picture(model, **self.batch)  # on every process, for sharded models
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
