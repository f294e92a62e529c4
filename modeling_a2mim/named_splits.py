"""What `datasets` takes for splits of a local folder, checked against what lies there."""

import logging
import os
from pathlib import Path

from huggingface_hub import DatasetCard

from .image_folders import SPLIT_WORDS, SYSTEM_FOLDERS, LeftOut, split_kinds, walk
from .sources import IMAGE_FILES


logger = logging.getLogger("a2mim")


def check_splits(root: str, split: str, files: dict[str, list[str]], kind: str, left_out: LeftOut):
    """Say which splits there are, and refuse those that only chance can have made: `datasets` takes `train` or `test`
    in the name of any file or folder for one, and then nothing else.

    Args:
        root: the folder.
        split: the one that is asked for.
        files: those of each split, as `datasets` finds them.
        kind: its builder.
        left_out: counts what is in none.

    Raises:
        ValueError: naming the folder, the files and what to do.
    """
    suffixes = (
        IMAGE_FILES if kind == "imagefolder" else {Path(f).suffix.lower() for own in files.values() for f in own}
    )
    root = os.path.abspath(root)
    found = {name: [f for f in own if Path(f).suffix.lower() in suffixes] for name, own in files.items()}
    words = "; ".join(
        f"{name} ({len(own):,} files, such as {os.path.relpath(own[0], root)})" for name, own in found.items() if own
    )
    if split not in files:
        raise ValueError(
            f"{root}: no split {split!r}; there are {words or 'none'}, as `datasets` reads their names; --train_dir "
            "and --validation_dir take all images of a folder"
        )
    if _configured(root):
        logger.info("%s: splits, as its README.md says: %s", root, words)
        return
    strange = [f for f in found[split] if SYSTEM_FOLDERS & {part.lower() for part in Path(f).parts}]
    if strange:
        raise ValueError(
            f"{root}: {len(strange):,} of the images that `datasets` finds are thumbnails of a file server, such as "
            f"{os.path.relpath(strange[0], root)}; delete them, or use --train_dir, which leaves them out"
        )
    covered = {f for own in found.values() for f in own}
    here = [f for f in walk(root, left_out) if Path(f).suffix.lower() in suffixes]
    rest = [f for f in here if f not in covered]
    tops = {f: os.path.relpath(f, root).split(os.sep)[:-1] for f in (*covered, *rest)}
    kinds = split_kinds({folders[0] for folders in tops.values() if folders})
    inside = {kinds[tops[f][0]] for f in found[split] if tops[f] and tops[f][0] in kinds}
    own = SPLIT_WORDS.get(split)
    if own and any((kind == "train") != (own == "train") for kind in inside):
        raise ValueError(
            f"{root}: `datasets` takes {', '.join(sorted(kinds))} for folders of the split {split}, as it knows "
            "splits by names in lower case only; name each folder with --train_dir and --validation_dir"
        )
    by_folder = len(set(kinds.values())) > 1 and all(tops[f] and tops[f][0] in kinds for f in covered)
    if rest and not by_folder:
        raise ValueError(
            f"{root}: `datasets` reads the names of files and folders as splits: {words}; {len(rest):,} are in none, "
            f"such as {os.path.relpath(rest[0], root)}; use --train_dir (and --validation_dir), which take all images "
            "of a folder, or rename them"
        )
    if rest:
        left_out.add("files are in none of its splits and left out", rest[0], len(rest))
    if len(found) > 1 or split != "train":
        level = logging.INFO if by_folder else logging.WARNING
        logger.log(level, "%s: splits, as `datasets` reads the names of files and folders: %s", root, words)


def _configured(root: str) -> bool:
    """Whether the folder says itself which files its splits are of."""
    card = Path(root, "README.md")
    return card.is_file() and bool(DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs"))
