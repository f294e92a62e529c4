"""What the arguments say of the weights that a run starts from, and what its record says of them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from ..arguments.model import EncoderArguments
from ..arguments.settings import given_settings
from ..encoders.timm_config import is_timm
from ..export.loading import earlier_of, origin_of
from ..export.record import read_record
from ..key_layouts import LAYOUTS
from ..modeling_a2mim import find_core
from ..pretrained import Pretrained, folder_or_id, is_weights_file, open_encoder, open_registered
from ..pretrained.without_config import RegisteredWeights, WeightsFile


def is_new(args: EncoderArguments) -> bool:
    """Whether the encoder has no weights to start from."""
    return args.model_name_or_path is None and not (args.pretrained or "." in (args.architecture or ""))


def open_start(args: EncoderArguments, token: str | None = None) -> Pretrained | None:
    """The model whose encoder a run starts from; `None` for new weights.

    Args:
        args: `model_name_or_path` names a folder, a repository of the Hub or a file of weights; `architecture` with a
            tag or beside `pretrained`, weights of timm's registry.
        token: of the Hub.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if args.model_name_or_path is None and args.architecture is None:
        raise ValueError("model_name_or_path: give either it or, to train from scratch, --architecture")
    if is_new(args):
        return None
    given = given_settings(args)
    return open_encoder(
        args.model_name_or_path,
        args.architecture,
        args.pretrained,
        **{name: given[name] for name in ("model_args", "image_size") if name in given},
        revision=args.model_revision,
        token=token,
    )


def open_model_of_task(args: EncoderArguments, kinds: Collection[str], token: str | None = None) -> Pretrained:
    """The model in `model_name_or_path`, for `--eval_only`.

    Raises:
        ValueError: naming the argument, if that is no model of one of these kinds.
    """
    start = open_start(args, token)
    if start is None or start.kind not in kinds:
        found = "" if start is None else f"; {start.place} holds {start.what}"
        raise ValueError(f"model_name_or_path: --eval_only needs a model of this task ({' or '.join(kinds)}){found}")
    return start


# For the record


def task_of(args: EncoderArguments) -> str:
    """What is done with the encoder, as the training record has it."""
    if getattr(args, "linear_probe", False):
        return "linear probing"
    if getattr(args, "knn", False):
        return "k-NN and logistic regression on frozen features"
    return "training from scratch" if is_new(args) else "fine-tuning"


def base_model_of(args: EncoderArguments) -> str | None:
    """The encoder's id on the Hub, or the one that its folder says it was pushed to; `None` if there is none."""
    source = args.model_name_or_path
    if source is None and not is_new(args):
        return f"timm/{open_registered(args.architecture).source}"
    if source is None or is_weights_file(source):
        return None
    return read_record(source).get("repo_id") if Path(source).is_dir() else folder_or_id(source)


def encoder_provenance(args: EncoderArguments, token: str | None = None, model: nn.Module | None = None) -> dict:
    """Where the encoder comes from, as the training record has it: `base_model`, `start` (the kind of model, in
    words), `weights` (what became of those that `model` started from), and `earlier` if its runs are known."""
    start = None if is_new(args) else open_start(args, token)
    if start is None:
        return {"base_model": None}
    found: dict[str, Any] = {"base_model": base_model_of(args), "start": origin_of(start)}
    loaded = None if model is None else find_core(model).loaded
    if loaded is not None:
        found["weights"] = loaded.record()
    if isinstance(start, (RegisteredWeights, WeightsFile)):
        return found
    earlier = earlier_of(start.source, **start.hub_kwargs)
    if not earlier and not (is_timm(start.data) or start.data.get("model_type") in LAYOUTS):
        earlier = [{}]  # it has a run behind it, which is not known
    return {**found, **({"earlier": earlier} if earlier else {})}
