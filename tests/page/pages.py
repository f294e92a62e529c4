"""Small models for a page, images of every kind, and embeddings of some."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.arguments.data import MULTI, REGRESSION
from modeling_a2mim.evaluation.decisions import FIELD
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.inference.embedding import embedder
from modeling_a2mim.inference.images import InferenceImages, open_every_image
from modeling_a2mim.utils.labels import label_fields

from ..families import family_config


NAMES = ["<good>", "crack", "*dent*"]
KINDS = {"vit": None, "several": MULTI, "number": REGRESSION}


def write_models(folder: Path) -> Path:
    """`vit`, a classifier of three classes that also reconstructs and keeps a threshold; `several`, with labels of
    their own; `number`, a regression; `resnet`, which reconstructs; and `plain`, an encoder alone."""
    torch.manual_seed(0)
    for name, kind in KINDS.items():
        classes = NAMES if kind != REGRESSION else ["LABEL_0"]
        config = family_config("vit", num_labels=len(classes), problem_type=kind)
        config.update(label_fields(classes))
        model = A2MIMForImageClassification(config)
        with torch.no_grad():  # as new, all logits would be close to each other
            model.a2mim.encoder.get_classifier().weight.mul_(30)
        export_model(model, folder / name, A2MIMForPreTraining(family_config("vit")) if name == "vit" else None)
    keep_decision(folder / "vit", {"thresholds": {"crack": 0.25}, "rule": "f1", "images": 40})
    export_model(A2MIMForPreTraining(family_config("resnet")), folder / "resnet")
    export_model(A2MIMModel(family_config("resnet")), folder / "plain")
    return folder


def keep_decision(folder: Path, decision):
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {FIELD: decision}))


def write_files(folder: Path) -> Path:
    """Images of the kinds that browsers and gradio change or do not show, and a file that is none."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    grey = np.kron(generator.integers(0, 65535, (10, 12)), np.ones((8, 8))).astype(np.uint16)
    Image.fromarray(grey).save(folder / "deep.png")
    Image.fromarray(grey).save(folder / "deep.tif")
    alpha = np.concatenate([pixels, np.arange(100, dtype=np.uint8)[None, :, None].repeat(80, 0)], axis=2)
    Image.fromarray(alpha).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    large = np.kron(pixels[::8, ::8], np.ones((8, 8, 1), dtype=np.uint8))
    Image.fromarray(large).save(folder / "turned.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


def write_gallery(folder: Path, count: int = 6) -> Path:
    """Images to find among, one of them with a name that HTML must not take for a tag."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(count):
        name = "<b>&.png" if number == 2 else f"{number}.png"
        pixels = np.kron(generator.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def write_embeddings(model: str, images: str, path: Path, **changes) -> Path:
    """What `a2mim embed` writes; `changes` of its metadata."""
    made = embedder(model)
    found = InferenceImages(open_every_image([images]), made.transform)
    names = [found.name(row) for row in range(len(found))]
    vectors = made.embed(torch.stack([found[row][1] for row in range(len(found))]))
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"file": names, "embedding": embedding, "error": pa.nulls(len(names), pa.string())})
    table = table.replace_schema_metadata({"a2mim": json.dumps(made.description | changes)})
    pq.write_table(table, path)
    return path
