"""Recipes: published settings as YAML files of command-line arguments, in `recipes/` or of the user's own.

A recipe's keys: `description`, `script` and `task` that it is for, `source` (where the settings are from), `expected`
(what was reached with them, and on what) and `arguments`: flags and their values, which any flag on the command line
overrides. `total_train_batch_size` among them says the batch that the learning rate was made for.
"""

import json
from pathlib import Path

import yaml


FOLDER = Path(__file__).resolve().parent
KEYS = ("description", "script", "task", "source", "expected", "arguments")


def recipe_names() -> list[str]:
    """The names of the published recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, script: str, task: str | None = None) -> dict:
    """A recipe by its name, or from a file.

    Raises:
        ValueError: naming `recipe`, if there is none, it is malformed, or for another script or task.
    """
    path = FOLDER / f"{name}.yaml" if name in recipe_names() else Path(name)
    if not path.is_file():
        raise ValueError(f"recipe: there is no recipe or file {name!r}; recipes: {', '.join(recipe_names())}")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def as_flags(arguments: dict, known: set[str]) -> list[str]:
    """The arguments of a recipe as they would be typed, `["--optim", "lamb", ...]`.

    Raises:
        ValueError: naming an argument that the script does not have.
    """
    flags = []
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"recipe: there is no argument --{name}")
        if value is None:
            raise ValueError(f"recipe: --{name} has no value")
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{name}", *map(str, values)]
    return flags
