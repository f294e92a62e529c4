"""Which split files are of, by their names and those of their folders."""

import re
from collections.abc import Iterable, Sequence

from datasets.data_files import _get_data_files_patterns
from fsspec.utils import glob_translate


# What `datasets` takes for the name of a split.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
FILLERS = {"set", "sets", "split", "data", "dataset", "image", "images", "img", "imgs"}  # train_set, val2017


def split_files(root: str, files: Sequence[str]) -> dict[str, list[str]]:
    """Files by the split that their names, or those of their folders below `root`, say, as `datasets` documents it
    (and finds it by a function that is private); all of them are `train` where none says so."""
    names = {file[len(root) :].lstrip("/"): file for file in files}

    def resolve(pattern: str) -> list[str]:
        matches = re.compile(glob_translate(pattern)).match
        return [name for name in names if matches(name)]

    patterns = _get_data_files_patterns(resolve)
    found = {str(split): dict.fromkeys(n for p in own for n in resolve(p)) for split, own in patterns.items()}
    return {split: sorted(names[name] for name in own) for split, own in found.items()}


def split_kinds(names: Iterable[str]) -> dict[str, str]:
    """Which of the folders that lie side by side are splits: `train`, `validation` or `test`.

    Names such as `train2017` and `val2017` or `Training Set` and `Test Set` are those of splits where there is one of
    each kind, the plain words in any case.
    """
    names = list(names)
    found = {}
    for name in names:
        words = [word for word in re.findall("[^\\W\\d_]+", name.lower()) if word not in FILLERS]
        if len(words) == 1 and words[0] in SPLIT_WORDS:
            found[name] = SPLIT_WORDS[words[0]]
    if "train" not in found.values() or set(found.values()) == {"train"}:
        found = {name: kind for name, kind in found.items() if name.lower() in SPLIT_WORDS}
    if any(name.lower() == "invalid" for name in names):  # valid and invalid are classes
        found = {name: kind for name, kind in found.items() if name.lower() != "valid"}
    return found


def paired_splits(names: Iterable[str]) -> dict[str, str]:
    """The splits among folders, if there are some for training and some for evaluation."""
    kinds = split_kinds(names)
    return kinds if "train" in kinds.values() and set(kinds.values()) != {"train"} else {}


def other_split(kind: str) -> str:
    """Why files of a split are left out, for `LeftOut`."""
    if kind == "train":
        return "files are for training, as the name of their folder says, and left out of the evaluation"
    return f"files are for {kind}, as the name of their folder says, and left out"
