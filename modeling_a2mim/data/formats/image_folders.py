"""A folder of images: which files below it are used, its splits and classes, and what is left out, with counts."""

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence

from ..decoding import is_image_file
from ..reading import is_remote
from .census import METADATA
from .hidden import HIDDEN_FILES, IN_SYSTEM_FOLDERS, is_system
from .named_splits import other_split, paired_splits, split_files, split_kinds


logger = logging.getLogger("a2mim")

FIRST_FOLDER = "the first folder below the root, as torchvision's ImageFolder"
LAST_FOLDER = "the folder of each image, as `datasets`' imagefolder"


class LeftOut:
    """What is not used of a folder, or of archives: how much for each reason, and the first of it by name.

    Args:
        root: the folder, or what the user called the archives.
        inside: paths are those of files in archives.
    """

    def __init__(self, root: str, inside: bool = False):
        self.root, self.inside = root, inside
        self.found: dict[str, list] = {}  # by reason: how much, and the first of it

    def add(self, reason: str, path: str, count: int = 1):
        """Count so many files (or folders, or links), of which `path` is the first."""
        if count:
            self.found.setdefault(reason, [0, path])[0] += count

    def _name(self, path: str) -> str:
        return path if self.inside or is_remote(path) else os.path.relpath(path, self.root)

    def say(self):
        """Log a line for each reason."""
        for reason, (count, path) in self.found.items():
            logger.warning("%s: %s %s, such as %s", self.root, f"{count:,}", reason, self._name(path))


def count_files(folder: str, wanted: Callable[[str], bool]) -> int:
    """How many files below a folder are wanted by their names."""
    return sum(wanted(name) for _, _, files in os.walk(folder) for name in files)


def walk(
    root: str,
    left_out: LeftOut,
    excluded: dict[str, str] | None = None,
    train: bool = True,
    wanted: Callable[[str], bool] = is_image_file,
) -> Iterator[str]:
    """Files below a folder in order, but for hidden ones, system folders, links that lead nowhere, and folders that
    links repeat.

    Args:
        left_out: counts what is left out, of files only those that are `wanted` by their names.
        excluded: paths of folders to leave out, and why; splits of the other kind that are found on the way are added.
            Without it nothing is left out for its split.
        train: whether images for evaluation are left out, or those for training.
    """
    seen = set()

    def unreadable(error: OSError):
        left_out.add("folders cannot be read", error.filename)

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen:  # a link into a folder above it would go round for ever
            left_out.add("folders are links to others that are read already", folder)
            folders.clear()
            continue
        seen.add(real)
        if folder != root and excluded is not None:
            for name, kind in paired_splits(folders).items():
                if (kind == "train") != train:
                    excluded[os.path.join(folder, name)] = other_split(kind)
        kept = []
        for name in sorted(folders):
            path = os.path.join(folder, name)
            if is_system(name):
                left_out.add(IN_SYSTEM_FOLDERS, path, count_files(path, wanted))
            elif excluded and path in excluded:
                left_out.add(excluded[path], path, count_files(path, wanted))
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path = os.path.join(folder, name)
            if os.path.islink(path) and not os.path.exists(path):
                left_out.add("links lead nowhere", path)
            elif name.startswith("."):
                left_out.add(HIDDEN_FILES, path, wanted(name))
            else:
                yield path


