"""README and docs/: commands parse, code runs or compiles, links lead somewhere, tables are those of the results."""

import ast
import functools
import importlib
import inspect
import json
import re
import shlex
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers.trainer_utils import set_seed

import modeling_a2mim
from a2mim.__main__ import COMMANDS
from benchmarks.results_page import PLACE, pages, with_tables
from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.commands.export import main as export
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.recipes import recipe_names


ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "mkdocs.yml").is_file())
sys.path.append(str(ROOT / "docs" / "hooks"))  # as mkdocs has them
from api import reference  # noqa: E402
from flags import MARK, flags_table, parser_of  # noqa: E402


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TASKS = ("image-classification", "semantic-segmentation", "object-detection", "instance-segmentation")
OTHER_PROGRAMS = ("git", "cd", "pip", "pre-commit")
SCRIPTS = {"run_pretraining.py": "pretrain", "run_finetune.py": "finetune"}
# Of torchrun, and of other commands than those of this project.
OTHER_FLAGS = {"--nproc_per_node", "--small", "--help", "--version"}

pytestmark = pytest.mark.usefixtures("one_thread")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands_of(page: Path) -> list[str]:
    """The commands of a page, one a line."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


# Commands


@functools.cache
def parser(command: str, *arguments: str):
    return parser_of(command, *arguments)


@functools.cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_command(command: str):
    """Parse a command by the parser of its program.

    Raises:
        AssertionError: if this project has no such command, or it takes no such arguments.
    """
    if command.lstrip().startswith("#"):
        return
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    words = words[: words.index(">")] if ">" in words else words
    program, *words = words
    if program == "make":
        target = words[0]
        assert target in make_targets(), f"make {target}: the Makefile has no such target"
        assert all(re.fullmatch(r"[A-Z_]+=.*", word) for word in words[1:]), command
    elif program == "pip":
        extras = {extra for word in words for extra in re.findall(r"\[(\w+)\]", word)}
        config = ConfigParser()
        config.read(ROOT / "setup.cfg")
        assert extras <= set(config["options.extras_require"]), command
    elif program == "a2mim":
        check_own(*words)
    elif program in ("python", "torchrun", "accelerate"):
        check_python(words)
    else:
        assert program in OTHER_PROGRAMS, f"{program}: what does this run?"


def check_python(words: list[str]):
    if "-m" in words:
        module, *argv = words[words.index("-m") + 1 :]
        if module not in ("pytest", "venv"):
            assert module == "a2mim", module
            check_own(*argv)
        return
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, argv = words[place], words[place + 1 :]
    assert (ROOT / script).is_file(), f"{script}: no such file"
    if script in SCRIPTS:
        check_own(SCRIPTS[script], *argv)


def check_own(command: str, *argv: str):
    """Parse a command of `a2mim`."""
    if command.startswith("--") or "--help" in argv:
        assert command in (*COMMANDS, "--help", "--version"), command
        return
    assert command in COMMANDS, command
    task = argv[argv.index("--task") + 1 :][:1] if "--task" in argv else ()
    assert not task or task[0] in TASKS, task
    chosen = parser(command, *task)
    if "--recipe" in argv:
        assert argv[argv.index("--recipe") + 1] in recipe_names(), argv
    try:
        chosen.parse_args(argv)
    except (SystemExit, ValueError) as end:
        raise AssertionError(f"{chosen.prog} does not take {shlex.join(argv)}") from end
    if command in SCRIPTS.values() and "--config" not in argv:
        chosen.parse_args_into_dataclasses([*argv, "--use_cpu", "True"])  # whose checks raise ValueError


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands(page, models, monkeypatch):
    monkeypatch.chdir(models)
    for command in commands_of(page):
        check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "python run_pretraining.py --no_such_flag 1",
        "python run_pretraining.py --decoder_kernel_size many",
        "python run_pretraining.py --recipe no_such_recipe",
        "python run_finetune.py --task sorting",
        "python run_finetune.py --task semantic-segmentation --knn",
        "python no_such_script.py",
        "a2mim push only-a-folder",
        "a2mim convert a.pth b --no_such_flag",
        "python -m a2mim no-such-command",
        "make no-such-target",
        "pip install '.[no_such_extra]'",
        "no-such-program",
    ],
)
def test_a_wrong_command_is_found(command, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        check_command(command)


def test_flags_in_the_text():
    """Each `--flag` is one of some command."""
    known = set(OTHER_FLAGS)
    for command, *arguments in [
        shlex.split(mark) for mark in MARK.findall((ROOT / "docs/command_line.md").read_text())
    ]:
        known |= {name for action in parser(command, *arguments)._actions for name in action.option_strings}
    for page in PAGES:
        for span in SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
            named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span))
            assert named <= known, f"{name_of(page)}: `{span}`"
            if span.startswith("make "):
                check_command(span)


def test_tables_of_flags():
    """Each mark of the page on the command line becomes a table, of all that there is."""
    marks = MARK.findall((ROOT / "docs" / "command_line.md").read_text())
    tables = {mark: flags_table(*shlex.split(mark)) for mark in marks}
    for mark, table in tables.items():
        named = {name for action in parser(*shlex.split(mark))._actions for name in action.option_strings}
        shown = set(re.findall(r"--[\w-]+", table))
        missing = {name for name in named if "-" not in name[2:] and not name.startswith("--no_")} - shown
        assert missing <= {"--help", "-h"}, (mark, missing)
    assert "| `--mask_ratio` |" in tables["pretrain"]
    assert "| `--mixup` | `0.0` |" in tables["finetune"]


# Python


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile_and_import(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders that the examples load, of small models, and images."""
    folder = tmp_path_factory.mktemp("models")
    set_seed(0)
    small = {"architecture": "test_resnet", "image_size": 32, "mask_patch_size": 8}
    export_model(A2MIMForPreTraining(A2MIMConfig(**small)).eval(), folder / "a2mim-r50")
    classifier = A2MIMForImageClassification(A2MIMConfig(**small, num_labels=3))
    export_model(classifier.eval(), folder / "a2mim-r50-classifier")
    generator = np.random.default_rng(0)
    labelled = [f"labelled/{split}/{kind}/{i}.png" for split in ("train", "test") for kind in "ab" for i in range(4)]
    for path in ("photo.jpg", *(f"images/{i}.png" for i in range(8)), *labelled):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / path)
    for kind in ("onnx", "torch"):
        export([str(folder / "a2mim-r50-classifier"), "--format", kind])
    return folder


