"""What `datasets` takes for splits of a local folder of images, checked against what lies there."""

import logging
import os
from collections.abc import Sequence

from .image_folders import SPLIT_WORDS, LeftOut, split_kinds


logger = logging.getLogger("a2mim")


def check_splits(root: str, split: str, found: dict[str, list[str]], images: Sequence[str], left_out: LeftOut):
    """Say which splits there are, and refuse those that only chance can have made: `datasets` takes `train` or `test`
    in the name of any file or folder for one, and then nothing else.

    Args:
        root: the folder.
        split: the one that is asked for.
        found: the images of each split, as `datasets` finds them.
        images: all that there are.
        left_out: counts those that are in none.

    Raises:
        ValueError: naming the folder, the images and what to do.
    """

    def name(file: str) -> str:
        return os.path.relpath(file, root)

    words = "; ".join(f"{key} ({len(own):,} images, such as {name(own[0])})" for key, own in found.items() if own)
    if split not in found:
        raise ValueError(
            f"{root}: no split {split!r}; there are {words or 'none'}, as `datasets` reads their names; --train_dir "
            "and --validation_dir take all images of a folder"
        )
    tops = {file: name(file).split(os.sep)[:-1] for file in images}
    kinds = split_kinds({folders[0] for folders in tops.values() if folders})
    inside = {kinds[tops[f][0]] for f in found[split] if tops[f] and tops[f][0] in kinds}
    own = SPLIT_WORDS.get(split)
    if own and any((kind == "train") != (own == "train") for kind in inside):
        raise ValueError(
            f"{root}: `datasets` takes {', '.join(sorted(kinds))} for folders of the split {split}, as it knows "
            "splits by names in lower case only; name each folder with --train_dir and --validation_dir"
        )
    covered = {file for own in found.values() for file in own}
    rest = [file for file in images if file not in covered]
    by_folder = len(set(kinds.values())) > 1 and all(tops[f] and tops[f][0] in kinds for f in covered)
    if rest and not by_folder:
        raise ValueError(
            f"{root}: `datasets` reads the names of files and folders as splits: {words}; {len(rest):,} are in none, "
            f"such as {name(rest[0])}; use --train_dir (and --validation_dir), which take all images of a folder, or "
            "rename them"
        )
    if rest:
        left_out.add("images are in none of its splits and left out", rest[0], len(rest))
    if len(found) > 1 or split != "train":
        level = logging.INFO if by_folder else logging.WARNING
        logger.log(level, "%s: splits, as `datasets` reads the names of files and folders: %s", root, words)
