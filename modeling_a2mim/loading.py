"""Where images come from: what the user names, found through `datasets`, as a prepared dataset or as a stream."""

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image
from transformers.utils.logging import tqdm

from .sources import IMAGE_FILES, LISTED, DatasetSource, ParquetSource, RowSource, TarSource, is_remote


SAMPLE = Path(__file__).resolve().parent.parent / "data"
FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}


def load_images(
    source: str | os.PathLike | None = None,
    split: str = "train",
    *,
    config_name: str | None = None,
    streaming: bool = False,
    every_file: bool = False,
    retries: int = 5,
    **hub_kwargs,
) -> Dataset | RowSource:
    """One split of a dataset with images.

    Args:
        source: a folder of images (nested or not), of parquet or of WebDataset files, or saved by `save_to_disk`; one
            such file, a pattern (`shards/*.tar`) or URL of such files; the id of a dataset on the Hub; `None` for the
            bundled sample.
        split: the name of the split.
        config_name: configuration of a Hub dataset.
        streaming: read on the fly instead of preparing the whole dataset first.
        every_file: take all files of a folder, rather than those whose names say `split`.
        retries: further attempts to read what cannot be read, while streaming.
        hub_kwargs: `revision`, `token` of `datasets.load_dataset`.

    Raises:
        ValueError: naming the source, if it does not exist or holds no images.
    """
    if source is None:
        source = SAMPLE
        if not any(SAMPLE.glob("*.parquet")):
            raise ValueError("the bundled sample is only in a clone of the repository; name a folder or a Hub dataset")
    text, path = str(source), Path(source).expanduser()
    builder, options = text, {}
    pattern = is_remote(text) or any(sign in text for sign in "*?[")
    if pattern or path.is_file():
        suffix = Path(text).suffix
        if suffix not in FILE_BUILDERS:
            raise ValueError(f"{source}: expected a folder or a file ending in {', '.join(FILE_BUILDERS)}")
        builder, options = FILE_BUILDERS[suffix], {"data_files": {split: text if pattern else str(path)}}
    elif path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return load_saved(path, split, streaming)
        suffix = next((s for s in _suffixes(path) if s in IMAGE_FILES or s in FILE_BUILDERS), None)
        if suffix is None:
            raise ValueError(f"{path}: no images found; expected {', '.join(sorted(IMAGE_FILES))} or .parquet")
        builder = str(path)
        if every_file and suffix in FILE_BUILDERS:
            builder, options = FILE_BUILDERS[suffix], {"data_files": {split: str(path / f"**/*{suffix}")}}
        elif every_file and METADATA.isdisjoint(os.listdir(path)):
            dataset = list_images(_files(path), str(path))
            return DatasetSource(dataset, str(path), retries=retries) if streaming else dataset
        elif every_file:
            builder, options = "imagefolder", {"data_files": {split: str(path / "**")}}
    else:
        check_may_be_id(text)
    try:
        if streaming:
            return open_stream(text, builder, split, config_name, retries, **options, **hub_kwargs)
        return datasets.load_dataset(builder, config_name, split=split, **options, **hub_kwargs)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(f"{source}: neither a local folder nor a dataset that the Hub gives: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{source}: no such file: {error}") from error


