"""How much of a classifier's accuracy is left on images that are corrupted as in ImageNet-C (`corruptions`).

What is reported is accuracy, and its mean over corruptions and severities. It is not the mCE of ImageNet-C, which
divides errors by those of AlexNet, and so is defined for ImageNet alone.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import Normalize
from transformers import default_data_collator
from transformers.utils.logging import tqdm

from ..data.dataset import ImageSamples
from ..data.pixel_spec import PixelSpec
from ..data.transforms import FineTuneTransform, refuse_cutting
from ..utils.tables import markdown_table
from .corruptions import BENCHMARKS, CORRUPTIONS, SEVERITIES, check_corruptions, corrupt, published_size, to_bytes


class CorruptedTransform(FineTuneTransform):
    """timm's evaluation transform with a corruption of what the classifier sees: after the crop, before normalisation.
    What is random is drawn from NumPy's generator, and differs between corruptions and severities of one image.

    Args:
        pretrained_cfg, spec: as for `FineTuneTransform`.
        corruption: one of `CORRUPTIONS`.
        severity: 1 to 5.

    Raises:
        ValueError: if there is no such corruption or severity, or the range of values cuts nothing off.
    """

    def __init__(self, pretrained_cfg: dict, corruption: str, severity: int, spec: PixelSpec | None = None):
        check_corruptions([corruption], [severity])
        super().__init__(pretrained_cfg, train=False, spec=spec)
        refuse_cutting("corruptions", corruption, self.spec.value_range)
        steps = self.transform.transforms
        assert isinstance(steps[-1], Normalize)
        steps.insert(-1, _Corruption(corruption, severity))


class _Corruption:
    """float (channels, height, width) in [0, 1] to the same, in steps of 1/255."""

    def __init__(self, corruption: str, severity: int):
        self.corruption, self.severity = corruption, severity

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        drawn = np.random.randint(2**32, size=4, dtype=np.uint32).tolist()
        generator = np.random.default_rng((CORRUPTIONS.index(self.corruption), self.severity, *drawn))
        image = corrupt(to_bytes(pixels.permute(1, 2, 0).numpy()), self.corruption, self.severity, generator)
        return torch.from_numpy(image).permute(2, 0, 1) / 255


@torch.no_grad()
def evaluate_corruptions(
    model: nn.Module,
    samples: ImageSamples,
    pretrained_cfg: dict,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 64,
    num_workers: int = 0,
) -> dict:
    """Accuracy on clean images, and on those of each corruption at each severity. Corrupted images depend on the seed
    of the samples, corruption, severity and row alone. Where torch.distributed is initialised, the processes share the
    batches, and all get the result.

    Args:
        model: gives `logits` for `pixel_values`; it is run in evaluation mode and put back.
        samples: labelled, as for evaluation on clean images, with `FineTuneTransform(pretrained_cfg, train=False)`.
        pretrained_cfg: as for `FineTuneTransform`.
        corruptions, severities: which of `CORRUPTIONS` and `SEVERITIES`.
        batch_size: of each process.
        num_workers: that load in each process.

    Returns:
        for JSON: `clean_accuracy`; `mean_corruption_accuracy`, over all corruptions and severities;
        `mean_corruption_error`, what that lacks to 1 (not mCE); `relative_robustness`, the mean divided by the clean
        accuracy, None where that is 0; `severities`; `corruptions`, for each its `accuracy` at each of the severities,
        and their `mean`; `images`, how many there are; `constants`, the benchmark from which the severities are.

    Raises:
        ValueError: if a corruption or severity is unknown or named twice, or there are no images.
    """
    check_corruptions(corruptions, severities)
    if not len(samples):
        raise ValueError("corruptions: there are no images to evaluate on")
    names = [(corruption, severity) for corruption in corruptions for severity in severities]
    clean_transform = cast(FineTuneTransform, samples.transform)
    transforms = [CorruptedTransform(pretrained_cfg, *name, clean_transform.spec) for name in names]
    sets = _Sets(samples, [clean_transform, *transforms])

    # One loader for all sets, since starting workers takes seconds on some platforms.
    parallel = distributed.is_available() and distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if parallel else (0, 1)
    batches = _Batches(len(sets.transforms), len(samples), batch_size, rank, world)
    loader = DataLoader(sets, batch_size=None, sampler=batches, num_workers=num_workers)
    device = next(model.parameters()).device
    right = torch.zeros(len(sets.transforms), dtype=torch.int64, device=device)
    training = model.training
    model.eval()
    try:
        with tqdm(loader, desc="corruptions", unit=" batches", leave=False, disable=rank > 0) as progress:
            for number, batch in progress:
                progress.set_postfix_str("clean" if number == 0 else "{} {}".format(*names[number - 1]))
                logits = model(pixel_values=batch["pixel_values"].to(device)).logits
                right[number] += (logits.argmax(-1) == batch["labels"].to(device)).sum()
    finally:
        model.train(training)
    if parallel:
        distributed.all_reduce(right)

    clean, *corrupted = (right.cpu().double() / len(samples)).tolist()
    accuracies = np.reshape(corrupted, (len(corruptions), len(severities)))
    mean = float(accuracies.mean())
    return {
        "clean_accuracy": clean,
        "mean_corruption_accuracy": mean,
        "mean_corruption_error": 1 - mean,
        "relative_robustness": mean / clean if clean else None,
        "severities": list(severities),
        "corruptions": {
            corruption: {"accuracy": row.tolist(), "mean": float(row.mean())}
            for corruption, row in zip(corruptions, accuracies, strict=True)
        },
        "images": len(samples),
        "constants": BENCHMARKS[published_size(*pretrained_cfg["input_size"][1:])],
    }


class _Sets(Dataset):
    """Samples with one of several transforms. A key is a batch: the number of the transform, and rows."""

    def __init__(self, samples: ImageSamples, transforms: list[FineTuneTransform]):
        self.samples, self.transforms = copy.copy(samples), transforms

    def __getitem__(self, key: tuple[int, list[int]]) -> tuple[int, dict[str, torch.Tensor]]:
        number, rows = key
        self.samples.transform = self.transforms[number]
        return number, default_data_collator(self.samples.__getitems__(rows))


class _Batches(Sampler):
    """Keys for `_Sets`, set after set; the processes take turns within each."""

    def __init__(self, sets: int, rows: int, batch_size: int, rank: int = 0, world: int = 1):
        self.sets, self.rows, self.batch_size = sets, rows, batch_size
        self.starts = range(rank * batch_size, rows, world * batch_size)

    def __len__(self) -> int:
        return self.sets * len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for number in range(self.sets):
            for start in self.starts:
                yield number, list(range(start, min(start + self.batch_size, self.rows)))


def corruption_table(result: dict) -> str:
    """What `evaluate_corruptions` returns as a table in Markdown: accuracy of each corruption at each severity, means,
    and a line that sums up."""
    severities, rows = result["severities"], result["corruptions"]
    means = np.mean([row["accuracy"] for row in rows.values()], axis=0)
    named = [(name.replace("_", " "), *row["accuracy"], row["mean"]) for name, row in rows.items()]
    named.append(("**mean**", *means, result["mean_corruption_accuracy"]))
    table = markdown_table(
        ("corruption", *(f"severity {severity}" for severity in severities), "mean"),
        ((name, *(f"{value:.3f}" for value in values)) for name, *values in named),
    )
    relative = result["relative_robustness"]
    kept = "" if relative is None else f", {relative:.3f} of that on clean images"
    return (
        f"{table}\n\nAccuracy on {result['images']} images: {result['clean_accuracy']:.3f} clean, "
        f"{result['mean_corruption_accuracy']:.3f} corrupted{kept}. Severities of {result['constants']}. "
        "This is not mCE, which divides errors by those of AlexNet on ImageNet."
    )
