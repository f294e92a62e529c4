"""Tables in Markdown."""

from modeling_a2mim.utils.tables import markdown_table, table_cell


def test_cells_stay_in_their_cell():
    assert table_cell("a | b\n c") == "a \\| b c"
    assert table_cell(None) == "not recorded"
    assert table_cell(3) == "3"


def test_tables():
    assert markdown_table(("a|b", "c"), [(1, ""), ("x", None)]) == (
        "| a\\|b | c |\n|---|---|\n| 1 |  |\n| x | not recorded |"
    )
    assert markdown_table(("", ""), []) == "| | |\n|---|---|"
    assert markdown_table(["a", "b"], [[1, 2]], spaced=True) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
