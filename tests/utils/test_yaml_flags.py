"""YAML as people write flags."""

import math

import pytest
import yaml

from modeling_a2mim.utils.yaml_flags import dump, load


def test_numbers_and_words():
    text = """
rate: 1e-5
sizes: [1e3, 2., .5, -3, +7, 0]
words: [010, 0x10, 1_000, 1:30, 00.5]
strategy: no
half: off
on: yes
flag: true
nested: {min_lr: 1e-6, large: .inf}
"""
    assert load(text) == {
        "rate": 1e-5,
        "sizes": [1000.0, 2.0, 0.5, -3, 7, 0],
        "words": ["010", "0x10", "1_000", "1:30", 0.5],
        "strategy": "no",
        "half": "off",
        "on": "yes",
        "flag": True,
        "nested": {"min_lr": 1e-6, "large": math.inf},
    }


def test_what_is_written_is_read_as_it_was():
    values = {
        "revision": "1e5",
        "strategy": "no",
        "epochs": "3",
        "classes": ["010", "1:30", "7"],
        "rate": 1e-5,
        "name": "Köln",
        "flag": "true",
        "x": [],
    }
    assert load(dump(values)) == values


def test_a_key_that_comes_twice():
    for text, line in (("a: 1\nb: 2\na: 3\n", 3), ("a: {b: 1, b: 1}\n", 1)):
        with pytest.raises(yaml.YAMLError, match=f"is there twice\n.*line {line}"):
            load(text)
