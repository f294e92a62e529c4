"""Tables that name images."""

import pytest

from ...image_files import numbers, write_images


@pytest.mark.parametrize("streaming", [False, True])
def test_tables(tmp_path, monkeypatch, streaming):
    write_images(tmp_path / "data" / "images", ["0.png", "1.png", "2.png"])
    monkeypatch.chdir(tmp_path)  # not where paths are relative to
    tables = {
        "a.csv": "id,path,label\n7,images/0.png,cat\n8,images/2.png,dog\n",
        "a.tsv": "id\tfile_name\tlabel\n7\timages/0.png\tcat\n8\timages/2.png\tdog\n",
        "a.jsonl": '{"image": "images/0.png", "label": "cat"}\n{"image": "images/2.png", "label": "dog"}\n',
        "a.json": '[{"scan": "images/0.png", "label": "cat"}, {"scan": "images/2.png", "label": "dog"}]',
    }
    for name, text in tables.items():
        path = tmp_path / "data" / name
        path.write_text(text)
        given = {"dataset_name": [str(path)], "streaming": streaming}
        assert numbers(labels=True, **given) == (["cat", "dog"], [(0, 0), (2, 1)])
    (tmp_path / "two.csv").write_text("left,right\ndata/images/0.png,data/images/1.png\n")
    two = {"dataset_name": ["two.csv"], "streaming": streaming}
    with pytest.raises(ValueError, match=r"^image_column_name: two.csv names images in left, right"):
        numbers(**two)
    assert numbers(**two, image_column_name="right") == [1]
    for text, message in (("isic_id,diagnosis\nx,y\n", "none of its columns .isic_id, diagnosis. names"), ("", "csv")):
        (tmp_path / "none.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            numbers(dataset_name=["none.csv"], streaming=streaming)
