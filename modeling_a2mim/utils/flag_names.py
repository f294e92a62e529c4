"""What an argument that there is not was meant to be."""

import difflib
from collections.abc import Collection


# The names of timm's scripts, of earlier transformers and of its run_mim.py for what is called otherwise here.
ELSEWHERE = {
    "model": "architecture",
    "model_type": "architecture",
    "config_name_or_path": "model_name_or_path",
    "initial_checkpoint": "model_name_or_path",
    "checkpoint": "model_name_or_path",
    "weights": "model_name_or_path",
    "data": "train_dir",
    "data_dir": "train_dir",
    "data_path": "train_dir",
    "dataset": "dataset_name",
    "val_dir": "validation_dir",
    "eval_dir": "validation_dir",
    "test_dir": "validation_dir",
    "train_val_split": "holdout",
    "output": "output_dir",
    "out": "output_dir",
    "resume": "resume_from_checkpoint",
    "img_size": "image_size",
    "input_size": "image_size",
    "in_chans": "num_channels",
    "patch_size": "model_args",
    "mask_size": "mask_patch_size",
    "scale": "crop_scale",
    "aa": "auto_augment",
    "smoothing": "label_smoothing_factor",
    "drop_path_rate": "drop_path",
    "model_ema": "model_ema_decay",
    "batch_size": "per_device_train_batch_size",
    "grad_accum_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_base": "base_learning_rate",
    "sched": "lr_scheduler_type",
    "warmup_epochs": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "opt": "optim",
    "wd": "weight_decay",
    "clip_grad": "max_grad_norm",
    "grad_checkpointing": "gradient_checkpointing",
    "amp": "bf16",
    "torchcompile": "torch_compile",
    "no_cuda": "use_cpu",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "pin_mem": "dataloader_pin_memory",
    "evaluation_strategy": "eval_strategy",
    "patience": "early_stopping_patience",
}


def meant(name: str, known: Collection[str]) -> str:
    """The question for what is meant by an argument, both without dashes before them; empty, if nothing is near."""
    other = ELSEWHERE.get(name.replace("-", "_"))
    names = [other] if other in known else difflib.get_close_matches(name, known)
    return f"did you mean --{' or --'.join(names)}?" if names else ""
