"""How a model is run over images, whatever it predicts."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import nn


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
        try:
            device = None if self.device is None else torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device: there is no {self.device!r}, expected such as cpu or cuda") from error
        if device is not None and device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device: {self.device}, but torch finds no GPU here; leave it out, or give cpu")

    @property
    def workers(self) -> int:
        """How many processes read images."""
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(0, min(MOST_WORKERS, cores // PartialState().num_processes - 1))

    @property
    def place(self) -> torch.device:
        """Where the model of this process is."""
        own = PartialState(cpu=self.device == "cpu")
        several = own.num_processes > 1 and self.device == "cuda"  # each its own
        return own.device if self.device is None or several else torch.device(self.device)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around a forward pass: no gradients, and autocast."""
        dtype = DTYPES[self.dtype]
        with torch.inference_mode(), torch.autocast(self.place.type, dtype=dtype, enabled=dtype is not None):
            yield


def ready(model: nn.Module, options: RunOptions) -> nn.Module:
    """A model in evaluation mode, where it is run."""
    return model.eval().to(options.place)
