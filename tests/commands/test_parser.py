"""What a command line gives, and what of it is shown."""

import logging
import sys

import pytest
import transformers
from transformers import HfArgumentParser

from modeling_a2mim.arguments.dense import DenseArguments
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.commands.parser import given_arguments, given_names, peek, run_as_command


TOKEN = "hf_" + "x" * 20


@pytest.fixture(scope="module")
def parser():
    return HfArgumentParser((DenseArguments, A2MIMTrainingArguments), allow_abbrev=False)


def test_what_is_given(parser):
    argv = ["--output_dir", "out", "--seed", "42", "--crop_scale", "0.5", "1", "--hub_token", TOKEN]
    assert given_names(parser, argv) == {"output_dir", "seed", "crop_scale", "hub_token"}
    assert given_arguments(parser, argv) == "crop_scale=0.5 1.0, output_dir=out"  # the seed is the default
    assert given_arguments(parser, []) == "none that is not the default"


def test_secrets_in_other_arguments(parser):
    argv = ["--dataset_name", f"https://user:{TOKEN}@host/data", "--run_name", TOKEN]
    shown = given_arguments(parser, argv)
    assert TOKEN not in shown
    assert "https://***@host/data" in shown


def test_what_is_known_before_the_rest():
    found = peek(["--max_steps", "1", "--recipe", "small_data", "--output_dir=out", "--tas", "x"])
    assert (found.recipe, found.output_dir, found.task) == ("small_data", "out", None)


def test_errors_of_workers_are_told_in_a_line(monkeypatch):
    def main():
        raise ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: crop: wrong\n")

    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(SystemExit, match="^error: crop: wrong$"):
        run_as_command(main)
    monkeypatch.setattr(transformers.utils.logging, "get_verbosity", lambda: logging.DEBUG)
    with pytest.raises(ValueError, match="^Caught"):
        run_as_command(main)
