"""Images in zip files, read where they lie."""

import os
import posixpath
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from lzma import LZMAError
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features, Image

from ..decoding import BrokenImage, is_image_file
from ..reading import DEFINITE, describe, open_file, relative_name, with_retries
from ..shards import map_shards
from ..sources import RowSource
from .census import IMAGES, Census
from .hidden import reason_to_leave_out
from .image_folders import LeftOut


LARGEST = 2**30  # bytes of an image: a file in a zip that claims more is a bomb
# What zipfile raises of one file that is damaged, or (NotImplementedError) compressed in a way that it does not know.
BROKEN = (zipfile.BadZipFile, zlib.error, LZMAError, NotImplementedError, EOFError)


class ZipSource(RowSource):
    """The images in zip files, local or remote, any of which costs the same to read.

    Args:
        name: what the user called it.
        files: paths or URLs.
        first_folder: classes are called after the first folder inside, below those that all images are in; else after
            the last one, if all images lie equally deep, as `datasets`' imagefolder has it.

    Raises:
        ReadError: naming a zip that cannot be listed.
        ValueError: if there is no image in any of them, or one is encrypted.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        storage_options: dict | None = None,
        retries: int = 5,
        first_folder: bool = False,
    ):
        self.files, self.storage_options = list(files), storage_options or {}
        self._opened: dict[tuple[int, int], zipfile.ZipFile] = {}
        left_out = LeftOut(name, inside=True)
        listed = [self._shown(members, left_out) for members in map_shards(self._list, self.files, retries)]
        left_out.say()
        census = Census.of(member for members in listed for member in members)
        if not census.images:
            raise ValueError(f"{name}: no images in its {len(files)} zip file(s){census.instead()}")
        census.report(name, IMAGES, [], metadata=False)
        places = [(number, m) for number, members in enumerate(listed) for m in members if is_image_file(m)]
        self.archives = np.array([number for number, _ in places], dtype=np.int32)
        self.members = pa.array([member for _, member in places], pa.large_string())
        kinds: dict = {"image": Image()}
        self.labels = None
        classes = folder_classes([member for _, member in places], first_folder)
        if classes is not None:
            kinds["label"] = ClassLabel(names=sorted({c for c in classes if c is not None}))
            numbers = {c: number for number, c in enumerate(kinds["label"].names)}
            self.labels = [numbers.get(c) for c in classes]
        super().__init__(name, Features(kinds), [len(places)], self.storage_options, retries)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}

    def _list(self, path: str) -> list[str]:
        """The names of the files in a zip, in their order in it."""
        with open_file(path, self.storage_options) as file, zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        infos = [info for info in infos if not info.is_dir()]
        if any(info.flag_bits & 1 for info in infos):
            raise ValueError("it is encrypted; decrypt it")
        return [info.filename for info in infos]

    def _shown(self, members: list[str], left_out: LeftOut) -> list[str]:
        """Those that are not hidden; the images that are, are counted."""
        shown = []
        for member in members:
            if (reason := reason_to_leave_out(member)) is None:
                shown.append(member)
            else:
                left_out.add(reason, member, is_image_file(member))
        return shown

    def _read_member(self, number: int, member: str) -> bytes:
        key = (os.getpid(), number)  # a file that is open in two processes has one position
        if key not in self._opened:
            self._opened[key] = zipfile.ZipFile(open_file(self.files[number], self.storage_options))
        try:
            archive = self._opened[key]
            if archive.getinfo(member).file_size > LARGEST:
                raise zipfile.BadZipFile(f"it claims to hold more than {LARGEST:,} bytes")
            return archive.read(member)
        except BROKEN:
            raise
        except Exception:
            self._opened.pop(key, None)  # a connection may be lost; the next attempt opens another
            raise

    def _member(self, row: int) -> tuple[int, str]:
        return int(self.archives[row]), self.members[row].as_py()

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        found = []
        for row in map(int, rows):
            if row >= len(self):
                raise IndexError(row)
            number, member = self._member(row)
            what = f"{self.files[number]}, {member}"
            try:
                read = with_retries(
                    lambda n=number, m=member: self._read_member(n, m), what, self.retries, (*DEFINITE, *BROKEN)
                )
                value: dict[str, Any] | BrokenImage = {"bytes": read, "path": member}
            except (*DEFINITE, *BROKEN) as error:
                value = BrokenImage(describe(error))
            found.append((value, self.labels[row] if self.labels and self.columns[1] else None))
        return found

    def values(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        return [{column: self.labels[int(row)] for column in columns} for row in rows]  # there are no others

    def rows(self) -> Iterator[dict]:
        """All rows with all their columns."""
        whole = self.select(*self.features)
        for row in range(len(self)):
            [(value, label)] = whole.read([row])
            if isinstance(value, BrokenImage):
                value = {"bytes": b"", "path": self.file_name(row)}
            yield {"image": {**value, "path": self.file_name(row)}, **({"label": label} if self.labels else {})}

    def describe(self, row: int) -> str:
        number, member = self._member(row)
        return f"{member} of {self.files[number]}"

    def file_name(self, row: int) -> str | None:
        number, member = self._member(row)
        if len(self.files) == 1:
            return member
        return f"{relative_name(self.files[number], [self.name])}/{member}"

    @property
    def fingerprint(self) -> str:
        names = "\n".join(self.members[: len(self)].to_pylist())
        return f"{len(self)}-{zlib.crc32(names.encode(errors='surrogateescape')):08x}"


def folder_classes(files: list[str], first_folder: bool) -> list[str | None] | None:
    """The class of each file by the folders that it is in (see `ZipSource`); None where they name none."""
    folders = [posixpath.dirname(file) for file in files]
    common = posixpath.commonpath(set(folders)) if all(folders) else ""
    parts = [folder.removeprefix(common).strip("/").split("/") for folder in folders]
    if first_folder:
        classes = [own[0] or None for own in parts]
    else:
        if len({folder.count("/") for folder in folders}) > 1:
            return None
        classes = [own[-1] or None for own in parts]
    return classes if len({c for c in classes if c is not None}) > 1 else None
