"""Replace `<!-- flags: COMMAND ARGUMENTS -->` by a table of the flags of `a2mim COMMAND`, from its parser. Arguments
are those of `build_parser`: for `finetune` a task."""

import argparse
import importlib
import re
import shlex
from dataclasses import fields, is_dataclass

from transformers import TrainingArguments

from a2mim.__main__ import COMMANDS, PACKAGE


MARK = re.compile(r"<!-- flags: (.+?) -->")
THEIRS = {field.name: field.default for field in fields(TrainingArguments)}


def on_page_markdown(markdown: str, **_) -> str:
    return MARK.sub(lambda mark: flags_table(*shlex.split(mark[1])), markdown)


def parser_of(command: str, *arguments: str) -> argparse.ArgumentParser:
    """The parser of `a2mim COMMAND`."""
    return importlib.import_module(f"{PACKAGE}.{COMMANDS[command][0]}").build_parser(*arguments)


def flags_table(command: str, *arguments: str) -> str:
    """A Markdown table of flags, defaults and help. Fields of transformers' TrainingArguments that have their own
    default and help are only named below it."""
    parser = parser_of(command, *arguments)
    own = {f.name: f for kind in getattr(parser, "dataclass_types", ()) if is_dataclass(kind) for f in fields(kind)}
    rows, inherited, seen = ["| flag | default | meaning |", "|---|---|---|"], [], set()
    for action in parser._actions:
        negated = action.dest in seen and all(name.startswith("--no") for name in action.option_strings)
        if isinstance(action, argparse._HelpAction) or negated:
            continue
        seen.add(action.dest)
        if action.dest in own and own[action.dest] is TrainingArguments.__dataclass_fields__.get(action.dest):
            inherited.append(f"`--{action.dest}`")
            continue
        flag = ", ".join(name for name in action.option_strings if "-" not in name.lstrip("-"))  # not --mask-ratio
        flag = flag or ", ".join(action.option_strings) or action.metavar or action.dest
        options = [str(getattr(choice, "value", choice)) for choice in action.choices or ()]
        text = (action.help or "") % {"default": action.default}
        text += f" One of {', '.join(options)}." if options else ""
        rows.append(f"| {cell(flag, True)} | {cell(default(action))} | {cell(text)} |")
    text = "\n".join(rows)
    if inherited:
        text += f"\n\nFrom transformers' `TrainingArguments`, with transformers' defaults: {', '.join(inherited)}."
    return text


def default(action: argparse.Action) -> str:
    value = getattr(action.default, "value", action.default)
    if action.required:
        return "required"
    return "" if value is None or value is argparse.SUPPRESS else f"`{value}`"


def cell(text: str, code: bool = False) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`{text}`" if code else text.replace("<", "&lt;")
