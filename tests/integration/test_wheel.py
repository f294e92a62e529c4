"""The package as a wheel, installed outside of the repository: package data and paths that only exist in a clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytestmark = pytest.mark.slow

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "setup.cfg").is_file())

# Everything of the package that reads a file of its own: recipes, the templates of cards, and who calls them.
CODE = """
import importlib, pkgutil, sys
from pathlib import Path

import modeling_a2mim

site = Path(sys.argv[1]).resolve()
assert Path(modeling_a2mim.__file__).resolve().is_relative_to(site), modeling_a2mim.__file__
for found in pkgutil.walk_packages(modeling_a2mim.__path__, "modeling_a2mim."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import load_pretraining_model
from modeling_a2mim.recipes import load_recipe, recipe_names

assert len(recipe_names()) > 5
load_recipe("resnet50_a2mim_100ep", "run_pretraining.py")
config = A2MIMConfig.resnet(
    architecture="resnet18", image_size=64, model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
)
folder = export_model(A2MIMForPreTraining(config).eval(), "exported")
assert "modeling_a2mim" in (folder / "README.md").read_text()
assert load_pretraining_model(str(folder)).config.architecture == "resnet18"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the package as its wheel installs it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):  # a build in the clone would leave its own files there
        if name.startswith(("modeling_a2mim/", "model_cards/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(site: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=site.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_every_module_imports_and_finds_its_files(site):
    done = run(site, "-c", CODE, str(site))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    ["app", "architectures", "conversion", "export"]
    + [f"analysis.{name}" for name in ("interactions", "fourier", "reconstruction")],
)
def test_commands(site, name):
    done = run(site, "-m", f"modeling_a2mim.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert "RuntimeWarning" not in done.stderr  # of a module that its own package has imported already
