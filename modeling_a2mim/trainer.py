"""`A2MIMTrainer`: transformers' Trainer with both loss terms in its logs, the paper's parameter groups, pictures of
reconstructions, checkpoints without pickled arguments, and a plain timm / transformers folder at the end."""

from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_utils import HubStrategy, get_last_checkpoint

from .analysis.reconstruction import reconstruction_picture
from .data import ImageSamples, PassSampler, PreTrainTransform
from .export import UPLOADED_FILES, export_model
from .modeling_a2mim import A2MIMForPreTraining
from .optimization import parameter_groups


LOSS_TERMS = ("spatial_loss", "frequency_loss")
PICTURE = "reconstruction.png"
CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


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

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, ImageSamples):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = PassSampler(len(dataset), seed)
        # accelerate does not reach the sampler of a resumed pass on several processes.
        self.callback_handler.callbacks = [c for c in self.callback_handler.callbacks if type(c) is not PassCallback]
        self.add_callback(PassCallback(sampler))
        return sampler

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
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        """Write the folder that users load and the Hub gets (see `export`); Trainer itself saves checkpoints."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            export_model(model, output_dir or self.args.output_dir, self.pretraining_model)

    def _save(self, output_dir=None, state_dict=None):
        # Trainer would pickle its arguments here, the Hub token among them.
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

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
        if self.args.hub_strategy == HubStrategy.EVERY_SAVE:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")


class PassCallback(TrainerCallback):
    """Tells the sampler which pass over the data begins."""

    def __init__(self, sampler: PassSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


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


def find_checkpoint(value: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint to resume from: `value` itself, or the newest in it; with `True` or `"last"` the newest in
    `output_dir`.

    Raises:
        ValueError: if there is none, or if it is incomplete.
    """
    if value is None or value is False or str(value).lower() == "false":
        return None
    latest = value is True or str(value).lower() in ("true", "last")
    folder = Path(output_dir if latest else value)
    if not folder.is_dir():
        raise ValueError(f"resume_from_checkpoint: there is no folder {folder}")
    if not (folder / "trainer_state.json").exists():
        newest = get_last_checkpoint(str(folder))
        if newest is None:
            raise ValueError(f"resume_from_checkpoint: {folder} holds no checkpoint-N with a trainer_state.json")
        folder = Path(newest)
    missing = [name for name in CHECKPOINT_FILES if not (folder / name).exists()]
    if missing:
        raise ValueError(f"resume_from_checkpoint: {folder} is incomplete, it lacks {', '.join(missing)}")
    return str(folder)


def check_output_dir(output_dir: str, resume_from_checkpoint: str | bool | None):
    """Refuse to start a new run over the checkpoints of another.

    Raises:
        ValueError: if `output_dir` holds checkpoints and the run does not resume.
    """
    folder = Path(output_dir)
    if folder.is_file():
        raise ValueError(f"output_dir: {folder} is a file")
    if not resume_from_checkpoint and folder.is_dir() and get_last_checkpoint(str(folder)):
        raise ValueError(
            f"output_dir: {folder} holds checkpoints of another run; continue it with --resume_from_checkpoint last, "
            "or name another folder"
        )
