"""Images from any `datasets` source to batches. What happens to a sample of a map-style dataset (crop, flip, mask)
depends on the seed, the pass over the data and the sample alone, never on global state, workers or what came before;
in a stream it depends on the worker and the position, too.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset
from PIL import Image as PILImage
from timm.data import create_transform
from torch.utils import data as torch_data
from torchvision.transforms import InterpolationMode, v2

from .configuration_a2mim import A2MIMConfig
from .masking import random_mask


SAMPLE = Path(__file__).resolve().parent.parent / "data"
IMAGE_FILES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}


def load_images(
    source: str | os.PathLike | None = None,
    split: str = "train",
    *,
    config_name: str | None = None,
    streaming: bool = False,
    every_file: bool = False,
    **hub_kwargs,
) -> Dataset | IterableDataset:
    """One split of a dataset with images.

    Args:
        source: a folder of images (nested or not), of parquet or of WebDataset files, or saved by `save_to_disk`; one
            such file; the id of a dataset on the Hub; `None` for the bundled sample.
        split: the name of the split.
        config_name: configuration of a Hub dataset.
        streaming: read on the fly instead of preparing the whole dataset first.
        every_file: take all files of a folder, rather than those whose names say `split`.
        hub_kwargs: `revision`, `token`, `cache_dir` of `datasets.load_dataset`.

    Raises:
        ValueError: naming the source, if it does not exist or holds no images.
    """
    if source is None:
        source = SAMPLE
        if not any(SAMPLE.glob("*.parquet")):
            raise ValueError("the bundled sample is only in a clone of the repository; name a folder or a Hub dataset")
    path = Path(source).expanduser()
    options = {"split": split, "streaming": streaming, **hub_kwargs}
    if path.is_file():
        if path.suffix not in FILE_BUILDERS:
            raise ValueError(f"{path}: expected a folder or a file ending in {', '.join(FILE_BUILDERS)}")
        return datasets.load_dataset(FILE_BUILDERS[path.suffix], data_files={split: str(path)}, **options)
    if path.is_dir():
        return _load_folder(path, options, every_file)
    if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise ValueError(f"{source}: no such file or folder")
    try:
        return datasets.load_dataset(str(source), config_name, **options)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(f"{source}: neither a local folder nor a dataset that the Hub gives: {error}") from error


def find_validation_split(source: str | None = None, config_name: str | None = None) -> str | None:
    """The split of a dataset that is meant for evaluation, if its name says so. `source` as in `load_images`."""
    path = Path(SAMPLE if source is None else source).expanduser()
    if path.is_file():
        return None
    if (path / "dataset_dict.json").exists():
        names = [folder.name for folder in path.iterdir() if folder.is_dir()]
    elif (path / "state.json").exists():
        return None
    else:
        names = datasets.get_dataset_split_names(str(path if path.is_dir() else source), config_name)
    return next((name for name in ("validation", "valid", "val", "test") if name in names), None)


def _load_folder(path: Path, options: dict, every_file: bool) -> Dataset | IterableDataset:
    split = options["split"]
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"{path}: no split {split!r}; there are {', '.join(saved)}")
            saved = saved[split]
        return saved.to_iterable_dataset() if options["streaming"] else saved
    suffix = next((s for s in _suffixes(path) if s in IMAGE_FILES or s in FILE_BUILDERS), None)
    if suffix is None:
        raise ValueError(f"{path}: no images found; expected {', '.join(sorted(IMAGE_FILES))} or .parquet")
    if not every_file:
        return datasets.load_dataset(str(path), **options)
    builder = FILE_BUILDERS.get(suffix, "imagefolder")
    pattern = str(path / "**") if builder == "imagefolder" else str(path / f"**/*{suffix}")
    return datasets.load_dataset(builder, data_files={split: pattern}, **options)


def _suffixes(path: Path) -> Iterator[str]:
    """Endings of the files below `path`, hidden ones left out, without listing them all first."""
    for _, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(name).suffix.lower() for name in files if not name.startswith("."))


def find_column(dataset: Dataset | IterableDataset, kind: type, name: str | None, field: str) -> str:
    """The column that holds images (`kind=datasets.Image`) or labels (`ClassLabel`): the one called `name` if given,
    else the first of that kind. `field` is what the user sets it with, for the message.

    Raises:
        ValueError: if there is no such column.
    """
    features = dataset.features or {}
    columns = list(features) or (list(next(iter(dataset))) if isinstance(dataset, IterableDataset) else [])
    if name is not None:
        if name not in columns:
            raise ValueError(f"{field}: the dataset has no column {name!r}; it has {', '.join(columns)}")
        return name
    found = next((column for column in columns if isinstance(features.get(column), kind)), None)
    usual = {Image: ("image", "img", "jpg", "jpeg", "png", "webp"), ClassLabel: ("label", "labels", "cls")}[kind]
    found = found or next((column for column in usual if column in columns), None)
    if found is None:
        wanted = "images" if kind is Image else "class labels"
        raise ValueError(f"{field}: the dataset has no column of {wanted}; its columns are {', '.join(columns)}")
    return found


def to_pixels(image, num_channels: int) -> PILImage.Image | torch.Tensor:
    """A sample as something that torchvision transforms: a PIL image of 1 (grey), 3 (RGB) or 4 (RGBA) channels, or for
    any other number a uint8 tensor (channels, height, width) from an array (height, width, channels) or that.

    Raises:
        ValueError: if it has another number of channels, or is no image.
    """
    if isinstance(image, PILImage.Image):
        mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(num_channels)
        if mode is None:
            raise ValueError(f"num_channels: {num_channels}, but the dataset holds {image.mode} images")
        if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
            image = PILImage.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
        return image if image.mode == mode else image.convert(mode)
    if image is None:
        raise ValueError("a sample holds no image")
    array = torch.from_numpy(np.ascontiguousarray(image))
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[0] != num_channels:
        array = array.permute(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != num_channels or array.dtype not in (torch.uint8, torch.float32):
        raise ValueError(
            f"num_channels: expected images with {num_channels} channel(s) as uint8 or float32 in [0, 1], "
            f"found an array {tuple(array.shape)} of {array.dtype}"
        )
    return array.contiguous()


class PreTrainTransform:
    """Random resized crop, flip, normalisation, and a mask (the paper's augmentation); or for evaluation only a resize
    of the whole image.

    Args:
        config: image size, channels, normalisation and mask.
        crop_scale: smallest and largest share of the image's area that a crop covers.
        train: whether to crop and flip.
    """

    def __init__(self, config: A2MIMConfig, crop_scale: tuple[float, float] = (0.8, 1.0), train: bool = True):
        self.config = config
        size, bicubic = list(config.input_size), InterpolationMode.BICUBIC
        random = [v2.RandomResizedCrop(size, scale=crop_scale, interpolation=bicubic), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose(
            [
                *(random if train else [v2.Resize(size, interpolation=bicubic)]),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(config.image_mean, config.image_std),
                v2.ToPureTensor(),
            ]
        )

    def __call__(self, image) -> dict[str, torch.Tensor]:
        config = self.config
        pixel_values = self.transform(to_pixels(image, config.num_channels))
        return {
            "pixel_values": pixel_values,
            "bool_masked_pos": random_mask(1, config.mask_grid, config.num_masked)[0],
        }


class FineTuneTransform:
    """timm's augmentation, or timm's evaluation transform as `AutoImageProcessor` applies it to the exported model.

    Args:
        pretrained_cfg: size, normalisation, crop and interpolation (`export.timm_pretrained_cfg`).
        train: whether to augment.
        options: keyword arguments of `timm.data.create_transform` for training.
    """

    def __init__(self, pretrained_cfg: dict, train: bool = True, **options):
        self.num_channels = pretrained_cfg["input_size"][0]
        settings = {k: pretrained_cfg[k] for k in ("interpolation", "mean", "std", "crop_pct")}
        settings |= {"crop_mode": pretrained_cfg.get("crop_mode")}
        settings |= {"color_jitter": None, **options} if train else {}
        self.transform = create_transform(tuple(pretrained_cfg["input_size"]), is_training=train, **settings)

    def __call__(self, image) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.transform(to_pixels(image, self.num_channels))}


@contextlib.contextmanager
def seeded(*identity: int):
    """Draw from torch's CPU generator, and from Python's and NumPy's, as the identity says; put them back after."""
    import random

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    first, second = np.random.SeedSequence(identity).generate_state(2)
    torch.default_generator.manual_seed(int(first) << 32 | int(second))
    random.seed(int(first))
    np.random.seed(int(second))
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


class ImageSamples(torch_data.Dataset):
    """A map-style dataset of samples. Its keys are (pass, index), as `PassSampler` gives them, or an index alone.

    Args:
        dataset: rows with images.
        transform: an image to a dict of tensors.
        image_column, label_column: names of columns; labels are left out if `None`.
        seed: of everything random in `transform`.
    """

    def __init__(
        self, dataset: Dataset, transform: Callable, image_column: str, label_column: str | None = None, seed: int = 0
    ):
        columns = [image_column] + ([label_column] if label_column else [])
        self.dataset = dataset.select_columns(columns)
        self.transform, self.image_column, self.label_column, self.seed = transform, image_column, label_column, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        number, index = key if isinstance(key, tuple) else (0, key)
        try:
            row = self.dataset[index]
            with seeded(self.seed, number, index):
                sample = self.transform(row[self.image_column])
        except (OSError, ValueError) as error:
            raise ValueError(f"row {index} of the dataset, column {self.image_column!r}: {error}") from error
        return sample if self.label_column is None else {**sample, "labels": torch.tensor(row[self.label_column])}


class PassSampler(torch_data.Sampler):
    """All indices once, in an order that depends on the seed and the number of the pass; gives (pass, index)."""

    def __init__(self, length: int, seed: int = 0):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)


class StreamedSamples(torch_data.IterableDataset):
    """A streamed dataset of samples, shuffled through a buffer. Arguments as in `ImageSamples`."""

    def __init__(self, dataset: IterableDataset, transform, image_column, label_column=None, seed=0, buffer_size=1000):
        self.dataset = dataset.shuffle(seed=seed, buffer_size=buffer_size) if buffer_size else dataset
        self.transform, self.image_column, self.label_column, self.seed = transform, image_column, label_column, seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch_data.get_worker_info()
        for number, row in enumerate(self.dataset):
            with seeded(self.seed, self.epoch, worker.id if worker else 0, number):
                sample = self.transform(row[self.image_column])
            yield sample if self.label_column is None else {**sample, "labels": torch.tensor(row[self.label_column])}
