"""`a2mim recipes`."""

import pytest
import yaml

from modeling_a2mim.commands.recipes import main
from modeling_a2mim.recipes import load_recipe, recipe_names


def test_list(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    main(["--command", "finetune"])
    fewer = capsys.readouterr().out.splitlines()
    assert set(fewer) < set(lines)
    assert all(load_recipe(line.split()[0])["script"] == "run_finetune.py" for line in fewer)


def test_one(capsys, tmp_path):
    main(["small_data"])
    assert yaml.safe_load(capsys.readouterr().out) == load_recipe("small_data")
    own = tmp_path / "mine.yaml"
    own.write_text("arguments: {max_steps: 1}\n")
    main([str(own)])
    assert capsys.readouterr().out == own.read_text()
    with pytest.raises(SystemExit) as stopped:
        main(["small"])
    assert stopped.value.code == 2
    assert "recipe: there is no recipe or file 'small'" in capsys.readouterr().err
