"""`a2mim`: what it lists, what it runs, what it does not import, and its completion."""

import importlib
import json
import subprocess
import sys

import pytest

from a2mim import __version__
from a2mim.__main__ import COMMANDS, PACKAGE, main
from modeling_a2mim.commands.completion import all_commands


def test_overview(capsys):
    for argv, code in ((["--help"], 0), (["-h"], 0), (["help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == code
        told = capsys.readouterr().out
        assert all(f"\n  {name} " in told for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["help", "recipes"])
    assert capsys.readouterr().out.startswith("usage: a2mim recipes ")
    main(["--version"])
    assert capsys.readouterr().out == f"a2mim {__version__}\n"


def test_no_such_command(capsys):
    for argv, message in (
        (["pretrian", "--help"], "error: there is no command 'pretrian'; did you mean pretrain"),
        (["x"], "error: there is no command 'x'; there are pretrain, finetune"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_command(name, capsys):
    module = importlib.import_module(f"{PACKAGE}.{COMMANDS[name][0]}")
    assert module.build_parser().prog == f"a2mim {name}"
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: a2mim {name} ")


CODE = """
import json, sys
from a2mim.__main__ import main
for argv in json.load(sys.stdin):
    try:
        main(argv)
    except SystemExit:
        pass
    print(json.dumps(sorted(set(sys.argv[1].split(",")).intersection(sys.modules))), file=sys.stderr)
"""
HEAVY = "torch,timm,transformers,datasets,matplotlib,sklearn,pandas"


@pytest.mark.ci
def test_help_imports_no_more_than_it_needs():
    """How long that takes depends on the machine; what is imported does not. transformers' TrainingArguments, of which
    the help of what trains consists, needs torch. They follow each other in one process, what needs most last."""
    training = ("pretrain", "finetune")
    light = [["--help"], ["--version"], ["recipes"], *([name, "--help"] for name in COMMANDS if name not in training)]
    commands = [*light, *([name, "--help"] for name in training)]
    process = [sys.executable, "-c", CODE, HEAVY]
    done = subprocess.run(process, input=json.dumps(commands), capture_output=True, text=True, check=True)
    found = [(argv, json.loads(line)) for argv, line in zip(commands, done.stderr.splitlines(), strict=True)]
    assert found == [(argv, ["torch", "transformers"] if argv[0] in training else []) for argv in commands]


def test_completion(capsys):
    for shell in ("bash", "zsh"):
        main(["completion", shell])
        script = capsys.readouterr().out
        assert all(flag in script for flag in ("--mask_ratio", "--linear_probe", "--dry_run", "--interval_width"))
    assert subprocess.run(["bash", "-n"], input=_bash(capsys), text=True, check=False).returncode == 0


def _bash(capsys):
    main(["completion", "bash"])
    return capsys.readouterr().out


def test_all_commands_take_what_they_take_alone():
    args = all_commands().parse_args(["recipes", "small_data"])
    assert args.name == "small_data"
    args = all_commands().parse_args(["pretrain", "--output_dir", "x", "--image_size", "32", "48"])
    assert args.image_size == [32, 48]
