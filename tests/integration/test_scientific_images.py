"""Images that are no photographs from end to end: pre-trained, interrupted and resumed, fine-tuned, reconstructed,
exported, and loaded without this package."""

import io
import shutil

import datasets
import numpy as np
import pydicom
import pytest
import tifffile
import timm
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from safetensors.torch import load_file

import run_finetune
import run_pretraining
from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.commands import embed, export, predict, reconstruct
from modeling_a2mim.data.decoding import load_tensor
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.inference.embedding import embedder, read_embeddings


pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
FAST = ["--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "True", "--logging_steps", "1"]
AUTO = ["--image_mean", "auto", "--image_std", "auto"]
PATIENT = "Doe^Jane"
COUNT, CHANNELS = 12, {"tiff": 13, "dicom": 1, "float": 1, "array": 5}


def scene(number, channels=1):
    generator = np.random.default_rng(number)
    rows, columns = np.mgrid[:40, :48]
    waves = [1 + np.sin(rows / (3 + k) + number) * np.cos(columns / (4 + k)) for k in range(channels)]
    return (np.stack(waves) * 1900 + generator.integers(16, 200, (channels, 40, 48))).astype(np.uint16)


def dicom(values, number):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.CTImageStorage, generate_uid()
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientName = PATIENT
    header.Rows, header.Columns = values.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, f"MONOCHROME{2 - (number == 3)}"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = (4095 - values if number == 3 else values).tobytes()
    file = io.BytesIO()
    header.save_as(file, enforce_file_format=True)
    return file.getvalue()


def write(kind, folder):
    """A set with two classes; what names it on the command line, and one file of it, if there are files."""
    if kind == "array":
        features = datasets.Features(
            {"image": datasets.Array3D((5, 40, 48), "uint16"), "label": datasets.ClassLabel(names=["a", "b"])}
        )
        rows = {"image": [scene(i, 5) for i in range(COUNT)], "label": [i % 2 for i in range(COUNT)]}
        for split in ("train", "validation"):
            datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet", batch_size=5)
        return ["--dataset_name", str(folder), "--streaming"], None
    for number in range(COUNT):
        path = folder / "ab"[number % 2] / str(number)
        path.parent.mkdir(exist_ok=True)
        values = scene(number, CHANNELS[kind])
        if kind == "dicom":
            path.with_suffix(".dcm").write_bytes(dicom(values[0], number))
        elif kind == "tiff":
            tifffile.imwrite(path.with_suffix(".tif"), values, planarconfig="separate", photometric="minisblack")
        else:
            tifffile.imwrite(path.with_suffix(".tif"), (values[0].astype(np.float32) - 1900) / 100)
    return ["--train_dir", str(folder)], folder / "a" / ("0.dcm" if kind == "dicom" else "0.tif")


@pytest.mark.ci
@pytest.mark.few(1)
@pytest.mark.parametrize(
    "kind", ["tiff", "dicom", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("float", "array"))]
)
def test_from_end_to_end(kind, tmp_path, caplog, no_pictures):
    caplog.set_level("INFO")
    (tmp_path / "images").mkdir()
    named, file = write(kind, tmp_path / "images")
    out, count = tmp_path / "encoder", ["--num_channels", str(CHANNELS[kind])]
    run = [*SMALL, *FAST, *AUTO, *count, *named, "--max_steps", "5", "--save_steps", "2", "--output_dir", str(out)]
    run_pretraining.main([*run, "--save_strategy", "steps"])
    weights = load_file(out / "pretraining" / "model.safetensors")
    for checkpoint in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(out / checkpoint, ignore_errors=True)
    (out / "pretraining" / "model.safetensors").unlink()
    run_pretraining.main([*run, "--save_strategy", "steps", "--resume_from_checkpoint", str(out / "checkpoint-2")])
    again = load_file(out / "pretraining" / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    spec = PixelSpec.from_config(load_model(str(out), kind="pretraining").model.config)
    assert spec.value_range is not None

    labelled = [*named, *(["--validation_dir", str(tmp_path / "images")] if file else [])]
    tuned = tmp_path / "classifier"
    run_finetune.main(
        [*FAST, *labelled, "--model_name_or_path", str(out), "--max_steps", "2", "--output_dir", str(tuned)]
    )
    assert PixelSpec.from_config(load_model(str(tuned), kind="classifier").model.config) == spec

    # timm, given the numbers that the model was trained with, sees what we do.
    value = scene(0, 5) if file is None else {"bytes": file.read_bytes(), "path": file.name}
    ours = embedder(str(out))
    pixels = ours.transform(value)["pixel_values"][None]
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels), torch.as_tensor(ours.embed(pixels)), rtol=1e-4, atol=1e-5)
    assert torch.equal(load_model(str(tuned), kind="classifier").transform(value)["pixel_values"], pixels[0])
    assert load_tensor(value, spec).dtype == torch.float32

    if file is not None:
        predict.main([str(tuned), str(tmp_path / "images"), "--out", str(tmp_path / "p.csv"), "--num_workers", "0"])
        assert len((tmp_path / "p.csv").read_text().splitlines()) == COUNT + 1
        embed.main([str(out), str(tmp_path / "images"), "--out", str(tmp_path / "e.parquet")])
        assert read_embeddings(tmp_path / "e.parquet").vectors.shape == (COUNT, 64)
        reconstruct.main([str(out), "--files", str(file), "--out", str(tmp_path / "pictures")])
        assert list((tmp_path / "pictures").glob("*.png"))
    if kind == "tiff":
        export.main([str(out), "--format", "onnx", "--out", str(tmp_path / "encoder.onnx")])
    assert PATIENT not in caplog.text
    written = [path for path in tmp_path.rglob("*") if path.is_file() and "images" not in path.parts]
    assert not [path for path in written if b"Doe^Jane" in path.read_bytes()]
