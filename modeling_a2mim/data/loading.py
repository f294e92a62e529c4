"""From what the user names (a folder, files, a URL, an id on the Hub) to rows: a prepared dataset, or a source that is
read on the fly."""

import contextlib
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HFValidationError

from .decoding import is_image_file
from .formats.census import FORMATS, IMAGES, METADATA, Census, format_of, hub_census
from .formats.image_folders import LeftOut, for_use, walk
from .formats.listing import list_images, list_split, load_folder, load_split, with_metadata
from .formats.named_splits import split_files
from .formats.opening import BUILDERS, open_files
from .reading import is_remote
from .shards import ParquetSource
from .sources import DatasetSource, RowSource


logger = logging.getLogger("a2mim")

SAMPLE = Path(__file__).resolve().parents[2] / "data"
SIGNS = ("*", "?", "[", "]", "{", "}", "::")  # of patterns and chained URLs


def load_images(
    source: str | os.PathLike | None = None,
    split: str = "train",
    *,
    config_name: str | None = None,
    streaming: bool = False,
    every_file: bool = False,
    retries: int = 5,
    image_column: str | None = None,
    train: bool = True,
    needs: str = "columns",
    **hub_kwargs: Any,
) -> Dataset | RowSource:
    """One split of a dataset with images.

    Args:
        source: a folder of images (nested or not) or of files of one of `census.FORMATS`, or saved by `save_to_disk`;
            one such file, a pattern (`shards/*.tar`) or URL of such files; the id of a dataset on the Hub; `None` for
            the bundled sample. What is there as a file or folder is that, whatever signs are in its name.
        split: the name of the split.
        config_name: configuration of a Hub dataset.
        streaming: read on the fly instead of preparing the whole dataset first.
        every_file: take all files of a folder, rather than those whose names say `split`.
        retries: further attempts to read what cannot be read, while streaming.
        image_column: the column of the images, for formats in which rows depend on it; found if not given.
        train: with `every_file`, leave out the images that the names of their folders say are for evaluation; else
            those for training.
        needs: what the images are read for: `images` alone (a bad metadata file is then ignored), `labels` (images
            without one are left out where others have one), or whatever `columns` there are.
        hub_kwargs: `revision`, `token` of `datasets.load_dataset`.

    Returns:
        Rows with a column of images (see `find_column`), and others, such as `label`: a `datasets.Dataset`, or where
        streaming a `RowSource`, of which any row can be read by its number.

    Raises:
        ValueError: naming the source, if it does not exist or holds no images, or what of it cannot be read.
        ReadError: naming a file that could not be read, however often it was tried.
    """
    is_sample = source is None
    if is_sample:
        source = SAMPLE
        if not any(SAMPLE.glob("*.parquet")):
            raise ValueError("the bundled sample is only in a clone of the repository; name a folder or a Hub dataset")
    text, path = str(source), local_path(source)
    opened: dict[str, Any] = {"streaming": streaming, "retries": retries, "token": hub_kwargs.get("token")}
    opened |= {"image_column": image_column, "first_folder": every_file}
    if path.is_file():
        return open_files(one_format([text]), str(path), [str(path)], split, **opened)
    if path.is_dir():
        return open_folder(
            text, path, split, config_name, every_file, train, needs, opened, log=not is_sample, **hub_kwargs
        )
    if not is_remote(text) and any(sign in text for sign in "*?["):
        return open_pattern(text, split, opened)
    builder = text
    options: dict[str, Any] = {}
    if is_remote(text):
        builder, options = BUILDERS[one_format([text])], {"data_files": {split: text}}
    else:
        check_may_be_id(text)
    with _named(text):
        return open_remote(text, builder, split, config_name, opened, needs=needs, **options, **hub_kwargs)


