"""Runs of benchmarks in several processes: all are made, and one that fails ends no other."""

import functools
import os

import pytest

from benchmarks.workers import run_all


def note(folder, number):
    (folder / f"{number}-{os.getpid()}").touch()
    if number == 1:
        raise ValueError("the second one")


@pytest.mark.parametrize("workers", [1, 2])
def test_each_is_run_once(tmp_path, workers):
    seen = []
    run_all(functools.partial(note, tmp_path), [0, 2, 3, 4], workers, lambda: seen.append(len(seen)))
    found = [path.name.split("-") for path in tmp_path.iterdir()]
    assert sorted(number for number, _ in found) == ["0", "2", "3", "4"]
    assert seen == [0, 1, 2, 3]
    assert ({process for _, process in found} == {str(os.getpid())}) == (workers == 1)


def test_what_fails_is_named_and_ends_no_other(tmp_path, capsys):
    seen = []
    with pytest.raises(ValueError, match="the second one"):
        run_all(functools.partial(note, tmp_path), range(5), 2, lambda: seen.append(1))
    assert len(list(tmp_path.iterdir())) == 5
    assert len(seen) == 4
    assert "ValueError: the second one" in capsys.readouterr().err
