"""Folders as annotation tools write them: images, boxes and names as they are there, and the rest counted."""

import json

import datasets
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from modeling_a2mim.tasks.detection.annotation_folders import annotated_splits, choose_split
from modeling_a2mim.tasks.detection.annotations import as_rows
from modeling_a2mim.tasks.detection.yolo import yolo_labels


def image(path, size=(40, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


SQUARE = [[2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]]


def coco(names=("cat", "dog"), files=("a.jpg", "b.jpg"), first=10):
    """Ids of categories from `first`, last name first; one object in each image."""
    categories = [{"id": first + i, "name": name} for i, name in enumerate(names)]
    images = [{"id": 100 + i, "file_name": name, "width": 40, "height": 20} for i, name in enumerate(files)]
    objects = [
        {"id": i, "image_id": 100 + i, "category_id": first + i % len(names), "bbox": [2, 2, 10, 10], "area": 90}
        for i in range(len(files))
    ]
    return {"images": images, "annotations": objects, "categories": categories}


def paths(found):
    return [row["image"]["path"] for row in found.cast_column("image", datasets.Image(decode=False))]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def test_coco_as_it_is_published(tmp_path):
    """Images and their annotations in folders of their own, beside those of other tasks."""
    for split, files in (("train2017", ["a.jpg", "b.jpg"]), ("val2017", ["a.jpg"])):
        for name in files:
            image(tmp_path / split / name)
        data = coco(files=files)
        data["annotations"][0] |= {"segmentation": SQUARE, "iscrowd": 1}
        write(tmp_path / "annotations" / f"instances_{split}.json", data)
        write(tmp_path / "annotations" / f"captions_{split}.json", data)
        write(tmp_path / "annotations" / f"person_keypoints_{split}.json", data)
    splits = annotated_splits(tmp_path)
    assert list(splits) == ["train", "validation"]
    train, validation = (splits[name]() for name in splits)
    assert paths(train) == [str(tmp_path / "train2017" / n) for n in ("a.jpg", "b.jpg")]
    assert paths(validation)[0] == str(tmp_path / "val2017/a.jpg")  # of two of that name
    assert (train[0]["width"], train[0]["height"]) == (40, 20)
    assert train.features["objects"]["category"].feature.names == ["cat", "dog"]
    one, two = (as_rows(row["objects"])[0] for row in train)
    assert (one["category"], two["category"]) == (0, 1)
    assert one["bbox"] == [2, 2, 10, 10]
    assert (one["area"], one["iscrowd"], two["iscrowd"]) == (90, 1, None)
    assert json.loads(one["segmentation"]) == SQUARE


def test_coco_beside_its_images(tmp_path):
    """As Roboflow writes it; the folder of one split has no splits."""
    for split in ("train", "valid", "test"):
        image(tmp_path / split / "a.jpg")
        write(tmp_path / split / "_annotations.coco.json", coco(files=["a.jpg"]))
    assert list(annotated_splits(tmp_path)) == ["test", "train", "validation"]
    assert list(annotated_splits(tmp_path / "valid")) == [""]
    assert len(annotated_splits(tmp_path / "valid")[""]()) == 1
    write(tmp_path / "train" / "more.json", coco())
    with pytest.raises(ValueError, match=r"^dataset_name: train/_annotations.coco.json and train/more.json in"):
        annotated_splits(tmp_path)


def test_what_coco_files_lack_is_counted(tmp_path, caplog):
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/z.jpg")
    image(tmp_path.parent / f"{tmp_path.name}-outside.jpg")
    outside = f"../{tmp_path.name}-outside.jpg"
    data = coco(files=["data\\images\\a.jpg", "gone.jpg", outside])
    extra = {"bbox": [1, 1, 2, 2]}
    data["annotations"] += [{**extra, "image_id": 100, "category_id": 99}, {**extra, "image_id": 7, "category_id": 10}]
    data["annotations"] += [{**extra, "image_id": 100, "category_id": [10]}, {**extra, "image_id": None}, "nothing"]
    data["annotations"] += [
        {"image_id": 100, "category_id": 11, "bbox": value} for value in ([], None, [1, "b", 2, 3])
    ]
    data["images"].append({**data["images"][0], "file_name": "images/a.jpg"})
    write(tmp_path / "labels.json", data)
    found = annotated_splits(tmp_path)[""]()
    assert paths(found) == [str(tmp_path / "images/a.jpg")]
    boxes = [one["bbox"] for one in as_rows(found[0]["objects"])]
    assert boxes == [[2, 2, 10, 10], [], [], [1, None, 2, 3]]  # what is no box is counted with all other annotations
    told = caplog.text
    assert f"2 images of its list are not there, and are left out: gone.jpg, {tmp_path.name}-outside.jpg" in told
    assert "1 images of its list have the id of another one" in told
    assert "2 annotations are of categories that it does not list, and are left out: 99 (1), [10] (1)" in told
    assert "3 annotations are of no image of its list" in told
    assert "1 images beside them are not in its list, and are left out: z.jpg" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "has two categories called 'a'"),
        ({"categories": [{"id": 1}]}, r"is no JSON file of COCO's form: KeyError\('name'\)"),
        ({"images": [{"id": 1, "file_name": "x.jpg"}]}, "of the 1 images in .* none is in"),
    ],
)
def test_wrong_coco_files(tmp_path, change, message):
    image(tmp_path / "a.jpg")
    write(tmp_path / "x.json", {**coco(files=["a.jpg"]), **change})
    with pytest.raises(ValueError, match=f"^dataset_name: .*{message}"):
        annotated_splits(tmp_path)[""]()