def open_folder(
    name: str,
    path: Path,
    split: str,
    config_name: str | None,
    every_file: bool,
    train: bool,
    needs: str,
    opened: dict,
    log: bool,
    **hub_kwargs: Any,
) -> Dataset | RowSource:
    """A folder on this machine: what `save_to_disk` saved, or files of the format that holds the most images, or what
    its card says. Arguments and errors as `load_images`.

    Args:
        name: what the user called it.
        opened: arguments of `open_files`.
        log: whether to say what is left out.
    """
    root, streaming, retries = str(path), opened["streaming"], opened["retries"]
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return load_saved(path, split, streaming)
    kind, files = Census.of(walk(root, LeftOut(root))).choose(root, log=log)
    if every_file and kind != IMAGES:
        return open_files(kind, root, for_use(root, files, train), split, **opened)
    if every_file:
        dataset = load_folder(root, train, needs)
        return DatasetSource(dataset, root, retries=retries) if streaming else dataset
    if not has_card(path) and kind != IMAGES:
        return open_files(kind, root, files_of_split(root, split, files), split, **opened)
    if not has_card(path):
        dataset = load_split(os.path.abspath(path), split, needs)
        if streaming:
            return DatasetSource(dataset, root, retries=retries)
        # Its fingerprint becomes that of a prepared dataset, which checkpoints of such runs hold.
        return dataset.select_columns(dataset.column_names)
    if signs := [sign for sign in SIGNS if sign in root]:
        raise ValueError(
            f"{path}: its README.md says where data is by patterns, which {signs[0]} is a sign of; rename it"
        )
    with _named(name):
        if streaming:
            return open_stream(name, root, split, config_name, retries, needs=needs, **hub_kwargs)
        return datasets.load_dataset(root, config_name, split=split, **hub_kwargs)


