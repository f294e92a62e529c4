"""The commands from Python, each in one call that takes their arguments and gives the trainer and the metrics back."""

import argparse
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .commands import embed as embed_command
from .commands import finetune as finetune_command
from .commands import pretrain as pretrain_command
from .data.loading import local_path
from .inference.vectors import Embeddings, read_embeddings
from .recipes import as_flags
from .training.encoder_trainer import EncoderTrainer


class Result(NamedTuple):
    """What a run gives.

    Attributes:
        trainer: that has trained, with its `model`; `None` where nothing is trained, or several times.
        metrics: of the training and the last evaluation.
    """

    trainer: EncoderTrainer | None
    metrics: dict[str, Any]


Source = str | os.PathLike


def pretrain(data: Source | Sequence[Source] | None = None, *, output_dir: Source, **arguments: Any) -> Result:
    """Pre-train an encoder on images, as `a2mim pretrain` does.

    Args:
        data: a folder or file of images, all of which are used (`--train_dir`), or the id of a dataset on the Hub
            (`--dataset_name`); several are mixed. `None` for the bundled sample of a clone.
        output_dir: where the encoder is written, with its card and `pretraining/`.
        arguments: of the command, by their names (`architecture="resnet50"`, `image_size=[96, 128]`, ...): those of
            the encoder, the mask, the data, and transformers' `TrainingArguments`. `recipe` and `config` as well.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    argv = _flags(data, {"output_dir": output_dir, **arguments})
    return Result(*pretrain_command.run(pretrain_command.parse_arguments(argv)))


def finetune(data: Source | None = None, *, output_dir: Source, **arguments: Any) -> Result:
    """Fine-tune, probe or evaluate an encoder on labelled images, as `a2mim finetune` does.

    Args:
        data: a folder with a sub-folder of images for each class (`--train_dir`), or the id of a dataset on the Hub.
        output_dir: where the model is written, with its card and figures.
        arguments: of the command, by their names (`model_name_or_path="a2mim-r50"`, `validation_dir=...`, `task=...`).

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    argv = _flags(data, {"output_dir": output_dir, **arguments})
    return Result(*finetune_command.run(finetune_command.parse_arguments(argv)))


def embed(
    model: Source, images: Source | Sequence[Source], *, out: Source | None = None, **arguments: Any
) -> Embeddings:
    """A vector for each image, as `a2mim embed` does.

    Args:
        model: a folder, or an id on the Hub, of an encoder or classifier of this package, of timm or of transformers.
        images: a folder, a file or the id of a dataset on the Hub, or several image files.
        out: the file that keeps them, `.parquet` or `.npy`, beside which `neighbors` and `duplicates` are written;
            without it the vectors are only returned.
        arguments: of the command, by their names (`layer="all"`, `normalize=True`, `neighbors=5`, ...).

    Returns:
        `files`, `vectors` (files, features) and `metadata`; images that could not be read are logged and left out.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    parser = embed_command.build_parser()
    sources = _sources(images, "images")
    actions = {action.dest: action for action in parser._actions}
    for name, value in arguments.items():
        if name not in actions or name in ("help", "model", "images", "out"):
            raise ValueError(f"arguments: embed has no {name!r}; it has {', '.join(sorted(actions))}")
        if (choices := actions[name].choices) is not None and value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        kind = bool if actions[name].nargs == 0 else actions[name].type
        if kind in (bool, int, float) and value is not None and not isinstance(value, (int, kind)):
            raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
        if actions[name].nargs == "+" and value is not None:
            alone = isinstance(value, str | int | float | os.PathLike)
            arguments[name] = _plain([value] if alone else list(value))
    if found := [name for name in ("neighbors", "duplicates") if out is None and arguments.get(name) is not None]:
        raise ValueError(f"out: {found[0]} writes a table and a page beside the vectors; name the file of these")
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(temporary) / "vectors.parquet" if out is None else Path(out)
        defaults = vars(parser.parse_args(["--out", str(kept), "--", str(model), *(str(s) for s in sources)]))
        embed_command.embed(argparse.Namespace(**{**defaults, **arguments}))
        return read_embeddings(kept)


def _flags(data: Any, arguments: dict[str, Any]) -> list[str]:
    """The command line of a call; arguments that are `None` are not given."""
    sources = [] if data is None else _sources(data, "data")
    local = [local_path(source).exists() for source in sources]
    if any(local) and not all(local):
        missing, there = sources[local.index(False)], sources[local.index(True)]
        raise ValueError(f"data: {missing} is no file or folder, unlike {there}")
    if given := [name for name in ("train_dir", "dataset_name") if sources and arguments.get(name) is not None]:
        raise ValueError(f"{given[0]}: give either it or data")
    if sources:
        arguments = {"train_dir" if any(local) else "dataset_name": [os.fspath(s) for s in sources], **arguments}
    plain = {name: _plain(value) for name, value in arguments.items() if value is not None}
    return as_flags(plain, field="arguments")


def _sources(given: Any, field: str) -> list[Source]:
    """What is named, as a list. Raises ValueError naming `field`, if it is nothing, or no name."""
    several = isinstance(given, Iterable) and not isinstance(given, str | os.PathLike | bytes | Mapping)
    sources = list(given) if several else [given]
    if not sources or not all(isinstance(source, str | os.PathLike) and str(source) for source in sources):
        raise ValueError(
            f"{field}: expected a folder, a file or the id of a dataset on the Hub, got a {type(given).__name__}; a "
            "dataset in memory goes to the trainer itself, see examples/"
        )
    return sources


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else getattr(value, "value", value)
