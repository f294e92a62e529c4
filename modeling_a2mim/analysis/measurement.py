"""The measurement behind `interactions`: what a classifier says of many subsets of the cells of images."""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterable, Sequence, Sized
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..utils.files import atomic_write
from .strength import RATIOS, InteractionSettings, InteractionStrength


logger = logging.getLogger("a2mim")

ELSE = "; name another file (another --out), or remove it (--overwrite)"
LEAST_IMAGES = 10  # before an interval is narrow enough


def interaction_strength(
    model: nn.Module,
    images: Iterable[torch.Tensor],
    labels: Iterable[int] | None = None,
    grid: int = 14,
    ratios: Sequence[float] = RATIOS,
    pairs: int | None = 50,
    contexts: int | None = 50,
    value: str = "log_odds",
    fill: str = "zero",
    sampling: str = "shared",
    seed: int = 0,
    *,
    batch_size: int = 256,
    dtype: torch.dtype | None = None,
    interval_width: float | None = None,
    resume: str | os.PathLike | None = None,
    description: str = "images",
    total: int | None = None,
) -> InteractionStrength:
    """How strongly pairs of patches interact in a classifier, for contexts of each order.

    Cells outside a subset S of the grid are filled, and v(S) is what the model then says of the image's class. For a
    pair (i, j) and a context S of m other cells dv(i, j, S) = v(S+i+j) - v(S+i) - v(S+j) + v(S); I_ij(m) is its mean
    over contexts, I(m) the mean of |I_ij(m)| over images and pairs, and J(m) = I(m) / mean over orders of I(m).
    With few contexts |I_ij(m)| holds noise as well, which does not cancel: compare
    what was measured with the same number.

    Args:
        model: gives logits (batch, classes), or an output that has them as `logits`. It is run in evaluation mode, on
            its own device and in its own type, and put back.
        images: (channels, height, width) each, normalised; a tensor, or anything to be read one by one.
        labels: class of each image; without it, the one that the model gives the whole image.
        grid: cells along each side, n = grid * grid; it need not divide the image.
        ratios: orders m as shares of the n - 2 other cells.
        pairs: of each image, of cells at most 2 apart; `None` for all.
        contexts: of each pair in each order; `None` for all there are (small grids).
        value: "log_odds", log(p / (1 - p)); "log_prob", log p; or "logit".
        fill: of cells that are not shown: "zero" of the normalised image, or the "mean" colour of each image.
        sampling: "shared": contexts that pairs share (`contexts.contexts_of`), which saves a quarter to a half of the
            passes; "windows": also pairs that share cells (`contexts.draw_pairs`), which saves more, but images have
            to be more; "independent": neither, as in the release. All have the same expectation.
        seed: of pairs and contexts, which follow from it and the image's number alone, whatever the model.
        batch_size: masked images in a forward pass.
        dtype: run under autocast with this type; differences are taken in float64 in any case.
        interval_width: stop as soon as the 95% intervals of all J(m) are at most so wide (after 10 images).
        resume: a file (.npz) that is written after every few images, and gone on from if it is there.
        description, total: of the progress bar; how many images there are, where they cannot be counted.

    Raises:
        ValueError: naming the argument that cannot be; `resume`, if the file is of another measurement; `images`, if
            there are none, if they end before the labels or the other way round, or if the model gives values that
            are not finite.
    """
    settings = InteractionSettings(grid, tuple(ratios), pairs, contexts, value, fill, sampling, seed)
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
    if interval_width is not None and interval_width <= 0:
        raise ValueError(f"interval_width: must be positive, got {interval_width}")
    if isinstance(images, Sized) and isinstance(labels, Sized) and len(images) != len(labels):
        raise ValueError(f"labels: expected one for each of {len(images)} images, got {len(labels)}")
    stream = ((image, None) for image in images) if labels is None else zip(images, labels, strict=True)
    total = len(images) if isinstance(images, Sized) else total
    run = _Measurement(settings, _Values(model, settings, batch_size, dtype), None if resume is None else Path(resume))
    training = model.training
    model.eval()
    try:
        with tqdm(total=total, desc=description, unit=" images") as bar:
            while group := list(islice(stream, run.group_size)):
                run.add(group)
                bar.update(len(group))
                if interval_width is not None and run.width() <= interval_width:
                    logger.info("%s: %d are enough for intervals of %g", description, run.images, interval_width)
                    break
    finally:
        model.train(training)
    return run.result()


