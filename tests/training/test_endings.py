"""Runs that cannot go on end in one line."""

import errno
import json
import sys

import pytest

import run_pretraining
from modeling_a2mim.commands.parser import run_as_command
from modeling_a2mim.training import endings
from modeling_a2mim.training.endings import WriteError, check_writable, how_to_resume, writing
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..integration.test_scripts import FAST, SMALL


def test_libraries_that_cannot_write_name_the_folder(tmp_path):
    for error, reason in (
        (OSError(errno.ENOSPC, "No space left on device", "x"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "Read-only file system"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore"), r"\[enforce fail"),
    ):
        with (
            pytest.raises(WriteError, match=f"^output_dir: {tmp_path} cannot be written to: {reason}"),
            writing(tmp_path),
        ):
            raise error
    with pytest.raises(RuntimeError, match="^something else"), writing(tmp_path):
        raise RuntimeError("something else")


def test_a_full_disk_is_named_whatever_torch_says(tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(endings.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WriteError, match="cannot be written to: the disk is full"), writing(tmp_path / "new"):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    with pytest.raises(ValueError, match=f"^output_dir: the disk of {tmp_path} is full"):
        check_writable(tmp_path / "new" / "folder")


def test_a_folder_that_cannot_be_written_to_is_named_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(endings.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ValueError, match=f"^output_dir: {tmp_path} cannot be written to"):
        run_pretraining.main([*SMALL, *FAST, "--output_dir", str(tmp_path / "a" / "b")])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "error: /data/x: Permission denied"),
        (ImportError("You need bitsandbytes"), "error: You need bitsandbytes"),
        (ValueError("field: wrong"), "error: field: wrong"),
        (
            OSError("Caught ReadError in worker 0.\nTraceback\n  x\nReadError: url: cannot be read"),
            "error: url: cannot be",
        ),
    ],
)
def test_errors_end_a_command_in_a_line(error, line, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as ended:
        run_as_command(main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_read_only_cache_names_the_variable(monkeypatch):
    monkeypatch.setattr(endings.constants, "HF_HOME", "/cache/hf")
    error = OSError(errno.EROFS, "Read-only file system", "/cache/hf/datasets/x.lock")
    assert endings.describe_os_error(error) == (
        "/cache/hf/datasets/x.lock: Read-only file system; set HF_HOME to a folder that can be written to"
    )


def test_a_package_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^report_to: nonsense is not installed here \(pip install nonsense\)"):
        run_pretraining.main([*SMALL, *FAST, "--report_to", "nonsense", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_resume(tmp_path, monkeypatch, capsys, one_thread):
    step = A2MIMTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(A2MIMTrainer, "training_step", interrupted)
    argv = [*SMALL, *FAST, "--max_train_samples", "16", "--max_steps", "2", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run_pretraining.py", *argv, "--save_steps", "1"])
    with pytest.raises(SystemExit) as ended:
        run_as_command(run_pretraining.main)
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert (
        f"interrupted; the same command with --resume_from_checkpoint last goes on from checkpoint-1 in {tmp_path}"
        in said
    )
    assert json.loads((tmp_path / "checkpoint-1" / "checkpoint.json").read_text())["data"]["cut"] == 2
    (tmp_path / "checkpoint-1" / "model.safetensors").unlink()
    assert "can only begin anew" in how_to_resume(tmp_path)


def test_a_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=f"^output_dir: {tmp_path}/notes.txt is a file"):
        check_writable(tmp_path / "notes.txt" / "run" / "one")