SMALLER = {
    'architecture="resnet50", output_dir="encoder", max_steps=2000': (
        'architecture="test_resnet", image_size=32, mask_patch_size=8, output_dir="encoder", max_steps=1, '
        'use_cpu=True, monitor_steps="0"'
    ),
    'output_dir="classifier"': 'output_dir="classifier", max_steps=1, use_cpu=True',
    'A2MIMConfig.for_architecture("convnext_tiny", image_size=192)': (
        'A2MIMConfig.for_architecture("test_convnext", image_size=32, mask_patch_size=4)'
    ),
    "num_train_epochs=100": "max_steps=1, use_cpu=True, disable_tqdm=True",
    'A2MIMConfig.for_architecture("convnext_tiny", image_size=(192, 256))': (
        'A2MIMConfig.for_architecture("test_convnext", image_size=(192, 256))'
    ),
}


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/export_and_hub.md", "docs/python_api.md"])
def test_python_blocks_run(page, models, monkeypatch, capsys):
    monkeypatch.chdir(models)
    found = blocks(ROOT / page, "python")
    assert found
    for code in found:
        for long, short in SMALLER.items():
            code = code.replace(long, short)
        assert "convnext_tiny" not in code, "would take long: add it to SMALLER"
        exec(compile(code, page, "exec"), {"__name__": "block"})


# Names


@pytest.mark.parametrize("name", modeling_a2mim.__all__)
def test_public_names_are_documented(name):
    thing = getattr(modeling_a2mim, name)
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__  # classes inherit theirs
    assert len((own or "").strip()) > 40, f"{name} has no docstring"
    for key, value in vars(thing).items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if key.startswith("_") or not inspect.isfunction(value):
            continue
        inherited = any(hasattr(base, key) for base in thing.__mro__[1:])
        assert value.__doc__ or inherited or name == "A2MIMTrainingArguments", f"{name}.{key} has no docstring"


@pytest.mark.parametrize(
    "model", [A2MIMModel, A2MIMForPreTraining, A2MIMForImageClassification, modeling_a2mim.A2MIMForObjectDetection]
)
def test_forward_says_shapes_results_and_errors(model):
    text = inspect.getdoc(model.forward)
    assert {"Args:", "Returns:", "Raises:"} <= set(re.findall(r"^\w+:", text, re.MULTILINE))
    assert "(batch, channels, height, width)" in text
    for parameter in list(inspect.signature(model.forward).parameters)[1:]:
        assert parameter == "return_dict" or f"{parameter}:" in text, parameter


def test_the_reference_has_every_public_name():
    text = reference()
    for name in modeling_a2mim.__all__:
        thing = getattr(modeling_a2mim, name)
        assert f"### {name}\n\n::: {thing.__module__}.{name}\n" in text


