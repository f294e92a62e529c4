"""Whatever weights a user names, as the start of a model."""

from pathlib import Path
from typing import Any

import timm

from ..configuration_a2mim import A2MIMConfig
from .hub_files import folder_or_id
from .models import Pretrained, open_pretrained
from .weight_files import WEIGHTS_FILES
from .without_config import is_weights_file, open_registered, open_weights_file


def plain_source(source: str | None, architecture: str | None = None) -> str | None:
    """A source as the file system or the Hub has it: without timm's `hf-hub:` and `local-dir:`, and where it is the
    weights of a folder with a config.json, which tells what they are of, the folder."""
    if source is None:
        return None
    source = source.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("local-dir:")
    path, standard = Path(source), {name for pair in WEIGHTS_FILES for name in pair}
    if architecture is None and path.name in standard and path.is_file() and (path.parent / "config.json").is_file():
        return str(path.parent)
    return source


def open_encoder(
    source: str | None = None,
    architecture: str | None = None,
    pretrained: bool = False,
    model_args: dict[str, Any] | None = None,
    image_size: int | list[int] | None = None,
    **hub_kwargs: Any,
) -> Pretrained:
    """The encoder that a model starts from.

    Args:
        source: a folder, a repository of the Hub, or a file of weights (safetensors, or of `torch.save`).
        architecture: of timm: what the weights in a file are of; without `source`, with a tag (`resnet50.a1_in1k`) or
            beside `pretrained`, weights of timm's registry.
        pretrained: take the weights that timm's registry has for `architecture`.
        model_args, image_size: of the encoder in a file, where they differ from timm's own.
        hub_kwargs: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: naming the argument (`model_name_or_path` for `source`) that is wrong.
    """
    source = plain_source(source, architecture)
    if source is None:
        return open_registered(architecture or A2MIMConfig.architecture)
    if pretrained or "." in (architecture or ""):
        flag = "--pretrained" if pretrained else f"--architecture {architecture}"
        raise ValueError(f"model_name_or_path: gives the weights, and {flag} others, of timm; leave one of them out")
    if is_weights_file(source):
        return _open_file(Path(source), architecture, model_args, image_size)
    start = open_pretrained(folder_or_id(source), **hub_kwargs)
    if architecture not in (None, start.config.architecture):
        raise ValueError(
            f"architecture: the weights in --model_name_or_path are for {start.config.architecture}, not "
            f"{architecture}; leave --architecture out, or start a new model without --model_name_or_path"
        )
    return start


def _open_file(
    path: Path, architecture: str | None, model_args: dict[str, Any] | None, image_size: int | list[int] | None
) -> Pretrained:
    if architecture is None:
        raise ValueError(
            f"model_name_or_path: {path} is a file, which does not tell what encoder its weights are of; give "
            "--architecture, the timm model (and --model_args and --image_size, where its own differ)"
        )
    if image_size is None and timm.is_model(architecture) and (own := timm.get_pretrained_cfg(architecture)):
        image_size = list(own.input_size[1:])
    size = {} if image_size is None else {"image_size": image_size}
    return open_weights_file(
        str(path), A2MIMConfig.for_encoder(architecture=architecture, model_args=model_args, **size)
    )