class ImageFolder:
    """The images of a folder (or shards of them) that are for training, or for evaluation, and the classes that their
    folders name.

    Args:
        root: the folder.
        train: leave out what is for evaluation, else what is for training.
        wanted: whether a file is of interest, by its name.

    Raises:
        ValueError: naming the folder, if it holds nothing of that kind, or a folder that may be a split or a class.
    """

    def __init__(self, root: str, train: bool = True, wanted: Callable[[str], bool] = is_image_file):
        self.root, self.train, self.wanted = root.rstrip(os.sep) or os.sep, train, wanted
        self.left_out = LeftOut(self.root)
        self.metadata: list[str] = []  # known when all files were listed
        names = [name for name in _inside(self.root)[0] if not is_system(name)]
        held = {name: self._holds(name) for name in names}
        self.empty = [name for name, some in held.items() if not some]
        self.splits, self.excluded = self._find_splits([name for name in names if held[name]])

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def _holds(self, name: str) -> bool:
        return any(self.wanted(os.path.basename(file)) for file in walk(self._path(name), LeftOut(self.root)))

    def _find_splits(self, folders: list[str]) -> tuple[Collection[str], dict[str, str]]:
        """The folders that are a split to be used, empty if there are no splits, and those to leave out."""
        kinds = split_kinds(folders)
        wanted = {"train"} if self.train else {"validation", "test"} & set(kinds.values())
        if len(wanted) == 2:
            wanted = {"validation"}
        own = [name for name, kind in kinds.items() if kind in wanted]
        theirs = [name for name, kind in kinds.items() if kind not in wanted]
        others = [name for name in folders if name not in kinds]
        excluded = {self._path(name): other_split(kinds[name]) for name in theirs}
        loose = any(map(self.wanted, _inside(self.root)[1]))
        use = "training" if self.train else "evaluation"
        if own and theirs and others:
            raise ValueError(
                f"{self.root}: holds splits ({', '.join([*own, *theirs])}) beside {_few(others)}, of which "
                f"nothing says what for; name the folder of the images for {use} itself"
            )
        if theirs and not own and not others and not loose:
            raise ValueError(
                f"{self.root}: holds nothing for {use} but {', '.join(theirs)}; if that is what you want, name "
                f"{self._path(theirs[0])} itself"
            )
        if theirs and not own and others and not self._same_classes(theirs, others):
            raise ValueError(
                f"{self.root}: {theirs[0]} may be a class or images that are not for {use}, beside {_few(others)}; "
                "rename it or move it out of the folder"
            )
        if own and not theirs and others:  # vehicles: car, train, truck
            own = []
        if own:
            logger.info("%s: of its splits %s is used for %s", self.root, ", ".join(own), use)
        return own, excluded

    def _same_classes(self, splits: list[str], classes: list[str]) -> bool:
        """Whether the folders in a split are called as those beside it."""
        below = {inner for name in splits for inner in _inside(self._path(name))[0]}
        return not below.isdisjoint(classes)

    def files(self) -> Iterator[str]:
        """The files in order. Those of metadata are kept in `metadata`."""
        for file in walk(self.root, self.left_out, self.excluded, self.train, self.wanted):
            if os.path.basename(file) in METADATA:
                self.metadata.append(file)
            elif self.splits and self._parts(file)[0] not in self.splits:
                self.left_out.add("files beside the splits are left out", file, self.wanted(os.path.basename(file)))
            else:
                yield file

    def _parts(self, file: str) -> list[str]:
        return file[len(os.path.join(self.root, "")) :].split(os.sep)

    def label(self, file: str) -> str | None:
        """The class of an image: the first folder below the root, or below the split that it is in; `None` for one
        beside the folders."""
        parts = self._parts(file)
        parts = parts[1:] if parts[0] in self.splits else parts
        return parts[0] if len(parts) > 1 else None


def _inside(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the other files in a folder."""
    _, folders, files = next(os.walk(folder), (folder, [], []))
    return sorted(folders), files


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def for_use(root: str, files: Sequence[str], train: bool) -> list[str]:
    """The shards of a folder that are for training, or for evaluation, by the names of folders and of files. Those of
    the other kind are logged.

    Raises:
        ValueError: as `ImageFolder`.
    """
    names = {os.path.basename(file) for file in files}
    folder = ImageFolder(root, train, names.__contains__)
    kept = sorted(set(files).intersection(folder.files()))
    splits = split_files(folder.root, kept)
    if "train" in splits and len(splits) > 1:
        own = {"train"} if train else {"validation"} & splits.keys() or splits.keys() - {"train"}
        for split in splits.keys() - own:
            folder.left_out.add(
                f"files are for {split}, as their names say, and left out", splits[split][0], len(splits[split])
            )
            kept = [file for file in kept if file not in splits[split] or any(file in splits[s] for s in own)]
    folder.left_out.say()
    return kept
