"""Segmentation of 13 bands, and detection in grey images of 16 bits: trained, exported, and what is predicted."""

import io
import json

import datasets
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import run_finetune
import run_pretraining
from modeling_a2mim.commands import predict
from modeling_a2mim.data.decoding import load_tensor
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.models.detection import A2MIMForObjectDetection

from ..scientific_images import scene, write_tiffs


pytestmark = [pytest.mark.ci, pytest.mark.usefixtures("one_thread")]
FAST = ["--use_cpu", "--disable_tqdm", "True", "--per_device_train_batch_size", "4", "--max_steps", "2"]
SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
DENSE = [*FAST, "--save_strategy", "no", "--image_size", "64"]
BOXES = ["--fpn_channels", "16", "--box_channels", "32", "--rois_per_image", "8", "--proposals_per_image", "10"]
HEADS = {
    "semantic-segmentation": ["--head_channels", "8", "--auxiliary_channels", "4"],
    "object-detection": [*BOXES, "--detections_per_image", "5"],
}


def pretrain(folder, channels, out):
    flags = [*SMALL, *FAST, "--num_channels", str(channels), "--image_mean", "auto", "--image_std", "auto"]
    run_pretraining.main([*flags, "--train_dir", str(folder), "--output_dir", str(out)])
    return json.loads((out / "config.json").read_text())


def train(task, encoder, data, out):
    source = ["--model_name_or_path", str(encoder), "--dataset_name", str(data)]
    run_finetune.main(["--task", task, *DENSE, *HEADS[task], *source, "--output_dir", str(out)])


def encoded(values, kind):
    file = io.BytesIO()
    if kind == "PNG":
        Image.fromarray(values).save(file, kind)
    else:
        tifffile.imwrite(file, values, photometric="minisblack", planarconfig="separate")
    return {"bytes": file.getvalue(), "path": f"image.{kind.lower()}"}


def test_segmentation_of_13_bands(tmp_path):
    images = write_tiffs(tmp_path / "images", 13, "uint16", 50, 11000, count=8)
    known = pretrain(images, 13, tmp_path / "encoder")
    stored = datasets.Features(dict.fromkeys(("image", "label"), datasets.Image(decode=False)))
    shown = datasets.Features(dict.fromkeys(stored, datasets.Image()))
    (tmp_path / "maps" / "data").mkdir(parents=True)
    for split, numbers in (("train", range(6)), ("validation", range(6, 8))):
        scenes = [scene(number, 13, 50, 11000).astype(np.uint16) for number in numbers]
        maps = [(values[0] > np.median(values[0])).astype(np.uint8) for values in scenes]
        rows = {"image": [encoded(v, "TIFF") for v in scenes], "label": [encoded(m, "PNG") for m in maps]}
        path = tmp_path / "maps" / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, stored).cast(shown).to_parquet(path)
    out = tmp_path / "segmenter"
    train("semantic-segmentation", tmp_path / "encoder", tmp_path / "maps", out)
    assert json.loads((out / "config.json").read_text())["stored_images"] == known["stored_images"]

    predict.main([str(out), str(images), "--out", str(tmp_path / "found"), "--num_workers", "0"])
    file = sorted(images.rglob("*.tif"))[3]
    model, processor = (kind.from_pretrained(out) for kind in (AutoModelForSemanticSegmentation, AutoImageProcessor))
    pixels = load_tensor(str(file), PixelSpec.from_config(model.config))
    low, high = (known["stored_images"]["value_range"][end][0] for end in ("low", "high"))
    values = (tifffile.imread(file).astype(np.float64) - low) / (high - low)
    np.testing.assert_allclose(pixels.numpy(), values, rtol=1e-6)
    made = processor(pixels, return_tensors="pt", do_rescale=False, input_data_format="channels_first")
    with torch.no_grad():
        expected = processor.post_process_semantic_segmentation(model.eval()(**made), [(40, 48)])[0]
    written = np.asarray(Image.open(tmp_path / "found" / file.relative_to(images).with_suffix(".png")))
    assert np.array_equal(written, expected.numpy())


def test_detection_in_grey_images_of_16_bits(tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        images, boxes = [], []
        (tmp_path / "cells" / split).mkdir(parents=True)
        for number in numbers:
            values = scene(number, 1, 0, 1500)[0].astype(np.uint16)
            values[8:24, 5 + number : 19 + number] += 2000
            Image.fromarray(values).save(tmp_path / "cells" / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 48, "height": 40})
            box = {"bbox": [5 + number, 8, 14, 16], "area": 224, "iscrowd": 0}
            boxes.append({"id": number, "image_id": number, "category_id": 1, **box})
        found = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
        (tmp_path / "cells" / split / "_annotations.coco.json").write_text(json.dumps(found))
    known = pretrain(tmp_path / "cells", 1, tmp_path / "encoder")
    out = tmp_path / "detector"
    train("object-detection", tmp_path / "encoder", tmp_path / "cells", out)
    config = A2MIMForObjectDetection.from_pretrained(out).config
    assert config.stored_images == known["stored_images"]
    folder = tmp_path / "cells" / "val"
    files = [str(path) for path in sorted(folder.glob("*.png"))]
    predict.main([str(out), *files, "--out", str(tmp_path / "found.json"), "--num_workers", "0"])
    result = json.loads((tmp_path / "found.json").read_text())
    assert [(one["width"], one["height"]) for one in result["images"]] == [(48, 40)] * 2
    assert {one["image_id"] for one in result["annotations"]} <= {one["id"] for one in result["images"]}
    shown = np.asarray(Image.open(out / "predictions.png").convert("L"))
    assert len(np.unique(shown)) > 50  # neither black nor white