@pytest.mark.parametrize("order", ["images/{}", "{}/images"])
def test_yolo(tmp_path, order, caplog):
    """Folders as ultralytics and as Roboflow name them; boxes, polygons, a photograph that is shown turned."""
    (tmp_path / "data.yaml").write_text("train: x\nnames:\n  0: cat\n  1: dog\n")
    for split in ("train", "val"):
        folder = tmp_path / order.format(split)
        image(folder / "a.jpg")
        image(folder / "b.png")
        exif = Image.Exif()
        exif[274] = 6
        image(folder / "c.jpg", exif=exif)
        labels = {"a": "0 0.5 0.5 0.5 0.4\n1 0.05 0.1 0.3 0.1 0.3 0.6\n", "c": "1 0.5 0.5 1.0 0.5\n", "lonely": ""}
        labels["a"] += "one 1 1 1 1\n0 0.5 0.5 0.1 0.1 0.9\n\n7 0.5 0.5 0.1 0.1\n0 nan 0.5 0.1 0.1\n"
        labels["a"] += "0 0.5 0.5 0.2 0.1 0.4 0.4 2 0.6 0.6 2\n"  # keypoints, of which nobody tells
        for name, text in labels.items():
            path = yolo_labels(folder / f"{name}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    splits = annotated_splits(tmp_path)
    assert set(splits) == {"train", "validation"}
    found = splits["train"]()
    assert [name.rsplit("/", 1)[1] for name in paths(found)] == ["a.jpg", "b.png", "c.jpg"]
    assert found.features["objects"]["category"].feature.names == ["cat", "dog"]
    boxes = [[one["bbox"] for one in as_rows(row["objects"])] for row in found]
    np.testing.assert_allclose(boxes[0], [[10, 6, 20, 8], [2, 2, 10, 10]], atol=1e-9)
    assert boxes[1] == []
    assert boxes[2] == [[0, 10, 20, 20]]  # of an image of 20 x 40 pixels
    assert [(row["height"], row["width"]) for row in found] == [(20, 40), (20, 40), (40, 20)]
    np.testing.assert_allclose(json.loads(found[0]["objects"]["segmentation"][1]), [[2, 2, 12, 2, 12, 12]])
    told = caplog.text
    assert "1 images have no file of labels, and count as images without objects: b.png" in told
    assert (
        "4 lines are no box and no polygon, and are left out: a.txt line 3, a.txt line 4, a.txt line 6, a.txt line 7"
        in (told)
    )
    assert "1 objects are of classes without a name, and are left out: 7 (1)" in told
    assert "1 files of labels have no image: lonely.txt" in told
    # A folder of one split, or the images of one alone.
    for place in (tmp_path / order.format("train"), *([] if order[0] == "i" else [tmp_path / "train"])):
        assert len(annotated_splits(place)[""]()) == 3


def test_yolo_of_images_that_pillow_does_not_open(tmp_path, caplog):
    """All kinds that models are trained on have the size of their boxes; of an image without one, none are lost
    silently."""
    pixels = np.arange(5 * 20 * 40, dtype=np.uint16).reshape(5, 20, 40)
    np.save(tmp_path / "a.npy", pixels[0])
    np.save(tmp_path / "b.npy", np.stack([pixels] * 2))  # pages
    tifffile.imwrite(tmp_path / "c.tif", pixels, photometric="minisblack", planarconfig="separate")  # bands
    tifffile.imwrite(tmp_path / "d.tif", pixels, photometric="minisblack")  # pages
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(2, 1, 0), np.eye(4)), tmp_path / "e.nii.gz")
    image(tmp_path / "f.png")
    for name in ("x.png", "y.png"):  # the second one has no objects, and is counted when it is read
        (tmp_path / name).write_bytes(b"none")
    for name in ("a", "b", "c", "d", "e", "f", "x"):
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.4")
    (tmp_path / "y.txt").write_text("")
    found = annotated_splits(tmp_path)[""]()
    assert [name.rsplit("/", 1)[1] for name in paths(found)] == [
        *("a.npy", "b.npy", "c.tif", "d.tif", "e.nii.gz", "f.png", "y.png")
    ]
    assert [row["objects"]["bbox"] for row in found.remove_columns("image")] == [[[10, 6, 20, 8]]] * 6 + [[]]
    assert "1 images with objects cannot be opened, and are left out: x.png (opening: no JPEG" in caplog.text
    with pytest.raises(ValueError, match="^max_skipped_ratio: 1 of 8 images in .* x.png"):
        annotated_splits(tmp_path, most_broken=0.1)[""]()
    with pytest.raises(ValueError, match=r"^max_skipped_ratio: 7 of 8 images in .* a.npy \(40 x 20 pixels"):
        annotated_splits(tmp_path, max_pixels=799, most_broken=0.5)[""]()


