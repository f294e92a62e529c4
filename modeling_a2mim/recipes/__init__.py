"""Recipes: published settings as YAML files of command-line arguments, in `recipes/` or of the user's own.

A recipe's keys: `description`, `script` and `task` that it is for, `source` (where the settings are from), `expected`
(what was reached with them, and on what) and `arguments`: flags and their values, which any flag on the command line
overrides. `total_train_batch_size` among them says the batch that the learning rate was made for.
"""

import json
from collections.abc import Collection
from pathlib import Path

import yaml

from ..utils.flag_names import meant
from ..utils.yaml_flags import load


FOLDER = Path(__file__).resolve().parent
KEYS = ("description", "script", "task", "source", "expected", "arguments")


def recipe_names() -> list[str]:
    """The names of the published recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, script: str | None = None, task: str | None = None) -> dict:
    """A recipe by its name, or from a file.

    Raises:
        ValueError: naming `recipe`, if there is none, it is malformed, or for another script or task.
    """
    path = FOLDER / f"{name}.yaml" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise ValueError(f"recipe: there is no recipe or file {name!r}; recipes: {', '.join(recipe_names())}")
    try:
        recipe = load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe: {name} is no YAML: {error}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("arguments"), dict):
        raise ValueError(f"recipe: {name} has no `arguments: {{flag: value}}`")
    if unknown := set(recipe) - set(KEYS):
        raise ValueError(f"recipe: {name} has unknown keys {', '.join(sorted(unknown))}; known are {', '.join(KEYS)}")
    for key, mine in (("script", script), ("task", task)):
        if mine is not None and recipe.get(key, mine) != mine:
            raise ValueError(f"recipe: {name} is for {key} {recipe[key]}, not {mine}")
    return recipe


def load_config(path: str) -> dict:
    """The arguments in a YAML file `flag: value`, as transformers' `HfArgumentParser.parse_yaml_file` reads it.

    Raises:
        ValueError: naming `config`, if there is no such file, or no such thing in it.
    """
    try:
        arguments = load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"config: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is no YAML: {error}") from error
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"config: {path} has no lines `flag: value`")
    arguments = {name.lstrip("-"): value for name, value in arguments.items()}
    if "config" in arguments:
        raise ValueError(f"config: {path} names another file of flags, {arguments['config']}; put all into one")
    return arguments


def as_flags(arguments: dict, known: Collection[str] | None = None, field: str = "recipe") -> list[str]:
    """Arguments as they would be typed, `["--optim", "lamb", ...]`.

    Args:
        arguments: names and values; of a list each is typed, a dict is JSON.
        known: the arguments that there are, if that is known.
        field: where they are from, for messages.

    Raises:
        ValueError: naming an argument that there is not, or that has no value.
    """
    flags = []
    for name, value in arguments.items():
        if known is not None and name not in known:
            hint = meant(name, known)
            raise ValueError(f"{field}: there is no argument --{name}{hint and f'; {hint}'}")
        if value is None:
            raise ValueError(f"{field}: --{name} has no value")
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        words = [str(value) for value in values]
        flags += [f"--{name}={words[0]}"] if len(words) == 1 and words[0].startswith("-") else [f"--{name}", *words]
    return flags