# Links, tables, messages


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def anchors(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {slug(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(BLOCK.sub("", text)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{name_of(page)}: {link}"
        if page.parent.name == "docs":
            assert target.is_file(), f"{name_of(page)}: {link} is a folder, which the site has not"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == modeling_a2mim.__version__
    assert cited["preferred-citation"]["title"] in (ROOT / "README.md").read_text().replace("\n", " ")


def test_readme_links_every_page():
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - {"docs/index.md"}
    assert pages <= linked
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f"- {Path(page).name}" in navigation for page in pages)


def rows_of(path: str) -> list[str]:
    return [line for line in (ROOT / path).read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_tables_are_those_of_the_results():
    """`make results` writes them."""
    shown = [found[1] for page in pages() for found in PLACE.findall(page.read_text(encoding="utf-8"))]
    expected = ["transfer", "rates", "adapt", "first_run", "first_run_labels", "few_labels", "architectures", "loader"]
    expected += ["factors", "probe_layers"]
    assert set(expected) <= set(shown)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{name_of(page)} has other tables than benchmarks/results/; make results"


def test_numbers_of_the_readme():
    """Its table has a part of the columns of the whole one."""
    whole = {}
    for row in rows_of("benchmarks/results/transfer.md")[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        whole[cells[0], cells[1]] = [cells[2], cells[4], cells[5]]
    text = (ROOT / "README.md").read_text()
    table = [row for row in rows_of("README.md") if row.startswith(("| CNN", "| ViT"))]
    assert 0 < len(table) <= 8
    for row in table:
        name, labels, *numbers = [cell.strip() for cell in row.strip("|").split("|")]
        assert numbers == whole[name, labels], row
    assert "(0.706 against 0.700)" in text
    assert "| CNN, k-NN | 100 | 0.697 ± 0.018 | 0.706 ± 0.008 | 0.700 ± 0.007 |" in "\n".join(
        rows_of("benchmarks/results/transfer.md")
    )


@pytest.mark.parametrize("name", ["demo", "demo_convnext"])
def test_numbers_of_the_demo(name):
    accuracy = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["accuracy"]
    table = rows_of("docs/quickstart.md")
    for protocol, values in accuracy.items():
        cells = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in values.values()]
        cells[-1] = f"{np.mean(values['difference']):+.3f} ± {np.std(values['difference'], ddof=1):.3f}"
        assert f"| {protocol} | {' | '.join(cells)} |" in table


def test_numbers_of_a_step():
    measured = json.loads((ROOT / "benchmarks/results/step.json").read_text())
    table = "\n".join(rows_of("docs/performance.md"))
    for name in ("resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_base_patch16_224"):
        ours = measured[name]["variants"]["A2MIM, whole reconstruction"]
        cells = [f"{ours[to]['time']:.2f} ({ours[to]['low']:.2f}-{ours[to]['high']:.2f})" for to in BARE]
        row = next(line for line in table.splitlines() if line.startswith(f"| {name},")).replace(EN_DASH, "-")
        assert cells == [cell.strip() for cell in row.strip("|").split("|")][1:3], name


BARE, EN_DASH = ("encoder + decoder", "encoder"), "\u2013"


def strings_of(path: Path) -> list[str]:
    """The strings in a module, with … for what is put into them."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%(?:[.\d]*[sdgf]|%)", "…", node.value))
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return found


def test_messages_in_troubleshooting_are_in_the_code():
    strings = [text for path in (ROOT / "modeling_a2mim").rglob("*.py") for text in strings_of(path)]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 40
    for message in messages:
        # What the field is called, and what stands for a value, may be put in by the code.
        parts = [part for part in re.split(r"…", message) if part.strip(" :;,()")]
        rest = parts[0].partition(": ")[2]
        choices = [parts, [rest, *parts[1:]] if rest else parts[1:]]
        found = (all(part.strip() in text for part in choice) for choice in choices if choice for text in strings)
        assert any(found), message


def test_no_private_words():
    """Nothing of the machine that the pages were written on: paths of its home and work folders."""
    folders = "|".join(("work", "root", "home", r"tmp(?!/\w*\.\.\.)"))
    for page in [*PAGES, ROOT / "CHANGELOG.md", *(ROOT / "examples").iterdir()]:
        if page.is_file():
            text = page.read_text(encoding="utf-8")
            assert not re.search(rf"/({folders})/", text), name_of(page)


def test_torch_is_seeded_by_the_tests():
    """Which the blocks that run rely on."""
    assert torch.initial_seed() == 0
