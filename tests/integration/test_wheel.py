"""The package as a wheel, in an environment and a folder without a clone: the whole way from images to decisions."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from a2mim.__main__ import COMMANDS


pytestmark = pytest.mark.ci
ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.cfg").is_file())

# Everything of the package that reads a file of its own: recipes, the templates of cards, and who calls them.
CODE = """
import importlib, pkgutil, sys
from pathlib import Path

import modeling_a2mim

site = Path(sys.prefix).resolve()
assert Path(modeling_a2mim.__file__).resolve().is_relative_to(site), modeling_a2mim.__file__
for found in pkgutil.walk_packages(modeling_a2mim.__path__, "modeling_a2mim."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
"""

# Runs installed programs as a shell does, one after the other, each in a process of its own, which has what does not
# come from the wheel and takes seconds to import.
SHELL = """
import json, os, runpy, sys

import datasets, evaluate, matplotlib.figure, sklearn.metrics, timm.optim, torch, torchvision
from transformers import Trainer

for number, (program, *argv) in enumerate(json.load(sys.stdin)):
    sys.stdout.flush()
    if child := os.fork():
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        continue
    output = os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    assert not any(name.startswith(("a2mim", "modeling_a2mim")) for name in sys.modules)
    sys.argv = [f"{sys.prefix}/bin/{program}", *argv]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
    break
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with an environment, `env`, into which the wheel is installed. What it depends on comes from the
    environment of this test."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):  # a build in the clone would leave its own files there
        if name.startswith(("a2mim/", "modeling_a2mim/", "model_cards/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # Of a folder that is added so, `.pth` files do nothing: an editable install of the clone is not found.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    python = str(folder / "env" / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return folder


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def run(place: Path, program: str, *argv: str, code: int = 0) -> str:
    command = [str(place / "env" / "bin" / program), *argv]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)
    return checked(argv, done.returncode, code, done.stdout + done.stderr)


def run_all(place: Path, *commands: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """What each of the commands said, and how it ended; see `SHELL`."""
    python, given = str(place / "env" / "bin" / "python"), json.dumps(commands)
    done = subprocess.run(
        [python, "-c", SHELL], cwd=place, env=environment(), input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    codes = [json.loads(line) for line in done.stdout.splitlines()]
    return [(place / f"{number}.log").read_text() for number in range(len(commands))], codes


def checked(argv: Sequence[str], found: int, code: int, said: str) -> str:
    assert found == code, f"{' '.join(argv)}\n{said}"
    assert "RuntimeWarning" not in said  # of a module that its own package has imported already
    return said


@pytest.mark.timeout(900)  # two minutes where nothing else runs
@pytest.mark.few(1)
def test_the_whole_way(place):
    """Images of two classes to an encoder, a classifier with a threshold, decisions, vectors, ONNX, and the list of
    what would be uploaded; no file of a clone is at hand."""
    generator = np.random.default_rng(0)
    for number in range(16):
        path = place / "images" / ("good" if number % 2 else "defective") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256 if number % 2 else 90, (32, 32, 3), dtype=np.uint8)).save(path)
    small = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "4", "--disable_tqdm", "True"]
    encoder = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8"]
    quick = ["--monitor_steps", "0", "--mask_site", "-3"]
    labelled = ["--train_dir", "images", "--validation_dir", "images", "--model_name_or_path", "encoder"]
    decision = ["--threshold", "f1", "--positive_class", "defective"]
    commands = {
        ("pretrain", *encoder, *quick, *small, "--train_dir", "images", "--output_dir", "encoder"): 0,
        ("finetune", *labelled, *small, *decision, "--output_dir", "classifier"): 0,
        ("predict", "classifier", "images", "--out", "predictions.csv"): 0,
        ("embed", "encoder", "images", "--out", "vectors.parquet"): 0,
        ("export", "classifier", "--format", "onnx", "--out", "model.onnx"): 0,
        ("push", "classifier", "org/x", "--dry_run"): 0,
        ("pretrain", "--config", "encoder/run.yaml"): 2,
    }
    said, codes = run_all(place, *(("a2mim", *command) for command in commands))
    for (command, code), found, text in zip(commands.items(), codes, said, strict=True):
        checked(command, found, code, text)
    assert "decision" in json.loads((place / "classifier" / "config.json").read_text())
    assert len((place / "predictions.csv").read_text().splitlines()) == 17
    assert (place / "vectors.parquet").is_file()
    assert (place / "model.onnx").is_file()
    *_, told, again = said
    assert "model.safetensors" in told
    assert "run.yaml" not in told  # which names folders of this machine
    assert "error: output_dir: " in again


def test_nothing_else_is_installed(place):
    """No further package lies in site-packages, and all files that the package reads do."""
    (site,) = (place / "env").glob("lib/python*/site-packages")
    (record,) = site.glob("a2mim-*.dist-info/RECORD")
    tops = {line.split("/")[0] for line in record.read_text().splitlines() if not line.startswith("..")}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"a2mim", "modeling_a2mim"}
    assert (site / "modeling_a2mim" / "recipes" / "small_data.yaml").is_file()
    assert (site / "modeling_a2mim" / "export" / "templates" / "template.md").is_file()


@pytest.mark.slow
def test_every_module_imports(place):
    run(place, "python", "-c", CODE)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help(place, name):
    assert f"usage: a2mim {name} " in run(place, "a2mim", name, "--help")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["app", "architectures", "conversion", "export"]
    + [f"analysis.{name}" for name in ("interactions", "fourier", "reconstruction")],
)
def test_former_names(place, name):
    assert "usage: a2mim " in run(place, "python", "-m", f"modeling_a2mim.{name}", "--help")
