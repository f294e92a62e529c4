"""Own data sets of a user, whose samples draw from the global generators of random numbers."""

import zlib
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback, TrainingArguments

from ..arguments.training import data_seed
from ..data.transforms import generators_kept, seed_generators


class SeededReads(Dataset):
    """The samples of a map-style data set. What is drawn for a batch from torch's generator, NumPy's and Python's
    depends on seed, epoch and the keys of the batch alone, and the generators are as before afterwards: a run that
    resumes draws the same again, with any number of workers.

    Args:
        samples: with `__getitem__` and `__len__`, and `__getitems__` if it reads several at once.
        seed: of what is drawn.
    """

    def __init__(self, samples, seed: int):
        self.samples, self.seed = samples, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # which persistent workers see change

    def __len__(self) -> int:
        return len(self.samples)

    def __getattr__(self, name: str) -> Any:
        """What else the data set has, such as weights that a sampler of the user's reads."""
        if name == "samples" or name.startswith("__"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.samples, name)

    def set_epoch(self, epoch: int):
        """Set the epoch, from 0, also of samples that ask for it."""
        self.epoch.fill_(epoch)
        if hasattr(self.samples, "set_epoch"):
            self.samples.set_epoch(epoch)

    def __getitem__(self, key) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list) -> list:
        read = getattr(self.samples, "__getitems__", None)
        with generators_kept():
            seed_generators(self.seed, int(self.epoch), zlib.crc32(repr(keys).encode()))
            return [self.samples[key] for key in keys] if read is None else read(keys)


class SeededReadsCallback(TrainerCallback):
    """Tells `SeededReads` which epoch begins: of a run that resumes inside one, accelerate does not."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        samples = getattr(train_dataloader, "dataset", None)
        if isinstance(samples, SeededReads):
            samples.set_epoch(int(state.epoch or 0))


def seeded(samples, args: TrainingArguments):
    """`samples` as `SeededReads`; as they are, if they are a stream, or stored rows without a transform."""
    stored = isinstance(samples, datasets.Dataset) and samples.format["type"] != "custom"
    if stored or isinstance(samples, IterableDataset) or not hasattr(samples, "__len__"):
        return samples
    return SeededReads(samples, data_seed(args))
