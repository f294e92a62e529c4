"""What becomes of each field of transformers' TrainingArguments here: it has its effect, it is refused, or it has no
meaning for images, which is said when it is given. A field that is in no group fails a test."""

from collections.abc import Collection, Iterator
from dataclasses import fields

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .training import A2MIMTrainingArguments


# Names, as `.split()` gives them.
SUPPORTED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start
    eval_accumulation_steps save_only_model save_strategy save_steps save_on_each_node save_total_limit
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push
    hub_revision load_best_model_at_end metric_for_best_model greater_is_better
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug
    skip_memory_metrics resume_from_checkpoint local_rank
"""

# Other values than the default would do something else than they say, and why.
REFUSED = {
    "train_sampling_strategy": "images come in an order of seed and pass, from which a run resumes exactly",
    "dataloader_in_order": "batches come in order, from which a run resumes exactly",
    "ignore_data_skip": "a run that resumes goes on where its data was, and reads nothing to skip it",
    "optim_target_modules": "is for optimisers of language models (GaLore, APOLLO)",
    "use_liger_kernel": "has kernels for language models only",
    "neftune_noise_alpha": "is noise for embeddings of tokens, of which images have none",
    "include_num_input_tokens_seen": "images have no tokens to count; images_per_second is logged",
    "parallelism_config": "models are not split over devices here; start one process for each, with torchrun",
    "prediction_loss_only": "the metrics are what is evaluated for; to leave evaluation out, see --eval_strategy",
    "eval_do_concat_batches": "the metrics are computed from all batches together",
    "eval_use_gather_object": "what is evaluated is gathered as tensors",
    "batch_eval_metrics": "the trainer of each task knows how its metrics add up",
    "remove_unused_columns": "the trainer of each task knows which columns it needs",
    "label_names": "the trainer of each task knows its labels",
}

# Of these, what does nothing or fails in a trainer that is made in Python as well.
NOT_FOR_IMAGES = (
    *("optim_target_modules", "use_liger_kernel", "neftune_noise_alpha", "include_num_input_tokens_seen"),
    "parallelism_config",
)

# What they are for is not done here.
WITHOUT_MEANING = {
    "average_tokens_across_devices": "a loss is a mean over images",
    "liger_kernel_config": "is for use_liger_kernel",
    "use_cache": "is for text that is generated",
    "include_for_metrics": "the metrics read predictions and labels",
    "length_column_name": "is for texts that are grouped by length",
    "do_train": "what is done follows from the script and its other arguments",
    "do_eval": "there is an evaluation where there are images for it; see --eval_strategy",
    "do_predict": "predictions are drawn after every evaluation",
}

# Of accelerate's configuration: what it would do to loaders, which are not accelerate's in training.
REFUSED_OF_ACCELERATOR = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")

FOR_LANGUAGE_MODELS = ("galore", "apollo", "lomo")  # families of optimisers
FOR_REPORTS = ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
FOR_THE_HUB = ("hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision")
TOTAL = "--total_train_batch_size"
BETAS = ("adam_beta1", "adam_beta2")
FOR_ADAM = (*BETAS, "adam_epsilon")
# Of the arguments of a command, those that only training heeds.
FOR_TRAINING = (
    *("learning_rate", "base_learning_rate", "total_train_batch_size", "batch_scaling", "learning_rate_scaling"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "optim"),
    *("weight_decay", *FOR_ADAM, "max_grad_norm", "lr_scheduler_type", "lr_scheduler_kwargs", "lr_milestones"),
    *("lr_gamma", "warmup_steps", "layer_decay", "layer_decay_layers", "gradient_checkpointing"),
    *("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode", "label_smoothing_factor", "bce_loss"),
    *("bce_target_thresh", "model_ema_decay", "model_ema_warmup", "drop_path", "freeze_encoder"),
    *("crop_scale", "hflip", "vflip", "auto_augment", "color_jitter", "reprob", "remode", "aug_repeats"),
    *("train_image_size", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience"),
    *("early_stopping_threshold", "resume_from_checkpoint"),
)
# Of the arguments of data, those that only choose what is trained on.
FOR_TRAINING_DATA = (
    *("seeds", "labels_per_class", "label_fraction", "label_subset", "max_train_samples", "train_dir"),
)
# Arguments of model and data that do nothing without another one, and those that do nothing beside another one.
NEEDS = {
    **dict.fromkeys(("knn_neighbours", "knn_temperature", "probe_strength"), "knn"),
    "model_revision": "model_name_or_path",
    "dataset_revision": "dataset_name",
    "dataset_config_name": "dataset_name",
    "shuffle_buffer_size": "streaming",
    "monitor_split": "monitor_dataset",
    **dict.fromkeys(("monitor_dir", "monitor_dataset", "monitor_samples", "probe_layers"), "monitor_steps"),
    "remode": "reprob",
}
REPLACED = {
    "train_split": "train_dir",
    "validation_split": "validation_dir",
    "drop_path": "linear_probe",  # a frozen encoder is one that evaluates
    "corruptions": "knn",
}


def check_fields(args: TrainingArguments):
    """Refuse what would not have its effect in the scripts.

    Raises:
        ValueError: naming the field.
    """
    check_loading(args)
    refuse(args, REFUSED)
    check_for_images(args)
    if not hasattr(args, "bce_loss"):
        check_without_labels(args)


def check_for_images(args: TrainingArguments):
    """Refuse what has no meaning for a trainer of images, made by a command or not. Raises as `check_fields`."""
    refuse(args, NOT_FOR_IMAGES)
    if any(str(getattr(option, "value", option)) == "underflow_overflow" for option in args.debug):
        raise ValueError("debug: underflow_overflow cannot look at masks, which are no floating-point numbers")
    optim = str(getattr(args.optim, "value", args.optim))
    if any(family in optim for family in FOR_LANGUAGE_MODELS):
        raise ValueError(f"optim: {optim} chooses parameters of language models by itself; give another")


def check_without_labels(args: TrainingArguments):
    """Refuse what needs one label for each image. Raises as `check_fields`."""
    if args.label_smoothing_factor:
        raise ValueError("label_smoothing_factor: is for classification, which has one label for each image")


def check_loading(args: TrainingArguments):
    """Refuse what would change how images of this package's data sets are loaded, and does not. Raises as
    `check_fields`."""
    refuse(args, ("train_sampling_strategy", "dataloader_in_order"))
    config = args.accelerator_config
    usual = type(config)() if config is not None else None
    for name in REFUSED_OF_ACCELERATOR if config is not None else ():
        if getattr(config, name, None) != getattr(usual, name, None):
            raise ValueError(
                f"accelerator_config: {name} is not supported, as each process takes its share of every batch; leave "
                "it out"
            )


def refuse(args: TrainingArguments, names: Collection[str]):
    """Refuse other values than the default of fields in `REFUSED`. Raises as `check_fields`."""
    defaults = {f.name: f.default for f in fields(args)}
    for name in names:
        if getattr(args, name) != defaults[name]:
            raise ValueError(f"{name}: {REFUSED[name]}; leave --{name} out")


def without_effect(args: A2MIMTrainingArguments, given: Collection[str]) -> Iterator[str]:
    """What was given and does nothing, each with the reason, in words for the log.

    Args:
        given: names of fields that the user gave.
    """
    for name, why in WITHOUT_MEANING.items():
        if name in given:
            yield f"{name} has no effect: {why}"
    if {"learning_rate", "base_learning_rate"} <= set(given):
        yield "base_learning_rate has no effect beside --learning_rate"
    for names, holds, needed in _conditions(args):
        for name in names:
            if name in given and not holds:
                yield f"{name} has no effect without {needed}"


def idle_arguments(given: Collection[str], values: dict) -> Iterator[str]:
    """The same for arguments of model and data.

    Args:
        values: of all of them.
    """
    for name, other in NEEDS.items():
        if name in given and other in values and not values[other]:
            yield f"{name} has no effect without --{other}"
    for name, other in REPLACED.items():
        if name in given and values.get(other):
            yield f"{name} has no effect beside --{other}"


def _optimizer_has(args: A2MIMTrainingArguments) -> tuple[bool, bool]:
    """Whether the optimiser takes the two betas of the arguments, and whether their epsilon."""
    name = args.optimizer_name
    if args.timm_optim is not None:
        from timm.optim import get_optimizer_info  # takes seconds, without which --help is there at once

        info = get_optimizer_info(name)
        return info.has_betas, info.has_eps
    both = ("adam" in name or "ademamix" in name) and name != "grokadamw"
    return both or "lion" in name, both


def _conditions(args: A2MIMTrainingArguments) -> list[tuple[Collection[str], bool, str]]:
    """Fields, whether they have an effect, and what they need for it."""
    best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    best = best or getattr(args, "early_stopping_patience", None) is not None
    plateau = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) == "reduce_lr_on_plateau"
    evaluates, get = args.eval_strategy != IntervalStrategy.NO, getattr
    return [
        (("eval_steps",), args.eval_strategy == IntervalStrategy.STEPS, "--eval_strategy steps"),
        (("eval_delay",), evaluates, "--eval_strategy steps or epoch"),
        (("save_steps",), args.save_strategy == SaveStrategy.STEPS, "--save_strategy steps"),
        (("save_total_limit",), args.save_strategy != SaveStrategy.NO, "checkpoints (--save_strategy steps or epoch)"),
        (("logging_steps",), args.logging_strategy == IntervalStrategy.STEPS, "--logging_strategy steps"),
        (("metric_for_best_model", "greater_is_better"), best or plateau, "--load_best_model_at_end True"),
        (FOR_REPORTS, bool(args.report_to), "--report_to"),
        (FOR_THE_HUB, args.push_to_hub, "--push_to_hub"),
        (BETAS, _optimizer_has(args)[0], "an optimiser that has them (--optim)"),
        (("adam_epsilon",), _optimizer_has(args)[1], "an optimiser that has it (--optim)"),
        (("gradient_checkpointing_kwargs",), bool(args.gradient_checkpointing), "--gradient_checkpointing"),
        (
            ("activation_checkpointing_kwargs",),
            bool(get(args, "activation_checkpointing", False)),
            "--activation_checkpointing",
        ),
        (("fsdp_config",), bool(args.fsdp), "--fsdp"),
        (("batch_scaling",), args.total_train_batch_size is not None, TOTAL),
        (("learning_rate_scaling",), "scaled" in args.batch_note, f"a --learning_rate for another {TOTAL}"),
        (("lr_gamma",), bool(args.lr_milestones), "--lr_milestones"),
        (
            ("lr_scheduler_type", "lr_scheduler_kwargs"),
            not args.lr_milestones,
            "the schedule (--lr_milestones is another)",
        ),
        (("warmup_steps",), args.warms_up, "a schedule that has one (--lr_scheduler_type constant_with_warmup)"),
        (("layer_decay_layers",), args.layer_decay is not None, "--layer_decay"),
        (("num_train_epochs",), args.max_steps <= 0, "leaving out --max_steps, which counts"),
        (("mixup_switch_prob",), bool(get(args, "mixup", 0) and get(args, "cutmix", 0)), "--mixup and --cutmix"),
        (("mixup_prob", "mixup_mode"), bool(get(args, "mixup", 0) or get(args, "cutmix", 0)), "--mixup or --cutmix"),
        (("model_ema_warmup",), get(args, "model_ema_decay", None) is not None, "--model_ema_decay"),
        (
            ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"),
            args.dataloader_num_workers > 0,
            "--dataloader_num_workers",
        ),
    ]