def test_yolo_with_keypoints(tmp_path, caplog):
    """The box of each line is used, where data.yaml tells that keypoints follow."""
    caplog.set_level("INFO")
    image(tmp_path / "a.png")
    for count in (3, 4):  # also of numbers that are odd
        (tmp_path / "data.yaml").write_text(f"names: [plate]\nkpt_shape: [{count}, 3]\n")
        points = " 0.9 0.9 2" * count
        (tmp_path / "a.txt").write_text(
            f"0 0.5 0.5 0.5 0.4{points}\n0 0.5 0.5 0.5 0.4\n0 0.5 0.5 0.5 0.4 {points} 1\n"
        )
        objects = annotated_splits(tmp_path)[""]()[0]["objects"]
        assert objects["bbox"] == [[10, 6, 20, 8]] * 2
        assert objects["segmentation"] == [None, None]
    assert "keypoints (kpt_shape) are left out, boxes are used" in caplog.text
    assert "1 lines are no box and no polygon, and are left out: a.txt line 3" in caplog.text
    (tmp_path / "data.yaml").write_text("names: [plate]\nkpt_shape: 4\n")
    with pytest.raises(ValueError, match="^dataset_name: .*data.yaml must have the number of keypoints"):
        annotated_splits(tmp_path)[""]()