def open_pattern(pattern: str, split: str, opened: dict) -> Dataset | RowSource:
    """The files on this machine that a pattern finds. Arguments as `open_folder`.

    Raises:
        ValueError: if there are none, or they are of several formats.
    """
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    files = sorted(file for file in found if os.path.isfile(file))
    if not files:
        raise ValueError(f"{pattern}: no such file")
    if (kind := one_format(files)) != IMAGES:
        return open_files(kind, pattern, files, split, **opened)
    dataset = list_images(files, pattern)
    return DatasetSource(dataset, pattern, retries=opened["retries"]) if opened["streaming"] else dataset


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """What `datasets` raises of a source that is not there, as a ValueError that names it."""
    try:
        yield
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, HFValidationError) as error:
        raise ValueError(f"{source}: neither a local folder nor a dataset that the Hub gives: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"{source}: no such file: {error}") from error


def local_path(source: str | os.PathLike) -> Path:
    """The path that the user means; absolute where `datasets` would take it for a URL."""
    path = Path(source) if os.path.exists(source) else Path(os.path.expanduser(source))
    return path.absolute() if is_remote(str(path)) and path.exists() else path


def one_format(files: Sequence[str]) -> str:
    """The format of all these files.

    Raises:
        ValueError: naming a file of none, or of another than the first one.
    """
    kinds = [format_of(file) for file in files]
    for file, kind in zip(files, kinds, strict=True):
        if kind is None or (kind == IMAGES and len(files) == 1):
            raise ValueError(f"{file}: expected a folder or a file ending in {', '.join(FORMATS)}")
        if kind != kinds[0]:
            raise ValueError(f"{file}: is of another format ({kind}) than {files[0]} ({kinds[0]}); name one of them")
    return kinds[0]


def files_of_split(root: str, split: str, files: Sequence[str]) -> list[str]:
    """The files of a split (see `split_files`). Those of none are logged.

    Raises:
        ValueError: if there is no such split.
    """
    found = split_files(root, files)
    if split not in found:
        raise ValueError(f"{root}: no split {split!r}; there are {', '.join(found)}")
    if rest := sorted(set(files).difference(*found.values())):
        splits = ", ".join(f"{name} ({len(own)} file{'s'[: len(own) != 1]})" for name, own in found.items())
        logger.warning(
            "%s: %d file(s) left out, such as %s, as their names say no split beside those that do: %s; --train_dir "
            "takes all",
            root,
            len(rest),
            rest[0][len(root) :].lstrip("/"),
            splits,
        )
    return found[split]


def has_card(path: Path) -> bool:
    """Whether the card of a dataset says which files are its data, or what is in them."""
    card = path / "README.md"
    data = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    return (path / ".huggingface.yaml").exists() or not {"configs", "dataset_info"}.isdisjoint(data)


def open_remote(
    name: str,
    builder: str,
    split: str,
    config_name: str | None,
    opened: dict,
    data_files: dict | None = None,
    token: str | None = None,
    revision: str | None = None,
    needs: str = "columns",
) -> Dataset | RowSource:
    """A dataset on the Hub, or files by their URL: the format that holds the most images, where the card does not say;
    else as `datasets` finds them. `opened` are arguments of `open_files`.

    Raises:
        ValueError: if there is no such split.
    """
    options = {"token": token} if token else {}
    if data_files is None and config_name is None and (known := hub_census(name, revision, token)):
        root, census = known
        kind, files = census.choose(root, options)
        if kind != IMAGES:
            return open_files(kind, name, files_of_split(root, split, files), split, **opened)
    found = datasets.load_dataset_builder(builder, config_name, data_files=data_files, token=token, revision=revision)
    by_split = {str(key): list(value) for key, value in (found.config.data_files or {}).items()}
    if by_split.get(split):
        theirs = type(found).__module__.rsplit(".", 1)[-1]
        kind = next((ours for ours, name_of_builder in BUILDERS.items() if name_of_builder == theirs), None)
        zips = [file for file in by_split[split] if format_of(file) == "zip"]
        if kind in ("tar", "csv", "json") or zips:
            return open_files(*(("zip", name, zips) if zips else (kind, name, by_split[split])), split, **opened)
    arguments: dict[str, Any] = {"data_files": data_files, "token": token, "revision": revision}
    if opened["streaming"]:
        return open_stream(name, builder, split, config_name, opened["retries"], needs=needs, **arguments)
    return datasets.load_dataset(builder, config_name, split=split, **arguments)


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
    needs: str = "columns",
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
    if kind == "arrow" and not any(map(is_remote, files[split])):
        saved = datasets.concatenate_datasets([Dataset.from_file(file) for file in files[split]])
        return DatasetSource(saved, name, retries=retries)
    if kind == "webdataset":
        source = open_files("tar", name, files[split], split, streaming=True, retries=retries, token=token)
        assert isinstance(source, RowSource)  # as it streams
        return source
    images = {key: [f for f in own if is_image_file(f)] for key, own in files.items()}
    if kind == "imagefolder" and images[split]:
        rows, left_out = None, LeftOut(name)
        if metadata := [file for file in files[split] if file.rsplit("/", 1)[-1] in METADATA]:
            rows = with_metadata(metadata, images[split], left_out, needs, token=token)
            left_out.say()
        rows = list_split(images, split, name) if rows is None else rows
        return DatasetSource(rows, name, storage_options=options, retries=retries)
    raise ValueError(
        f"{name}: {kind} files cannot be streamed with exact resume (parquet, WebDataset, image files and local Arrow "
        "files can); leave --streaming out, which prepares them once on the disk"
    )


def find_validation_split(source: str | None = None, config_name: str | None = None) -> str | None:
    """The split of a dataset that is meant for evaluation, if its name says so. `source` as in `load_images`."""
    path = local_path(SAMPLE if source is None else source)
    if path.is_file():
        return None
    if (path / "dataset_dict.json").exists():
        names = [folder.name for folder in path.iterdir() if folder.is_dir()]
    elif (path / "state.json").exists():
        return None
    elif path.is_dir() and not has_card(path):
        _, files = Census.of(walk(str(path), LeftOut(str(path)))).choose(str(path), log=False)
        names = list(
            split_files(
                str(path), files or [file for file in walk(str(path), LeftOut(str(path))) if is_image_file(file)]
            )
        )
    else:
        names = split_names(str(path) if path.is_dir() else str(source), config_name)
    return next((name for name in ("validation", "valid", "val", "test") if name in names), None)


def split_names(source: str, config_name: str | None) -> list[str]:
    """The splits of a dataset on the Hub, or of a folder whose card says them."""
    if not os.path.isdir(source):
        check_may_be_id(source)
        if config_name is None and (known := hub_census(source)):
            root, census = known
            kind, files = census.choose(root, log=False)
            if kind != IMAGES:
                return list(split_files(root, files))
    return datasets.get_dataset_split_names(source, config_name)
