"""Files of one format as a prepared dataset or as a stream."""

from collections.abc import Sequence

import datasets
from datasets import Dataset

from ..reading import is_remote
from ..shards import ParquetSource
from ..sources import DatasetSource, RowSource
from .cache import as_data_files, decompressed, download, is_compressed, prepare
from .census import TABLES
from .tables import load_table
from .tars import TarSource
from .zips import ZipSource


# Of `datasets`, by our names of formats.
BUILDERS = {
    "parquet": "parquet",
    "arrow": "arrow",
    "tar": "webdataset",
    "zip": "imagefolder",
    "csv": "csv",
    "json": "json",
}


def open_files(
    kind: str,
    name: str,
    files: Sequence[str],
    split: str,
    *,
    streaming: bool,
    retries: int,
    image_column: str | None = None,
    first_folder: bool = False,
    token: str | None = None,
) -> Dataset | RowSource:
    """Files of a format of `census.FORMATS`, which is not `images`.

    Args:
        name: what the user called them.
        files: paths or URLs.
        image_column: the column of the images, where it has to be known now; found if not given.
        first_folder: as `ZipSource`.

    Raises:
        ValueError: naming what cannot be read.
    """
    # The token is for the Hub alone, not for whatever other host a URL names.
    options = {"token": token} if token and files[0].startswith("hf://") else {}
    if kind == "parquet" and streaming:
        return ParquetSource(name, files, None, options, retries)
    if kind == "arrow" and streaming:
        if any(map(is_remote, files)):
            raise ValueError(f"{name}: remote Arrow files cannot be streamed; leave --streaming out")
        saved = datasets.concatenate_datasets([Dataset.from_file(file) for file in files])
        return DatasetSource(saved, name, retries=retries)
    if kind in TABLES:
        table = load_table(name, kind, files, split, image_column, token)
        return DatasetSource(table, name, storage_options=options, retries=retries) if streaming else table
    if kind in ("tar", "zip"):
        local = files if streaming else download(files, token)
        if kind == "zip":
            zipped = ZipSource(name, local, options, retries, first_folder)
            return zipped if streaming else prepare(zipped, split)
        if streaming and (compressed := [file for file in files if is_compressed(file)]):
            raise ValueError(
                f"{name}: {compressed[0]} is compressed as a whole, of which no part can be read alone; leave "
                "--streaming out, which decompresses it once on the disk, or decompress it"
            )
        source = TarSource(name, local if streaming else decompressed(local), options, retries, image_column)
        if streaming or not source.as_webdataset:
            return source if streaming else prepare(source, split)
    return datasets.load_dataset(BUILDERS[kind], data_files=as_data_files({split: files}), split=split, token=token)
