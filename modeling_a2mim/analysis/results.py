"""The folder that a command of the analysis writes to: what is there is replaced only where that is asked for."""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import is_there, safe_name


logger = logging.getLogger("a2mim")


@dataclass(frozen=True)
class ResultFiles:
    """The files that a command writes.

    Args:
        record: the JSON file, whose `models` are by their names.
        figure: of all models.
        suffix: of the file of each model; `None` if there are none.
        goes_on: whether a run goes on with the files of the models, and checks itself what they are of.
    """

    record: str
    figure: str
    suffix: str | None = None
    goes_on: bool = False

    def of_model(self, name: str) -> str:
        """The file of a model."""
        return f"{safe_name(name)}{self.suffix}"

    def check(self, folder: Path, names: Iterable[str], overwrite: bool):
        """Refuse a folder in which files would be replaced. A run that goes on replaces the record and the figure of
        models that it has as well.

        Args:
            names: of the models.
            overwrite: whether it is asked for.

        Raises:
            ValueError: naming `out`; or `names`, if two files would have the same name.
        """
        own = [self.of_model(name) for name in names if self.suffix]
        files = [self.record, self.figure, *own]
        if twice := [file for file, count in Counter(files).items() if count > 1]:
            raise ValueError(f"names: {twice[0]} would be written twice; give each model another name with --names")
        if folders := [file for file in files if (folder / file).is_dir()]:
            raise ValueError(f"out: {folder / folders[0]} is a folder, where a file is to be written")
        there = [file for file in files if (folder / file).exists()]
        if self.goes_on:
            earlier = [self.of_model(name) for name in self._earlier(folder)]
            known = bool(earlier) and set(earlier) <= set(own) and all((folder / file).exists() for file in earlier)
            there = [] if known else [file for file in there if file not in own]
        if there and not overwrite:
            raise is_there(folder / there[0])

    def remove(self, folder: Path, names: Iterable[str]):
        """Remove what an earlier run wrote, the files of models that this one has not as well."""
        own = [self.of_model(name) for name in (*names, *self._earlier(folder)) if self.suffix]
        for file in dict.fromkeys((*own, self.record, self.figure)):
            if (folder / file).is_file():
                (folder / file).unlink()
                logger.info("removed: %s, of the results that were there", folder / file)

    def _earlier(self, folder: Path) -> list[str]:
        """The models of the record that is there; none, if it is no such record."""
        try:
            models = json.loads((folder / self.record).read_text(encoding="utf-8"))["models"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return list(models) if isinstance(models, dict) else []
