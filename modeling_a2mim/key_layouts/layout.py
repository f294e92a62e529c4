"""What is known of a family: which of timm's encoders it is, and what transformers calls its weights."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from .names import Rename, Weights


@dataclass(frozen=True)
class KeyLayout:
    """How transformers lays out the encoders of one family.

    Args:
        fields: from its configuration `architecture`, `model_args`, `image_size`; raises ValueError for what timm's
            encoder would compute otherwise.
        renames: from a stored name to timm's, where `attn.q`, `attn.k` and `attn.v` are still apart. Both
            the names that save_pretrained writes, which are those of earlier releases, and those of the modules.
        left_over: regular expressions, of stored names that are no part of the encoder.
        norm_eps: of timm's layer norms; `None` if the configuration has none, or `fields` sets it.
        unused: names of more of those, which cannot be told by the name alone, from the configuration and all names.
        separate_biases: see `names.fuse_qkv`.
        finish: what is left to do to the weights under timm's names.
        has_positions: whether the encoder is built for the size of its images; else it takes any.
    """

    fields: Callable[[PreTrainedConfig], dict[str, Any]]
    renames: tuple[Rename, ...]
    left_over: tuple[str, ...]
    norm_eps: float | None = None
    unused: Callable[[PreTrainedConfig, Collection[str]], set[str]] | None = None
    separate_biases: bool = False
    finish: Callable[[Weights], Weights] | None = None
    has_positions: bool = True