class _Values:
    """v(S) of many subsets of many images, in full batches."""

    def __init__(self, model: nn.Module, settings: InteractionSettings, batch_size: int, dtype: torch.dtype | None):
        parameter = next(model.parameters(), torch.empty(0))
        self.model, self.settings, self.batch_size, self.dtype = model, settings, batch_size, dtype
        self.device, self.own_type = parameter.device, parameter.dtype
        cells = torch.arange(settings.players, device=self.device)
        self.byte, self.shift = cells // 8, (7 - cells % 8).to(torch.uint8)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, labels: list[int | None], owners: np.ndarray, packed: np.ndarray):
        """Values (subsets,) in float64.

        Args:
            images: (images, channels, height, width).
            labels: their classes; `None`: what the model says.
            owners: (subsets,), the image of each subset.
            packed: (subsets, bytes), see `contexts.Subsets`.
        """
        images = images.to(self.device, self.own_type, non_blocking=True)
        own = labels[0] is None
        classes = self._logits(images).argmax(1) if own else torch.as_tensor(labels, device=self.device)
        of_subsets, cells = (torch.from_numpy(array).to(self.device) for array in (owners, packed))
        fill = images.mean((2, 3), keepdim=True) if self.settings.fill == "mean" else images.new_zeros(())
        found = []
        for of, bits in zip(of_subsets.split(self.batch_size), cells.split(self.batch_size), strict=True):
            shown = self._pixels(bits, images.shape[-2:])
            logits = self._logits(torch.where(shown, images[of], fill[of] if fill.ndim else fill))
            self._check(labels, logits.shape[1])
            found.append(self._value(logits, classes[of]))
        return torch.cat(found).double().cpu().numpy()  # waits for the device, once

    def _pixels(self, packed: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Subsets as pixels that are shown, (subsets, 1, height, width)."""
        grid = self.settings.grid
        cells = (packed[:, self.byte] >> self.shift & 1).bool().view(-1, grid, grid)
        rows, columns = (torch.arange(side, device=self.device) * grid // side for side in size)
        return cells[:, rows[:, None], columns][:, None]

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            output = self.model(pixels)
        logits = getattr(output, "logits", output)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _check(self, labels: list[int | None], count: int):
        wrong = next((label for label in labels if label is not None and not 0 <= label < count), None)
        if wrong is not None:
            raise ValueError(f"labels: there is a label {wrong}, but the model has {count} classes, from 0")
        if count < 2 and self.settings.value != "logit":
            raise ValueError(f"value: {self.settings.value} needs two classes or more, the model has {count}")

    def _value(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        own = logits.gather(1, classes[:, None])[:, 0]
        if self.settings.value == "logit":
            return own
        if self.settings.value == "log_prob":
            return own - logits.logsumexp(1)
        # log p - log(1 - p) without ever computing 1 - p, which is 0 for a sure model
        return own - logits.scatter(1, classes[:, None], -torch.inf).logsumexp(1)


class _Measurement:
    """What was measured so far, of how many images, and the file that keeps it."""

    def __init__(self, settings: InteractionSettings, values: _Values, file: Path | None):
        self.settings, self.values, self.file = settings, values, file
        self.images, self.passes = 0, 0
        self.found: list[dict[str, Any]] = []
        self.known = None if file is None or not file.is_file() else self._read()
        _, subsets = settings.draw(0)
        # Of several images at once where one fills but a few batches, so that few batches are not full.
        masks = sum(len(one.packed) for one in subsets)
        self.group_size = -(-8 * values.batch_size // masks)

    def add(self, group: list[tuple[torch.Tensor, int | None]]):
        """Measure the next images, or take from the file what is known of them."""
        images = torch.stack([image for image, _ in group])
        labels = [None if label is None else int(label) for _, label in group]
        if self.known is not None and self.images < len(self.known["digests"]):
            group_digests = [_digest(*pair) for pair in zip(images, labels, strict=True)]
            known = self.known["digests"][self.images : self.images + len(group)].tolist()
            if known != group_digests[: len(known)]:
                raise ValueError(f"resume: {self.file.name} is a measurement of other images or labels{ELSE}")
        numbers = range(self.images, self.images + len(group))
        fresh = [n for n in numbers if self.known is None or n >= len(self.known["digests"])]
        for number in numbers:
            if number not in fresh:
                names = ("interactions", "pairs", "weights", "digests", "passes")
                self.found.append({name: self.known[name][number] for name in names})
        if fresh:
            first = fresh[0] - self.images
            self._measure(fresh, images[first:], labels[first:])
        self.images += len(group)
        self.passes = sum(int(one["passes"]) for one in self.found)
        if fresh and self.file is not None:
            self._write()

    def _measure(self, numbers: list[int], images: torch.Tensor, labels: list[int | None]):
        drawn = [self.settings.draw(number) for number in numbers]
        subsets = [list(of_orders) for _, of_orders in drawn]
        counts = [[len(one.packed) for one in of_orders] for of_orders in subsets]
        owners = np.repeat(np.arange(len(numbers)), [sum(of) for of in counts])
        packed = np.concatenate([one.packed for of_orders in subsets for one in of_orders])
        values = self.values(images, labels, owners, packed)
        if not np.isfinite(values).all():
            number = numbers[owners[np.flatnonzero(~np.isfinite(values))[0]]]
            raise ValueError(f"images: the model gives image {number} (from 0) values that are not finite")
        parts = iter(np.split(values, np.cumsum([c for of in counts for c in of])[:-1]))
        for (pairs, _), of_orders, count, image, label in zip(drawn, subsets, counts, images, labels, strict=True):
            found = [_interactions(next(parts)[one.indices]) for one in of_orders]
            self.found.append(
                {
                    "interactions": np.stack(found),
                    "pairs": pairs.cells,
                    "weights": pairs.weights,
                    "digests": _digest(image, label),
                    "passes": sum(count) + (label is None),
                }
            )

    def result(self) -> InteractionStrength:
        if not self.found:
            raise ValueError("images: there are none")
        names, orders = ("interactions", "pairs", "weights"), np.array(self.settings.orders)
        interactions, pairs, weights = (np.stack([one[name] for one in self.found]) for name in names)
        return InteractionStrength(self.settings, orders, interactions, pairs, weights, self.passes)

    def width(self) -> float:
        """The largest width of the intervals of J(m)."""
        if self.images < LEAST_IMAGES:
            return float("inf")
        low, high = self.result().strength_interval().T
        return float((high - low).max())

    @cached_property
    def _identity(self) -> str:
        """Settings and weights, as text."""
        digest = hashlib.sha256()
        for name, tensor in self.values.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return json.dumps({**asdict(self.settings), "dtype": str(self.values.dtype), "weights": digest.hexdigest()})

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.file, allow_pickle=False) as file:
                known = {name: file[name] for name in file.files}
            identity = json.loads(str(known["identity"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"resume: {self.file} is no file of a measurement: {error}") from error
        own = json.loads(self._identity)
        other = [name for name in own if own[name] != identity.get(name)]
        if other:
            raise ValueError(f"resume: {self.file} was measured with other {', '.join(other)}{ELSE}")
        return known

    def _write(self):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.stack([one[name] for one in self.found]) for name in self.found[0]}
        with atomic_write(self.file) as temporary, open(temporary, "wb") as file:
            np.savez(file, identity=self._identity, **arrays)


def _interactions(values: np.ndarray) -> np.ndarray:
    """|I_ij(m)| of each pair from v(S), v(S+i), v(S+j), v(S+i+j), (pairs, contexts, 4)."""
    return np.abs((values @ np.array([1.0, -1.0, -1.0, 1.0])).mean(1))


def _digest(image: torch.Tensor, label: int | None) -> str:
    pixels = image.detach().float().contiguous().cpu().numpy()
    return hashlib.sha256(pixels.tobytes() + str(label).encode()).hexdigest()
