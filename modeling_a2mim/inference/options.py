"""How a model is run over images, whatever it predicts."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..analysis.comparison import DTYPES, check_device
from ..data.loading import has_card, local_path
from ..data.reading import is_remote
from .images import is_saved
from .running import process_state


MOST_WORKERS = 4  # by default


@dataclass(frozen=True)
class RunOptions:
    """What does not change which rows there are.

    Args:
        batch_size: images in a forward pass.
        num_workers: processes that read images, for each process that runs the model; `None` for up to 4, of the cores
            that there are.
        device: of torch; `None` for the GPU of this process if it has one, else the CPU.
        dtype: of autocast, a name of `DTYPES`.
        overwrite: replace what is there already.

    Raises:
        ValueError: naming the field.
    """

    batch_size: int = 64
    num_workers: int | None = None
    device: str | None = None
    dtype: str = "float32"
    overwrite: bool = False

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, got {self.batch_size}")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"num_workers: must be at least 0, got {self.num_workers}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        check_device(self.device)

    @property
    def workers(self) -> int:
        """How many processes read images."""
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(0, min(MOST_WORKERS, cores // process_state(self.device).num_processes - 1))

    @property
    def place(self) -> torch.device:
        """Where the model of this process is."""
        own = process_state(self.device)
        several = own.num_processes > 1 and self.device == "cuda"  # each its own
        return own.device if self.device is None or several else torch.device(self.device)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a forward pass: no gradients, and autocast."""
        dtype = DTYPES[self.dtype]
        with torch.inference_mode(), torch.autocast(self.place.type, dtype=dtype, enabled=dtype is not None):
            yield


def check_local(
    model: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    revision: str | None = None,
    dataset_revision: str | None = None,
    config_name: str | None = None,
    split: str | None = None,
):
    """Refuse what is said of a repository on the Hub where a file or folder of this machine (or a URL) is named, which
    it would have no effect on.

    Args:
        model: as the user named it.
        images: as the user named them.
        revision: of the model.
        dataset_revision: of the images.
        config_name: of the images; a folder with the card of a dataset has configurations, too, and reads them where a
            split is named.
        split: of the images.

    Raises:
        ValueError: naming the flag: `revision`, `dataset_revision` or `dataset_config_name`.
    """
    if revision is not None and os.path.exists(os.path.expanduser(model)):
        raise ValueError(f"revision: is of a model on the Hub, and {model} is on this machine; leave it out")
    names = [str(name) for name in images]
    here = [name for name in names if local_path(name).exists() or is_remote(name) or set("*?[") & set(name)]
    if not here:
        return
    where = f"{here[0]} is {'a URL' if is_remote(here[0]) else 'on this machine'}"
    if dataset_revision is not None:
        raise ValueError(f"dataset_revision: is of a dataset on the Hub, and {where}; leave it out")
    path = local_path(names[0])
    if config_name is not None and not (path.is_dir() and has_card(path) and not is_saved(path)):
        raise ValueError(f"dataset_config_name: is of a dataset on the Hub, and {where}; leave it out")
    if config_name is not None and split is None:
        raise ValueError(
            f"dataset_config_name: has no effect without --split, as all images in {names[0]} are taken; give both, "
            "or none"
        )


def ready(model: nn.Module, options: RunOptions) -> nn.Module:
    """A model in evaluation mode, where it is run."""
    return model.eval().to(options.place)
