"""How a model is run over images, whatever it predicts."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .running import process_state


DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


def check_device(device: str | None):
    """Refuse a device on which nothing can be computed here.

    Raises:
        ValueError: naming `device`.
    """
    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # its type depends on the kind of device
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"device: {device} cannot be used here; leave it out, or give cpu ({first})") from error


def ready(model: nn.Module, options: RunOptions) -> nn.Module:
    """A model in evaluation mode, where it is run."""
    return model.eval().to(options.place)
