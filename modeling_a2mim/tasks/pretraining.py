"""Pre-training by its arguments: their model (a new one, one that goes on, or a new one on an encoder that has learned
elsewhere), images and trainer."""

import logging
from typing import Any

from transformers import set_seed

from ..arguments.data import PreTrainingDataArguments
from ..arguments.model import PreTrainingModelArguments
from ..arguments.settings import given_settings, new_config, settings_for
from ..arguments.training import A2MIMTrainingArguments, data_seed
from ..configuration_a2mim import A2MIMConfig
from ..data.augmentation import pretraining_augmentation
from ..data.monitor import load_monitor, open_monitor
from ..data.overlap import evaluates_on_training
from ..data.splits import image_samples, load_pretraining_splits
from ..data.transforms import PreTrainTransform
from ..export.loading import earlier_of, load_pretraining_model, pretraining_config
from ..export.provenance import monitor_data, pretraining_provenance
from ..export.record import pretraining_runs
from ..modeling_a2mim import A2MIMForPreTraining
from ..models.continuing import with_settings
from ..models.start import pretraining_model_from
from ..pretrained import MASKED, PRETRAINING_CONFIG, Pretrained, find_optional_file, folder_or_id, is_weights_file
from ..training.advice import before_training
from ..training.best_model import RECONSTRUCTION_METRICS, with_best_model
from ..training.monitor import check_best_metric, figure_names
from ..training.resuming import flags
from ..training.trainer import A2MIMTrainer
from .start import encoder_provenance, is_new, open_start
from .stored_images import with_found_values


PRETRAINING = "pre-training model"  # as a kind

logger = logging.getLogger("a2mim")


def make_trainer(
    model_args: PreTrainingModelArguments, data_args: PreTrainingDataArguments, args: A2MIMTrainingArguments
) -> A2MIMTrainer:
    """From the parsed arguments to a trainer that is ready to `run()`.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    start = open_pretraining_start(model_args, args.hub_token)
    if is_new(model_args):
        new_config(model_args)  # what is wrong in it is said before images are looked for
    train, evaluation, evaluated = load_pretraining_splits(data_args, args.hub_token)
    monitored = open_monitor(data_args, args.hub_token)

    model_args = with_found_values(
        model_args, data_args, train, config=_known_config(model_args, start, args.hub_token)
    )

    set_seed(args.seed)
    split = data_args.validation_split
    seen = evaluated is None and evaluates_on_training(data_args, split, train, evaluation)
    provenance = {"task": MASKED, **pretraining_provenance(data_args, seen)}
    provenance["monitor_data"] = monitor_data(data_args, evaluated)
    if evaluated is not None:
        provenance |= {"evaluated_on": None, "evaluation_note": None, "evaluation_data": evaluated}
    model, origin = build_pretraining_model(model_args, start, args.hub_token)
    provenance |= origin
    config = model.config
    augmentation = pretraining_augmentation(data_args)
    crop = PreTrainTransform(
        config,
        (data_args.crop_scale[0], data_args.crop_scale[1]),
        max_pixels=data_args.max_image_pixels,
        **augmentation,
    )
    whole = PreTrainTransform(
        config,
        train=False,
        max_pixels=data_args.max_image_pixels,
        crop_pixels=data_args.crop_pixels,
        min_content=data_args.min_content,
    )
    seed = data_seed(args)
    train_samples = image_samples(data_args, train, crop, seed)
    eval_samples = image_samples(data_args, evaluation, whole, seed)
    shown, names = eval_samples.spread(8)
    monitor = load_monitor(data_args, monitored, eval_samples, evaluated, whole)
    check_best_metric(args.metric_for_best_model, monitor)
    left_out = () if config.frequency_loss_weight else ("frequency_loss",)
    metrics = {name: more for name, more in RECONSTRUCTION_METRICS.items() if name not in left_out}
    args = with_best_model(args, metrics | figure_names(monitor))
    site = model.a2mim.site
    logger.info(
        "%s images; %s: %s parameters; mask token at %s (%d x %d); %d of %d cells masked; learning rate %g",
        f"{len(train_samples):,}",
        config.architecture,
        f"{model.num_parameters():,}",
        site.module,
        *site.layout.grid,
        config.num_masked,
        config.mask_grid[0] * config.mask_grid[1],
        args.learning_rate,
    )
    trainer = A2MIMTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        picture_samples=shown,
        picture_names=names,
        monitor=monitor,
        monitor_steps=data_args.monitor_steps,
        probe_layers=data_args.probe_layers,
        provenance=provenance,
        flags=flags(model_args, data_args),
    )
    warnings = before_training(model, len(train_samples), trainer.args, from_weights=not is_new(model_args))
    for warning in warnings if args.should_log else ():
        logger.warning("%s", warning)
    return trainer


def open_pretraining_start(args: PreTrainingModelArguments, token: str | None = None) -> Pretrained | None:
    """The model whose encoder a new pre-training model starts from; `None` if a whole one goes on, or there is nothing
    to start from.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    source = args.model_name_or_path
    if is_new(args) or _goes_on(args, token):
        return None
    start = open_start(args, token)
    if source is not None and start.kind == PRETRAINING:
        return None
    start.found  # noqa: B018  # read now: what is wrong with it is said before images are looked for
    return start


def _known_config(
    args: PreTrainingModelArguments, start: Pretrained | None, token: str | None = None
) -> A2MIMConfig | None:
    """That of the model whose weights a run starts from; `None` for a new one."""
    if start is not None:
        return start.config
    where = {"revision": args.model_revision, "token": token}
    return None if is_new(args) else pretraining_config(folder_or_id(args.model_name_or_path), **where)


def build_pretraining_model(
    args: PreTrainingModelArguments, start: Pretrained | None = None, token: str | None = None
) -> tuple[A2MIMForPreTraining, dict[str, Any]]:
    """The model, and what its record says of where it comes from.

    Args:
        args: of the model.
        start: as `open_pretraining_start` gives it.
        token: of the Hub.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if start is not None:
        model, loaded = pretraining_model_from(start, args.preset, **given_settings(args))
        config, size = model.config, " x ".join(map(str, model.config.input_size))
        pixels = f"images of {size} px with mean {config.image_mean} and std {config.image_std}"
        logger.info("weights: %s, for %s: %s", start.describe(), pixels, loaded.describe())
        return model, encoder_provenance(args, token, model)
    if args.model_name_or_path is None:
        return A2MIMForPreTraining(new_config(args)), {}
    source, where = folder_or_id(args.model_name_or_path), {"revision": args.model_revision, "token": token}
    model = load_pretraining_model(source, **where)
    model, changed = with_settings(model, settings_for(args, model.config))
    # The root beside pretraining/ may be a classifier, whose own runs have not changed the pre-training model.
    earlier = pretraining_runs(earlier_of(source, **where))
    return model, {"earlier": earlier or [{}], **({"changed": changed} if changed else {})}  # an unknown one is one


def _goes_on(args: PreTrainingModelArguments, token: str | None) -> bool:
    """Whether there is a whole pre-training model beside the encoder."""
    source = args.model_name_or_path
    if source is None or args.pretrained or is_weights_file(source):
        return False
    where = {"revision": args.model_revision, "token": token}
    without = "mask token and decoder are new"
    return find_optional_file(folder_or_id(source), PRETRAINING_CONFIG, without, **where) is not None
