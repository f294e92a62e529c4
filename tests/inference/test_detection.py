"""Objects of a detector in COCO's form: what the model's own post-processing gives, read by pycocotools."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from transformers import AutoImageProcessor, YolosConfig, YolosForObjectDetection, YolosImageProcessor

from modeling_a2mim.commands.predict import main
from modeling_a2mim.inference import detection
from modeling_a2mim.models.detection import A2MIMForObjectDetection
from modeling_a2mim.tasks.detection.data import Resize

from ..models.test_detection import detector


pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder, resize=None, **kwargs):
    model = detector(**kwargs).eval()
    model.save_pretrained(folder)
    (resize or Resize((64, 64))).processor(model.config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    return write(tmp_path_factory.mktemp("instances"), score_threshold=0.2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate(["a.png", "sub/ü, c.png", "d.png", "e.png"]):
        (folder / name).parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60 + 7 * number, 90 - 5 * number), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    return folder


def predict(model, images, out, *flags):
    main([str(model), str(images), "--out", str(out), "--num_workers", "0", "--device", "cpu", *flags])
    return json.loads(out.read_text(encoding="utf-8"))


def by_file(data):
    names = {image["id"]: image["file_name"] for image in data["images"]}
    found = {name: [] for name in names.values()}
    for one in data["annotations"]:
        found[names[one["image_id"]]].append(one)
    return found


def expected_of(folder, photos, file, threshold):
    model = A2MIMForObjectDetection.from_pretrained(folder).eval()
    image = Image.open(photos / file)
    with torch.no_grad():
        outputs = model(**AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt"))
    return model.post_process_object_detection(outputs, threshold, [(image.height, image.width)])[0]


@pytest.mark.few(2)
@pytest.mark.parametrize("flags", [[], ["--batch_size", "2"], ["--threshold", "0.3"], ["--threshold", "0.1"]])
def test_objects_are_those_of_the_model(instances, photos, tmp_path, flags, caplog):
    data = predict(instances, photos, tmp_path / "out.json", *flags)
    least = float(flags[1]) if "--threshold" in flags else 0.2
    assert f"decision: objects with a score above {least:g}" in caplog.text
    assert [image["file_name"] for image in data["images"]] == ["a.png", "d.png", "e.png", "sub/ü, c.png"]
    assert data["categories"] == [{"id": i, "name": f"LABEL_{i}"} for i in range(3)]
    assert [error["file_name"] for error in data["errors"]] == ["broken.png"]
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in data["images"]}
    if least == 0.1:  # below the model's own, at which it drops objects
        own = json.loads((instances / "config.json").read_text())
        (tmp_path / "low").mkdir()
        for path in instances.iterdir():
            (tmp_path / "low" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "low" / "config.json").write_text(json.dumps(own | {"score_threshold": 0.1}))
        instances = tmp_path / "low"
    total = 0
    for file, objects in by_file(data).items():
        expected = expected_of(instances, photos, file, least)
        np.testing.assert_allclose([o["score"] for o in objects], expected["scores"], atol=1e-4)
        assert [o["category_id"] for o in objects] == expected["labels"].tolist()
        boxes = np.array([o["bbox"] for o in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, expected["boxes"], atol=0.02)
        for one, mask in zip(objects, expected["masks"].numpy(), strict=True):
            assert tuple(one["segmentation"]["size"]) == sizes[file] == mask.shape
            assert (rle.decode(one["segmentation"]) != mask).mean() < 0.01
        total += len(objects)
    assert total > 4 or least == 0.3
    assert "5 images, 1 of them could not be read" in caplog.text


def test_pycocotools_reads_it(instances, photos, tmp_path):
    data = predict(instances, photos, tmp_path / "out.json")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "out.json"))
        results = truth.loadRes(copy.deepcopy(data["annotations"]))  # which it changes
    assert len(results.anns) == len(data["annotations"]) > 0
    first = data["annotations"][0]
    assert first["id"] == 1
    assert truth.annToMask(first).shape == tuple(first["segmentation"]["size"])
    assert first["area"] == truth.annToMask(first).sum()


def test_boxes_alone_in_images_of_their_own_size(photos, tmp_path):
    """Beside which images one is in a batch changes nothing, though they are of other sizes."""
    folder = write(tmp_path / "model", Resize((64, 64), [64], 128), family="resnet", predict_masks=False)
    found = [predict(folder, photos, tmp_path / f"{n}.json", "--batch_size", n) for n in ("1", "4")]
    assert "segmentation" not in found[0]["annotations"][0]
    scores = [[one["score"] for one in data["annotations"]] for data in found]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert [o["image_id"] for o in found[0]["annotations"]] == [o["image_id"] for o in found[1]["annotations"]]


def test_killed_and_resumed(instances, photos, tmp_path, monkeypatch):
    whole = predict(instances, photos, tmp_path / "whole.json", "--batch_size", "1")
    monkeypatch.setattr(detection, "rows_in_part", lambda *_: 2)
    real, calls = detection.objects_of, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(detection, "objects_of", killed)
    with pytest.raises(SystemExit):
        predict(instances, photos, tmp_path / "out.json", "--batch_size", "1")
    assert not (tmp_path / "out.json").exists()
    assert predict(instances, photos, tmp_path / "out.json", "--batch_size", "1") == whole
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.json"]


def test_a_detector_of_transformers(photos, tmp_path):
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        num_detection_tokens=5, use_mid_position_embeddings=False, num_labels=2,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(tmp_path / "model")
    YolosImageProcessor(size={"height": 64, "width": 64}, do_pad=False).save_pretrained(tmp_path / "model")
    data = predict(tmp_path / "model", photos, tmp_path / "out.json", "--threshold", "0.01")
    assert len(data["images"]) == 4
    assert len(data["annotations"]) > 4
    assert all(one["score"] > 0.01 for one in data["annotations"])


def test_what_cannot_be(instances, photos, tmp_path, capsys):
    for flags, out, words in (
        ([], "out.csv", "out: .*must end in .json"),
        (["--threshold", "f1"], "out.json", "threshold: f1 is for classifiers"),
        (["--positive_class", "x"], "out.json", "positive_class: is for classifiers"),
    ):
        with pytest.raises(SystemExit):
            predict(instances, photos, tmp_path / out, *flags)
        assert words.split(".*")[-1] in capsys.readouterr().err