def check_may_be_id(source: str):
    """Raises ValueError, if what is no file or folder cannot be the id of a dataset on the Hub either."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ValueError(f"{source}: no such file or folder")


def load_saved(path: Path, split: str, streaming: bool) -> Dataset | RowSource:
    """What `save_to_disk` wrote: memory-mapped Arrow files, of which any row can be read.

    Raises:
        ValueError: if there is no such split.
    """
    saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise ValueError(f"{path}: no split {split!r}; there are {', '.join(saved)}")
        saved = saved[split]
    return DatasetSource(saved, str(path)) if streaming else saved


def open_stream(
    name: str,
    builder: str,
    split: str,
    config_name: str | None,
    retries: int,
    data_files: dict | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> RowSource:
    """The files that `datasets` finds for a split, read on the fly.

    Raises:
        ValueError: if there is no such split, or its files cannot be read row by row.
    """
    found = datasets.load_dataset_builder(builder, config_name, data_files=data_files, token=token, revision=revision)
    files = {str(key): list(value) for key, value in (found.config.data_files or {}).items()}
    if split not in files:
        raise ValueError(f"{name}: no split {split!r}; there are {', '.join(files) or 'none'}")
    if not files[split]:
        raise ValueError(f"{name}: no such file")
    # The token is for the Hub alone, not for whatever other host a URL names.
    options = {"token": token} if token and files[split][0].startswith("hf://") else {}
    kind = type(found).__module__.rsplit(".", 1)[-1]
    if kind == "parquet":
        return ParquetSource(name, files[split], found.info.features, options, retries)
    if kind == "webdataset":
        return TarSource(name, files[split], options, retries)
    if kind == "arrow" and not any(map(is_remote, files[split])):
        saved = datasets.concatenate_datasets([Dataset.from_file(file) for file in files[split]])
        return DatasetSource(saved, name, retries=retries)
    images = [file for file in files[split] if Path(file).suffix.lower() in IMAGE_FILES]
    if kind == "imagefolder" and images:
        return DatasetSource(list_images(images, name), name, storage_options=options, retries=retries)
    raise ValueError(
        f"{name}: {kind} files cannot be streamed with exact resume (parquet, WebDataset, image files and local Arrow "
        "files can); leave --streaming out, which prepares them once on the disk"
    )


def list_images(files: Iterable[str], name: str) -> Dataset:
    """A dataset of image files, with a label for each folder that holds some where all lie equally deep, as
    `imagefolder` does; made without a second copy of the list, for millions of files.

    Raises:
        ValueError: if there are none, or a name is no text.
    """
    chunks, labels, depths, part = [], {}, set(), []
    codes: list[np.ndarray] = []
    root, checksum = len(name) if os.path.isdir(name) else 0, 0

    def keep():
        nonlocal checksum
        checksum = zlib.crc32("\n".join(file[root:] for file in part).encode(), checksum)
        chunks.append(pa.array(part, pa.string()))
        folders = [os.path.dirname(file) for file in part]
        depths.update(folder.count("/") for folder in folders)
        names = [os.path.basename(folder) for folder in folders]
        codes.append(np.array([labels.setdefault(n, len(labels)) for n in names], dtype=np.int32))
        part.clear()

    for file in tqdm(files, desc="listing images", unit=" files", delay=3):
        if Path(file).suffix.lower() not in IMAGE_FILES:
            continue
        try:
            file.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{os.fsencode(file)!r}: the name of this file is not UTF-8; rename it") from None
        part.append(file)
        if len(part) == 2**16:
            keep()
    keep()
    paths = pa.chunked_array(chunks, pa.string())
    if not len(paths):
        raise ValueError(f"{name}: no images found; expected {', '.join(sorted(IMAGE_FILES))}")
    empty = pa.nulls(len(paths), pa.binary())
    columns, types = {"image": pa.StructArray.from_arrays([empty, paths.combine_chunks()], ["bytes", "path"])}, {}
    types["image"] = Image()
    if len(labels) > 1 and len(depths) == 1:
        names = sorted(labels)
        ranks = np.argsort(np.argsort(list(labels)))  # of the names in the order of their codes
        columns["label"] = pa.array(ranks[np.concatenate(codes)].astype(np.int64))
        types["label"] = ClassLabel(names=names)
    table = pa.table(columns, schema=Features(types).arrow_schema)
    return Dataset(datasets.table.InMemoryTable(table), fingerprint=f"{LISTED}{checksum:08x}")


def _files(path: Path) -> Iterator[str]:
    """Files below `path` in order, hidden ones and links that lead nowhere left out, folders that links repeat too."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link into a folder above it would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(name for name in files if not name.startswith(".")):
            file = os.path.join(folder, name)
            if not os.path.islink(file) or os.path.exists(file):
                yield file


def _suffixes(path: Path) -> Iterator[str]:
    return (Path(file).suffix.lower() for file in _files(path))


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
        if not path.is_dir():
            check_may_be_id(str(source))
        names = datasets.get_dataset_split_names(str(path if path.is_dir() else source), config_name)
    return next((name for name in ("validation", "valid", "val", "test") if name in names), None)


def find_column(dataset: Dataset | RowSource, kind: type, name: str | None, field: str) -> str:
    """The column that holds images (`kind=datasets.Image`) or labels (`ClassLabel`): the one called `name` if given,
    else the first of that kind. `field` is what the user sets it with, for the message.

    Raises:
        ValueError: if there is no such column.
    """
    features = dataset.features
    columns = list(features)
    if name is not None:
        if name not in columns:
            raise ValueError(f"{field}: the dataset has no column {name!r}; it has {', '.join(columns)}")
        return name
    found = next((column for column in columns if isinstance(features[column], kind)), None)
    usual: Sequence[str] = {
        Image: ("image", "img", "jpg", "jpeg", "png", "webp"),
        ClassLabel: ("label", "labels", "cls"),
    }[kind]
    found = found or next((column for column in usual if column in columns), None)
    if found is None:
        wanted = "images" if kind is Image else "class labels"
        raise ValueError(f"{field}: the dataset has no column of {wanted}; its columns are {', '.join(columns)}")
    return found
