"""Whether a model is evaluated on images that it is trained on, which says nothing of others."""

import logging
import os
from pathlib import Path

from datasets import Dataset, Image

from ..arguments.data import DataArguments, images_field, sources_of
from .columns import find_column
from .sources import RowSource
from .splits import as_source


logger = logging.getLogger("a2mim")


def evaluates_on_training(
    args: DataArguments, split: str | None, train: Dataset | RowSource, evaluation: Dataset | RowSource | None
) -> bool:
    """Whether images to evaluate on are trained on as well, which is a warning: by their files, where both are files
    (links to folders are followed), else by the folders and splits that are named.

    Args:
        args: what names the images.
        split: to evaluate on.
        train, evaluation: the images, `None` if there is no evaluation.
    """
    if evaluation is None:
        return False
    files = _files(args, evaluation)
    others = None if files is None else _files(args, train)  # a list as long as the images
    found = _same_folders(args, split) if files is None or others is None else not files.isdisjoint(others)
    if found:
        field = images_field(args, train=False)
        logger.warning("%s: images to evaluate on are trained on as well, and say nothing of others", field)
    return found


def _files(args: DataArguments, dataset: Dataset | RowSource) -> set[str] | None:
    source = as_source(args, dataset)
    if source.columns is None:
        source = source.select(find_column(source, Image, args.image_column_name, "image_column_name"))
    files = source.image_files()
    if files is None:
        return None
    split = [os.path.split(path) for path in files]
    folders = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in split}}
    return {os.path.join(folders[folder], name) for folder, name in split}


def _same_folders(args: DataArguments, split: str | None) -> bool:
    if args.validation_dir is None:
        return split == args.train_split
    evaluated = Path(args.validation_dir).expanduser().resolve()
    trained = [Path(source).expanduser().resolve() for source in sources_of(args) if source is not None]
    if any(folder.is_relative_to(evaluated) for folder in trained):
        return True
    return args.train_dir is not None and any(evaluated.is_relative_to(folder) for folder in trained)
