"""Every image of what the user names, each once, as a model takes it, or with the reason why it cannot be read."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from datasets import Dataset, Image
from torch.utils import data as torch_data

from ..data.columns import find_column
from ..data.decoding import is_image_file
from ..data.formats.cache import is_compressed
from ..data.formats.census import IMAGES, Census
from ..data.formats.image_folders import LeftOut, walk
from ..data.formats.listing import list_images
from ..data.formats.opening import open_files
from ..data.loading import load_images, local_path, one_format, split_names
from ..data.pages import with_pages
from ..data.sources import DatasetSource, RowSource
from ..utils.value_range import SAMPLES


def open_every_image(
    sources: Sequence[str | os.PathLike],
    *,
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    **hub_kwargs: Any,
) -> RowSource:
    """All images of what is named. Names of folders and files mean neither splits nor classes here, unless `split` is
    given; what is left out (hidden files, files of other formats) is logged.

    Args:
        sources: a folder of images or of shards, a file of a format of `data.formats.census.FORMATS`, the id of a
            dataset on the Hub; or any number of image files.
        split: of a Hub dataset, or of a folder; needed where a dataset has several.
        config_name: configuration of a Hub dataset.
        image_column: the column of the images; found if not given.
        hub_kwargs: `revision`, `token`.

    Raises:
        ValueError: naming the source that is missing, holds no images, or has several splits of which none is chosen.
    """
    names = [str(source) for source in sources]
    if not names:
        raise ValueError("images: expected a folder, a file or the id of a dataset")
    if "revision" in hub_kwargs and split is None:  # the Hub is asked for the splits of today
        raise ValueError("split: give it beside --dataset_revision, whose splits may be others than those of today")
    found: Dataset | RowSource
    if all(os.path.isfile(name) and is_image_file(name) for name in names):
        if split is not None:
            raise ValueError("split: has no effect on image files, all of which are taken; leave it out")
        found, root = list_images(names, "images"), os.path.commonpath([os.path.abspath(n + "/..") for n in names])
    elif len(names) > 1:
        other = next(name for name in names if not (os.path.isfile(name) and is_image_file(name)))
        raise ValueError(f"images: {other} is no image file; several can be given of these alone")
    else:
        found, root = _open(names[0], split, config_name, image_column, hub_kwargs), names[0]
    source = DatasetSource(found, root) if isinstance(found, Dataset) else found
    if not len(source):
        raise ValueError(f"{names[0]}: no images found")
    return source.select(find_column(source, Image, image_column, "image_column_name"))


def _open(
    name: str, split: str | None, config_name: str | None, image_column: str | None, hub_kwargs: dict
) -> Dataset | RowSource:
    path = local_path(name)
    if split is None and (path.is_file() or (path.is_dir() and not is_saved(path))):
        if path.is_dir():
            left_out = LeftOut(str(path))
            kind, files = Census.of(walk(str(path), left_out)).choose(str(path))
            left_out.say()
            if kind == IMAGES:
                return list_images(filter(is_image_file, walk(str(path), LeftOut(str(path)))), name)
        else:
            kind, files = one_format([str(path)]), [str(path)]
        streaming = not any(map(is_compressed, files))  # of which no part can be read alone
        return open_files(kind, name, files, "train", streaming=streaming, retries=5, image_column=image_column)
    if split is None:
        splits = _splits(path, name, config_name)
        if len(splits) != 1:
            raise ValueError(f"split: {name} has {', '.join(splits) or 'none'}; choose one with --split")
        split = splits[0]
    return load_images(
        name, split, config_name=config_name, streaming=True, image_column=image_column, needs="images", **hub_kwargs
    )


def is_saved(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` wrote."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _splits(path, name: str, config_name: str | None) -> list[str]:
    if (path / "state.json").exists():
        return ["train"]  # the only one there is, whatever it is called
    if path.is_dir():
        return list(datasets.load_from_disk(str(path)))
    return split_names(name, config_name)


class Batch(NamedTuple):
    """Some rows in order.

    Attributes:
        rows: their numbers.
        good: (rows,) bool, which of them could be read.
        pixel_values: (those that could, channels, height, width) float32, normalised, or what `join` made of their
            samples; `None` if there are none.
        errors: for each row why not, `None` for a good one.
    """

    rows: list[int]
    good: torch.Tensor
    pixel_values: Any
    errors: list[str | None]


class InferenceImages(torch_data.Dataset):
    """The rows of a source, each as a model takes it, or with the reason why it cannot be.

    Args:
        source: rows, whose column of images is selected.
        transform: a stored image to a dict with `pixel_values`, raising ValueError for what is no image for it.
        whole: give all that `transform` does of an image, and not its `pixel_values` alone.
    """

    def __init__(self, source: RowSource, transform: Callable, whole: bool = False):
        spec = getattr(transform, "spec", None)
        if spec is not None and spec.pages == SAMPLES:
            source = with_pages(source, spec.stored_channels)
        self.source, self.transform, self.whole = source, transform, whole

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int) -> str:
        """What to call a row: its file, relative to the folder that was named, or its number."""
        return self.source.file_name(row) or f"row {row}"

    def stored(self, row: int) -> Any:
        """The image as it is stored (see `data.decoding.open_image`), or the BrokenImage that says why not."""
        return self.source.read([row])[0][0]

    def __getitems__(self, rows: list[int]) -> list[tuple[int, Any]]:
        return [(row, self._sample(image)) for row, (image, _) in zip(rows, self.source.read(rows), strict=True)]

    def __getitem__(self, row: int) -> tuple[int, Any]:
        return self.__getitems__([row])[0]

    def _sample(self, image: Any) -> Any:
        try:
            if isinstance(image, ValueError):
                raise image
            sample = self.transform(image)
            return sample if self.whole else sample["pixel_values"]
        except ValueError as error:
            return error


def collate(found: list[tuple[int, Any]], join: Callable[[list], Any] = torch.stack) -> Batch:
    """Rows of `InferenceImages` as a batch; `join` makes one of the samples of those that could be read."""
    good = [value for _, value in found if not isinstance(value, ValueError)]
    return Batch(
        [row for row, _ in found],
        torch.tensor([not isinstance(value, ValueError) for _, value in found]),
        join(good) if good else None,
        [str(value) if isinstance(value, ValueError) else None for _, value in found],
    )
