"""The model that the arguments of pre-training name: a new one, one that goes on, or a new one on an encoder that has
learned elsewhere."""

import logging
from typing import Any

from ..arguments.model import PreTrainingModelArguments
from ..arguments.settings import given_settings, new_config, settings_for
from ..export.loading import earlier_of, load_pretraining_model
from ..export.record import pretraining_runs
from ..modeling_a2mim import A2MIMForPreTraining
from ..models.continuing import with_settings
from ..models.start import pretraining_model_from
from ..pretrained import PRETRAINING_CONFIG, Pretrained, find_optional_file, folder_or_id, is_weights_file
from .start import encoder_provenance, is_new, open_start


PRETRAINING = "pre-training model"  # as a kind

logger = logging.getLogger("a2mim")


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
