"""Maps of classes: how well predicted ones agree with annotated ones, and a figure of both."""

import colorsys
import math
from typing import cast

import datasets
import evaluate
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch
from PIL import Image
from torch.nn import functional

from ...utils.plotting import new_figure


BLACK = (0.0, 0.0, 0.0)  # of ignored pixels
LEGEND = 24  # classes that a legend names at most


def confusion(prediction: torch.Tensor, truth: torch.Tensor, classes: int, ignore_index: int) -> torch.Tensor:
    """How many pixels of each class were given which class.

    Args:
        prediction, truth: maps of classes of one shape; pixels whose truth is `ignore_index` do not count.
        classes: their number.

    Returns:
        int64 (classes, classes): rows are what is true, columns what was predicted.
    """
    known = truth != ignore_index
    pairs = truth[known].long() * classes + prediction[known].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def resized_prediction(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The map of classes (height, width) = `size` from logits (classes, rows, columns): the logits are interpolated
    first, as by transformers' `post_process_semantic_segmentation`."""
    return functional.interpolate(logits[None].float(), size, mode="bilinear", align_corners=False)[0].argmax(0)


class MeanIoU(evaluate.Metric):
    """Mean intersection over union, mean accuracy of the classes, accuracy of all pixels, and the IoU of each class,
    from counts that are added up image by image, so that memory stays as it is.

    Classes that were neither annotated nor predicted have no IoU, and those that were not annotated no accuracy; they
    are left out, of the means as well. `evaluate.load("mean_iou")` computes the same, but downloads its script and
    keeps all maps.

    Args:
        names: of the classes.
        ignore_index: pixels of this value are not counted.
    """

    def __init__(self, names: list[str], ignore_index: int = 255):
        super().__init__(keep_in_memory=True)
        self.names, self.ignore_index = names, ignore_index
        self.reset()

    def _info(self):
        pixels = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean intersection over union of maps of classes.",
            citation="",
            inputs_description="predictions, references: maps of class indices (height, width)",
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def reset(self):
        """Forget all that was added."""
        self.counts = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)

    def add_counts(self, counts: torch.Tensor):
        """Add what `confusion` gave for one image, or for several (..., classes, classes)."""
        self.counts += counts.cpu().reshape(-1, *self.counts.shape).sum(0)

    def add_batch(self, *, predictions, references):
        """Add maps of classes (height, width), of any sizes: arrays, tensors or nested lists."""
        for prediction, reference in zip(predictions, references, strict=True):
            pair = (prediction, reference)
            maps = (one if isinstance(one, torch.Tensor) else torch.from_numpy(np.array(one)) for one in pair)
            self.add_counts(confusion(*maps, len(self.names), self.ignore_index))

    def add(self, *, prediction, reference):
        """Add one map."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None) -> dict[str, float]:
        """The figures, in [0, 1], of all that was added since the last call, and of these maps.

        Raises:
            ValueError: if no pixel had a class.
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        counts = self.counts.double()
        self.reset()
        return self._compute(counts)

    def _compute(self, counts):
        if not counts.any():
            raise ValueError(f"references: no pixel has a class, all are {self.ignore_index} (ignored)")
        right, true, predicted = counts.diag(), counts.sum(1), counts.sum(0)
        iou = right / (true + predicted - right)  # NaN for classes that are nowhere
        result = {
            "mean_iou": iou.nanmean().item(),
            "mean_accuracy": (right / true).nanmean().item(),
            "overall_accuracy": (right.sum() / counts.sum()).item(),
        }
        values = zip(self.names, iou.tolist(), strict=True)
        return result | {f"iou_{name}": value for name, value in values if not math.isnan(value)}


def colours(count: int) -> list[tuple[float, float, float]]:
    """A colour (RGB in [0, 1]) for each class, the first one grey: neighbours differ in hue and brightness."""
    others = [
        colorsys.hsv_to_rgb(0.618034 * i % 1, (0.85, 0.5, 0.7)[i % 3], (0.95, 1, 0.65)[i % 3])
        for i in range(max(0, count - 1))
    ]
    return [(0.82, 0.82, 0.82), *others][:count]


def plot_predictions(
    images: list[Image.Image], truths: list[torch.Tensor], predictions: list[torch.Tensor], names: list[str]
) -> Image.Image:
    """A row for each image: itself, its annotation, the prediction; and a legend of the classes to be seen.

    Args:
        images: PIL images.
        truths, predictions: maps of classes (height, width); what is no class is shown black.
        names: of the classes.
    """
    palette = np.array([*colours(len(names)), BLACK])
    seen = sorted({int(value) for maps in (truths, predictions) for one in maps for value in one.unique()})
    shown = [value for value in seen if value < len(names)]
    height, width = truths[0].shape
    figure = new_figure(7.5, min(7.5 * 0.25 * height / width, 4) * len(images) + 0.3, layout=None)
    grid = figure.subplots(len(images), 3, squeeze=False)
    for row, values in zip(grid, zip(images, truths, predictions, strict=True), strict=True):
        image, *maps = values
        row[0].imshow(np.asarray(image))
        for axes, one in zip(row[1:], maps, strict=True):
            index = one.cpu().numpy().astype(np.int64)
            axes.imshow(palette[np.where(index < len(names), index, len(names))], interpolation="nearest")
        for axes in row:
            axes.set_axis_off()
    for axes, title in zip(grid[0], ("image", "annotation", "prediction"), strict=True):
        axes.set_title(title, fontsize=9)
    patches = [Patch(color=palette[value], label=names[value]) for value in shown[:LEGEND]]
    if len(shown) > LEGEND:
        patches.append(Patch(color="white", label=f"and {len(shown) - LEGEND} more"))
    if len(seen) > len(shown):
        patches.append(Patch(color=BLACK, label="(ignored)"))
    figure.legend(handles=patches, loc="center right", fontsize=8, frameon=False)
    figure.subplots_adjust(
        left=0.01, right=0.8, top=1 - 0.25 / figure.get_figheight(), bottom=0.01, wspace=0.03, hspace=0.03
    )
    figure.canvas.draw()
    canvas = cast(FigureCanvasAgg, figure.canvas)  # as `new_figure` makes it
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
