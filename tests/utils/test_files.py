"""Files are written complete or not at all."""

import json
import math

import pytest

from modeling_a2mim.utils.files import TEMPORARY, atomic_files, atomic_write, files_in, safe_name, write_json


def test_files_are_complete_or_as_they_were(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(TypeError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half") and temporary.write_text(None)
    assert path.read_text() == "before"
    with atomic_write(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": math.nan, "a": (1, math.inf)})
    assert (tmp_path / "a.json").read_text() == '{\n "b": null,\n "a": [\n  1,\n  null\n ]\n}\n'
    write_json(tmp_path / "a.json", {"b": 1, "a": 2}, indent=2, sort_keys=True)
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["a", "b"]


def test_several_files_at_once(tmp_path):
    (tmp_path / f"{TEMPORARY}killed").mkdir()
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(TypeError), atomic_files(tmp_path) as temporary:
        (temporary / "kept.txt").write_text("new") and (temporary / "b.txt").write_text(None)
    assert (tmp_path / "kept.txt").read_text() == "kept"
    with atomic_files(tmp_path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner/a.txt").write_text("a")
        (temporary / "b.txt").write_text("b")
    assert files_in(tmp_path) == ["b.txt", "inner/a.txt", "kept.txt"]
    assert {p.name for p in tmp_path.iterdir()} == {"b.txt", "inner", "kept.txt"}
    with pytest.raises(ValueError, match="is a file; expected a folder"), atomic_files(tmp_path / "b.txt"):
        pass


def test_names_of_files():
    assert safe_name("ViT, A2MIM (6 passes)") == "ViT_A2MIM_6_passes_"
    assert safe_name("../../etc") == "_.._etc"
    assert safe_name("..") == "model"