def test_yolo_beside_its_images(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.5 0.5")
    found = annotated_splits(tmp_path)[""]()
    assert found[0]["objects"]["category"] == [1]
    assert found.features["objects"]["category"].feature.dtype == "int64"  # nobody names the classes
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert annotated_splits(tmp_path)[""]().features["objects"]["category"].feature.names == ["cat", "dog"]
    (tmp_path / "data.yaml").write_text("names: {0: cat, 2: dog}")
    with pytest.raises(ValueError, match="^dataset_name: .*data.yaml must have the names of the classes 0, 1"):
        annotated_splits(tmp_path)[""]()


@pytest.mark.parametrize("where", ["classes.txt", "labels/classes.txt", "labels/train/classes.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_yolo_names_in_text_files(tmp_path, caplog, where, encoding):
    """Where LabelImg writes them, too, and as Windows' Notepad does."""
    for name in ("a", "b"):
        image(tmp_path / "images" / "train" / f"{name}.jpg")
        label = tmp_path / "labels" / "train" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("1 0.5 0.5 0.5 0.5\n", encoding=encoding)
    (tmp_path / where).write_text("café\ndog \n\n", encoding=encoding)
    read = annotated_splits(tmp_path)["train"]
    assert read().features["objects"]["category"].feature.names == ["café", "dog"]
    assert [row["objects"]["category"] for row in read()] == [[1], [1]]
    assert not caplog.text
    for text, message in (
        (b"cat\n\ndog\n", "has nothing in line 2, which names class 1"),
        (b"", "has nothing in line 1"),
        ("café\ndog".encode("latin-1"), "store it as UTF-8"),
        ("cat\ndog".encode("utf-16"), "store it as UTF-8"),
        (b"cat\ncat\n", "names two classes alike"),
    ):
        (tmp_path / where).write_bytes(text)
        with pytest.raises(ValueError, match=f"^dataset_name: .*{where} .*{message}"):
            read()


def test_yolo_names_that_differ(tmp_path):
    for part, names in (("a", "cat\ndog"), ("b", "dog\ncat")):
        image(tmp_path / "images" / part / "x.jpg")
        folder = tmp_path / "labels" / part
        folder.mkdir(parents=True)
        (folder / "x.txt").write_text("1 0.5 0.5 0.5 0.5")
        (folder / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match="^dataset_name: .*b/classes.txt has other names of classes than .*a/classes"):
        annotated_splits(tmp_path)[""]()
    (tmp_path / "data.yaml").write_text("names: [cat, dog]", encoding="utf-8-sig")
    assert annotated_splits(tmp_path)[""]().features["objects"]["category"].feature.names == ["cat", "dog"]
    (tmp_path / "data.yaml").write_text("names: [cat, dog")
    with pytest.raises(ValueError, match="^dataset_name: .*data.yaml is no YAML"):
        annotated_splits(tmp_path)[""]()


def test_coco_with_a_byte_order_mark(tmp_path, monkeypatch):
    image(tmp_path / "a.jpg")
    (tmp_path / "x.json").write_text(json.dumps(coco(files=["a.jpg"])), encoding="utf-8-sig")
    for large in (2**22, 10):
        monkeypatch.setattr("modeling_a2mim.tasks.detection.annotation_folders.SMALL_JSON", large)
        assert paths(annotated_splits(tmp_path)[""]()) == [str(tmp_path / "a.jpg")]


def test_other_folders_are_left_to_datasets(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a photo of a cat")
    write(tmp_path / "package.json", {"images": []})
    write(tmp_path / "a.json", [1, 2])
    assert annotated_splits(tmp_path) is None
    write(tmp_path / "x.json", coco(files=["a.jpg"]))
    assert list(annotated_splits(tmp_path)) == [""]
    (tmp_path / "metadata.csv").write_text("file_name\na.jpg\n")
    assert annotated_splits(tmp_path) is None


def test_which_split_is_meant():
    both, one = {"train": None, "validation": None, "test": None}, {"": None}
    assert [choose_split(both, given, False, "x") for given in (None, "valid", "test")] == ["validation"] * 2 + [
        "test"
    ]
    assert [choose_split(both, given, True, "x") for given in (None, "train", "test")] == ["train", "train", "test"]
    assert (choose_split(one, "train", True, "x"), choose_split(one, None, False, "x")) == ("", None)
    with pytest.raises(ValueError, match="^x: no split 'val'; there are none"):
        choose_split(one, "val", False, "x")
    with pytest.raises(ValueError, match="^x: no split 'train'; there are test, validation"):
        choose_split({"test": None, "validation": None}, "train", True, "x")
