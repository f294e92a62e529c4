"""How commands end."""

import argparse
import contextlib

import pytest

from modeling_a2mim.data.reading import ReadError
from modeling_a2mim.utils.command import run_command


@pytest.mark.parametrize("error", [ValueError("grid: too small"), ReadError("not read"), OSError("disk is full")])
def test_what_can_be_mended_is_one_line(error, capsys):
    def fails(args):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(argparse.ArgumentParser(), fails, [])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_faults_keep_their_traceback():
    def fails(args):
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        run_command(argparse.ArgumentParser(), fails, [])


def test_errors_of_a_worker_in_one_line(capsys):
    """torch raises them anew with their traceback as the message."""

    def fails(args):
        raise OSError(
            "Caught OSError in DataLoader worker process 0.\nTraceback ...\n  line\nOSError: x.tar: is cut off"
        )

    with pytest.raises(SystemExit):
        run_command(argparse.ArgumentParser(), fails, [])
    assert capsys.readouterr().err == "error: x.tar: is cut off\n"


def test_several_processes(capsys, monkeypatch):
    """Only commands that share the work take them; a cluster may say how many nodes it has to any program."""
    ran = []
    parser = argparse.ArgumentParser(prog="a2mim tidy")
    for variables, options, runs in (
        ({"WORLD_SIZE": "2"}, {}, True),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"shared": True}, True),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {}, True),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, {}, False),
    ):
        for name in ("WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        ran.clear()
        with contextlib.nullcontext() if runs else pytest.raises(SystemExit):
            run_command(parser, ran.append, [], **options)
        assert len(ran) == runs
    assert "error: a2mim tidy: runs in one process" in capsys.readouterr().err


def test_arguments_that_are_given_twice(capsys, caplog):
    parser, seen = argparse.ArgumentParser(), []
    parser.add_argument("images", nargs="*")
    parser.add_argument("--query", nargs="+")
    parser.add_argument("--size", "-s", type=int)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--no_all", dest="all", action="store_false")
    run_command(parser, seen.append, ["a", "--size", "1", "-s=2", "--all", "--all"])
    assert [args.size for args in seen] == [2]
    assert caplog.messages == ["--size is given 2 times; the last one counts"]
    caplog.clear()
    run_command(parser, seen.append, ["--all", "--no_all"])
    assert caplog.messages == ["--all and --no_all are given; the last one counts"]
    with pytest.raises(SystemExit):
        run_command(parser, seen.append, ["--query", "a", "b", "--query=c"])
    assert capsys.readouterr().err == "error: query: --query is given 2 times; give all of its values after one\n"
    assert [args.all for args in seen] == [True, False]
