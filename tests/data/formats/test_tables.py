"""Tables that name images."""

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages

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
        path.write_text(text, encoding="utf-8-sig" if streaming else "utf-8")  # as Windows' Notepad, or without
        given = {"dataset_name": [str(path)], "streaming": streaming}
        assert numbers(labels=True, **given) == (["cat", "dog"], [(0, 0), (2, 1)])
    write_images(tmp_path / "data" / "images", ["0.png", "k::v.png"])
    (tmp_path / "data" / "a.csv").write_text("path\nimages/0.png\nimages/k::v.png\n")
    assert numbers(dataset_name=["data/a.csv"], streaming=streaming) == [0, 1]
    (tmp_path / "two.csv").write_text("left,right\ndata/images/0.png,data/images/1.png\n")
    two = {"dataset_name": ["two.csv"], "streaming": streaming}
    with pytest.raises(ValueError, match=r"^image_column_name: two.csv names images in left, right"):
        numbers(**two)
    assert numbers(**two, image_column_name="right") == [1]
    for text, message in (("isic_id,diagnosis\nx,y\n", "none of its columns .isic_id, diagnosis. names"), ("", "csv")):
        (tmp_path / "none.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            numbers(dataset_name=["none.csv"], streaming=streaming)


def loaded(path, labels, **given):
    """What labels of a table become."""
    write_images(path.parent, [f"{n}.png" for n in range(len(labels))])
    name = "file_name" if path.stem == "metadata" else "file"
    path.write_text(f"{name},label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(labels)))
    return LabelledImages.load(
        ClassificationArguments(train_dir=[str(path.parent if path.stem == "metadata" else path)], **given), None
    )


@pytest.mark.parametrize("table", ["a.csv", "metadata.csv"])
@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (["01", "1", "001", "1", "-1"], {"001": 1, "01": 1, "1": 2}, "'001' and '01' are the same number"),
        (["01", "02", "02"], {"01": 1, "02": 2}, ""),
        (["1e3", "1000", "1000.0"], {"1000": 1, "1000.0": 1, "1e3": 1}, "'1000' and '1000.0' are the same"),
        (["9007199254740993", "9007199254740992", ""], {"9007199254740992": 1, "9007199254740993": 1}, "same number"),
        (["TRUE", "true", "False"], {"False": 1, "TRUE": 1, "true": 1}, "'TRUE' and 'true' are the same"),
        (["1.0", "2.0", "", "NA", "-1.0"], {"1": 1, "2": 1}, ""),
        (["3", " 3", "nan", "4"], {"3": 2, "4": 1}, ""),
        (["True", "False"], {"False": 1, "True": 1}, ""),
    ],
    ids=["codes", "zeros", "floats", "large", "truth", "gaps", "blanks", "booleans"],
)
def test_numbers_that_are_names(tmp_path, caplog, table, labels, classes, said):
    found = loaded(tmp_path / table, labels)
    assert dict(zip(found.names, found.counts(found.train), strict=True)) == classes
    assert ("is kept as text" in caplog.text) == bool(said)
    assert said in caplog.text


@pytest.mark.parametrize("table", ["a.csv", "metadata.csv"])
def test_words_that_pandas_takes_for_missing(tmp_path, caplog, table):
    found = loaded(tmp_path / table, ["None", "dent", "NA", "", "n/a", "null", "dent", "None", "nan"])
    counts = dict(zip(found.names, found.counts(found.train), strict=True))
    assert counts == {"None": 2, "dent": 2, "NA": 1, "n/a": 1, "null": 1, "nan": 1}
    assert "1 of the 9 images to train on have no label" in caplog.text
    found.check()
    assert caplog.text.count("'NA', 'None', 'n/a', 'nan', 'null' in column 'label' are classes like others") == 1
    caplog.clear()
    loaded(tmp_path / table, ["dent", "scratch"]).check()
    assert "like others" not in caplog.text


def test_missing_words_beside_numbers_and_files(tmp_path):
    for labels in (["1.5", "NA", "nan", "", "None", "2"], ["007", "NA", "7", "null", "1", "2"]):
        found = loaded(tmp_path / "a.csv", labels, problem_type="regression")
        assert found.train["label"][:] == [float(label) for label in labels if label[:1].isdigit()]
    (tmp_path / "a.csv").write_text("file,mask,label\n0.png,1.png,a\nNA,2.png,b\n2.png,None,NA\n")
    rows = load_images(str(tmp_path / "a.csv"), image_column="file")
    assert rows["mask"][:] == ["1.png", "2.png", None]
    assert [image and image["path"] for image in rows.data["file"].to_pylist()][1] is None
    assert rows["label"][:] == ["a", "b", "NA"]


def test_a_table_of_one_class_called_none(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    for name, labels in (("a.csv", ["None", "None"]), ("b.csv", ["dent", ""]), ("c.csv", ["NA", "dent"])):
        (tmp_path / name).write_text("file,label\n" + "".join(f"{n}.png,{own}\n" for n, own in enumerate(labels)))
    assert load_images(str(tmp_path / "[abc].csv"))["label"][:] == ["None", "None", "dent", None, "NA", "dent"]


def test_numbers_to_predict_stay_numbers(tmp_path):
    for labels in (["1.5", "-1", "007", "2"], ["007", "7.0", "1e1", "-1"], ["1.0", "1", "2", "3"]):
        found = loaded(tmp_path / "a.csv", labels, problem_type="regression")
        assert found.train["label"][:] == [float(label) for label in labels]
    path = tmp_path / "b.csv"
    path.write_text("file,weight\n0.png,01\n1.png,1\n")
    found = LabelledImages.load(ClassificationArguments(train_dir=[str(path)], problem_type="regression"), None)
    assert (found.column, found.train["weight"][:]) == ("weight", [1, 1])


def test_tables_of_one_source_have_the_same_columns(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    for name, labels in (("a.csv", ["01", "02"]), ("b.csv", ["10", "11"])):
        (tmp_path / name).write_text("file,label\n" + "".join(f"{n}.png,{own}\n" for n, own in enumerate(labels)))
    assert load_images(str(tmp_path / "[ab].csv"))["label"][:] == ["01", "02", "10", "11"]


def test_rows_that_name_an_image_again(tmp_path, caplog):
    loaded(tmp_path / "a.csv", ["x", "y", "x"])
    assert "again" not in caplog.text
    (tmp_path / "a.csv").write_text("file,label\n0.png,x\n1.png,y\n0.png,x\n./1.png,x\n1.png,x\n")
    load_images(str(tmp_path / "a.csv"))
    assert f"a.csv: 3 rows name an image again, such as {tmp_path}/0.png; 2 of them differ" in caplog.text
    assert f"such as {tmp_path}/1.png: label 'y' and 'x'" in caplog.text
