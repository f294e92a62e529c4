"""Images of satellites, clinics and instruments through every command: trained, killed and resumed, fine-tuned,
looked at, exported, and loaded without this package; the same pixels everywhere."""

import csv
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

import run_finetune
import run_pretraining
from modeling_a2mim import A2MIMConfig
from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.commands import embed, export, predict, reconstruct
from modeling_a2mim.data.transforms import PreTrainTransform
from modeling_a2mim.inference.embedding import embedder
from modeling_a2mim.inference.vectors import read_embeddings
from modeling_a2mim.tasks import pretraining
from modeling_a2mim.tasks.classification.data import evaluation_samples
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..scientific_images import (
    CLASSES,
    COUNT,
    contains_patient,
    says_patient,
    write_arrays,
    write_dicoms,
    write_tiffs,
)
from ..training.test_trainer import Crash


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_pictures")]
SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
SMALL += ["--model_args", '{"drop_path_rate": 0.2}', "--learning_rate", "1e-3"]
FAST = ["--use_cpu", "--disable_tqdm", "True", "--logging_steps", "1", "--per_device_train_batch_size", "4"]
AUTO = ["--image_mean", "auto", "--image_std", "auto"]


@dataclass
class Kind:
    """A set of images, and what the command line says of them."""

    write: Callable
    flags: list[str]
    channels: int


KINDS = {
    "satellite": Kind(
        functools.partial(write_tiffs, channels=13, dtype="uint16", low=50, high=11000),
        ["--num_channels", "13", "--display_channels", "4", "3", "2"],
        13,
    ),
    "ct": Kind(write_dicoms, ["--num_channels", "1", "--value_range", "-1000", "2000"], 1),
    "float": Kind(
        functools.partial(write_tiffs, channels=1, dtype="float32", low=-3, high=2.5), ["--num_channels", "1"], 1
    ),
    "arrays": Kind(functools.partial(write_arrays, channels=5), ["--num_channels", "5"], 5),
}


@dataclass
class Run:
    """What a test looks at of a set: its images, and what was trained on them."""

    kind: Kind
    data: Path
    flags: list[str]
    out: Path

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.data.rglob("*") if path.is_file())


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """Three epochs without a break."""
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp(request.param)
    data = kind.write(folder / "data")
    flags = [*SMALL, *FAST, *kind.flags, *AUTO, "--train_dir", str(data), "--num_train_epochs", "3"]
    run_pretraining.main([*flags, "--output_dir", str(folder / "whole"), "--save_strategy", "no"])
    return Run(kind, data, flags, folder / "whole")


@pytest.fixture(scope="module")
def classifier(trained):
    out = trained.out.parent / "classifier"
    source = ["--model_name_or_path", str(trained.out), "--train_dir", str(trained.data)]
    source += ["--validation_dir", str(trained.data)]
    run_finetune.main([*FAST, *source, "--max_steps", "2", "--output_dir", str(out)])
    return out


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def stored(run: Run, number: int):
    """An image as it is stored."""
    if run.kind is not KINDS["arrays"]:
        return str(run.files[number])
    import datasets

    return datasets.Dataset.from_parquet(str(run.files[0])).with_format("numpy")[number]["image"]


def check_resume(flags, whole, tmp_path):
    flags = [*flags, "--save_steps", "2", "--output_dir", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "A2MIMTrainer", functools.partial(A2MIMTrainer, callbacks=[Crash(5)]))
        with pytest.raises(KeyboardInterrupt):
            run_pretraining.main(flags)
    assert not (tmp_path / "model.safetensors").exists()
    torch.manual_seed(99)
    run_pretraining.main([*flags, "--resume_from_checkpoint", "last"])
    assert (whole / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    resumed, straight = (load_file(folder / "pretraining" / "model.safetensors") for folder in (tmp_path, whole))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert config_of(tmp_path) == config_of(whole)


def test_killed_and_resumed_to_the_bit(trained, tmp_path):
    check_resume(trained.flags, trained.out, tmp_path)


def test_streamed_arrays_are_resumed_to_the_bit(tmp_path):
    kind = KINDS["arrays"]
    data = kind.write(tmp_path / "data")
    flags = [*SMALL, *FAST, *kind.flags, *AUTO, "--train_dir", str(data), "--num_train_epochs", "3", "--streaming"]
    run_pretraining.main([*flags, "--output_dir", str(tmp_path / "whole"), "--save_strategy", "no"])
    check_resume(flags, tmp_path / "whole", tmp_path / "cut")


def test_what_is_kept(trained, classifier):
    """Range, statistics and channels are those of the images, in every export."""
    found, other = config_of(trained.out), config_of(classifier)
    values = np.concatenate([raw(trained, number).reshape(trained.kind.channels, -1) for number in range(COUNT)], 1)
    known = found["stored_images"]["value_range"]
    if trained.kind is KINDS["ct"]:
        assert known == {"low": [-1000.0], "high": [2000.0], "clip": True}
    else:
        assert known == {"low": [values.min()], "high": [values.max()], "clip": False}
    low, high = known["low"][0], known["high"][0]
    shares = (values - low) / (high - low)
    shares = shares.clip(0, 1) if known["clip"] else shares
    np.testing.assert_allclose(found["pretrained_cfg"]["mean"], shares.mean(1), atol=1e-6)
    np.testing.assert_allclose(found["pretrained_cfg"]["std"], shares.std(1), atol=1e-6)
    assert other["stored_images"] == found["stored_images"]
    for name in ("mean", "std", "input_size"):
        assert other["pretrained_cfg"][name] == found["pretrained_cfg"][name]


def raw(run, number):
    """The values (channels, height, width) of an image, read by another way than ours."""
    if run.kind is KINDS["arrays"]:
        return stored(run, number)
    path = run.files[number]
    if path.suffix == ".tif":
        import tifffile

        return tifffile.imread(path).astype(np.float64).reshape(run.kind.channels, 40, 48)
    import pydicom

    found = pydicom.dcmread(path)
    values = found.pixel_array.astype(np.float64) * float(found.RescaleSlope) + float(found.RescaleIntercept)
    turn = found.PhotometricInterpretation == "MONOCHROME1"
    return (4095 - 2 * 1024 - values if turn else values)[None]


def test_the_same_pixels_everywhere(trained, classifier, tmp_path):
    """Where models are evaluated while they train, compared, and in `embed` and `predict`."""
    image, config = stored(trained, 2), A2MIMConfig.from_pretrained(trained.out / "pretraining")
    found = load_model(str(classifier), kind="classifier")
    pixels = found.transform(image)["pixel_values"]
    assert pixels.dtype == torch.float32
    assert pixels.shape == (trained.kind.channels, 32, 32)
    assert torch.equal(load_model(str(trained.out)).transform(image)["pixel_values"], pixels)
    assert torch.equal(embedder(str(trained.out)).transform(image)["pixel_values"], pixels)
    data_args = ClassificationArguments(train_dir=[str(trained.data)], validation_dir=str(trained.data))
    images = LabelledImages.load(data_args, None)
    evaluated = evaluation_samples(found.model, data_args, images, 0)
    names = [evaluated.name(row) for row in range(COUNT)]
    row = (
        2 if trained.kind is KINDS["arrays"] else next(i for i in range(COUNT) if names[i].endswith(Path(image).name))
    )
    assert torch.equal(evaluated[row]["pixel_values"], pixels)

    # While encoders train, all of an image is seen; of an image of the model's size, that is every pixel.
    known, small = config.value_range, np.ascontiguousarray(raw(trained, 2)[:, :32, :32])
    shares = (small - known["low"][0]) / (known["high"][0] - known["low"][0])
    shares = shares.clip(0, 1) if known["clip"] else shares
    mean, std = (np.array(values)[:, None, None] for values in (config.image_mean, config.image_std))
    for transform in (
        PreTrainTransform(config, train=False),
        load_model(str(trained.out), kind="pretraining").transform,
    ):
        np.testing.assert_allclose(transform(small)["pixel_values"].numpy(), (shares - mean) / std, atol=1e-5)


def test_loaded_without_this_package(trained, classifier, tmp_path):
    """timm and transformers give what the model here gives for the same tensor, and so does onnxruntime."""
    image = stored(trained, 5)
    named = load_model(str(trained.out))
    pixels = named.transform(image)["pixel_values"][None]
    with torch.no_grad():
        pooled = named.model(pixels).pooler_output
        plain = timm.create_model(f"local-dir:{trained.out}", pretrained=True, num_classes=0).eval()
        torch.testing.assert_close(plain(pixels), pooled)
        of_transformers = AutoModel.from_pretrained(trained.out)
        torch.testing.assert_close(of_transformers(pixels).pooler_output, pooled)
        named = load_model(str(classifier), kind="classifier")
        logits = named.model(pixel_values=pixels).logits
        torch.testing.assert_close(
            timm.create_model(f"local-dir:{classifier}", pretrained=True).eval()(pixels), logits
        )
    if trained.kind is not KINDS["satellite"]:  # once is enough: it knows of channels alone
        return
    out = tmp_path / "model.onnx"
    export.main([str(classifier), "--out", str(out)])
    import onnxruntime

    session = onnxruntime.InferenceSession(out)
    found = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
    np.testing.assert_allclose(found, logits.numpy(), atol=1e-4)
    written = session.get_modelmeta().custom_metadata_map["stored_images"]
    assert json.loads(written) == config_of(classifier)["stored_images"]


def test_predict_and_embed(trained, classifier, tmp_path):
    """The same numbers as the models give for these images one by one."""
    named = load_model(str(classifier), kind="classifier")
    source = [str(trained.files[0])] if trained.kind is KINDS["arrays"] else [str(trained.data)]
    predict.main([str(classifier), *source, "--out", str(tmp_path / "found.csv"), "--num_workers", "0"])
    embed.main([str(trained.out), *source, "--out", str(tmp_path / "vectors.parquet")])
    with open(tmp_path / "found.csv") as file:
        rows = list(csv.DictReader(file))
    vectors = read_embeddings(tmp_path / "vectors.parquet")
    assert len(rows) == len(vectors.files) == COUNT
    assert not any(row["error"] for row in rows)
    encoder = load_model(str(trained.out))
    for row, vector, number in zip(rows, vectors.vectors, range(COUNT), strict=True):
        pixels = named.transform(stored(trained, number))["pixel_values"][None]
        with torch.no_grad():
            scores = named.model(pixel_values=pixels).logits.softmax(1)[0]
            pooled = encoder.model(pixels).pooler_output[0]
        found = [float(row[f"score_{name}"]) for name in CLASSES]
        assert found == pytest.approx(scores.tolist(), abs=1e-5)
        np.testing.assert_allclose(vector, pooled.numpy(), atol=1e-5)


def test_neighbors_know_the_classes(trained, tmp_path):
    """k-NN and a probe on frozen features: brightness, which tells the classes apart, has come through."""
    source = ["--model_name_or_path", str(trained.out), "--train_dir", str(trained.data)]
    flags = ["--validation_dir", str(trained.data), "--output_dir", str(tmp_path / "knn"), "--use_cpu"]
    metrics = run_finetune.main([*source, *flags, "--knn", "--knn_neighbours", "3", "--probe_strength", "1"])
    assert all(value > 0.9 for name, value in metrics.items() if "accuracy" in name), metrics
    probe = ["--linear_probe", "--max_steps", "2", "--output_dir", str(tmp_path / "probe")]
    run_finetune.main([*FAST, *source, *flags[:2], *probe])
    assert config_of(tmp_path / "probe")["stored_images"] == config_of(trained.out)["stored_images"]


def test_reconstructions(trained, tmp_path):
    files = ["--dataset", str(trained.data)]
    if trained.kind is not KINDS["arrays"]:
        files = ["--files", *map(str, trained.files[:3])]
    reconstruct.main([str(trained.out), *files, "--images", "3", "--out", str(tmp_path), "--device", "cpu"])
    figure = np.asarray(Image.open(tmp_path / f"{trained.out.name}.png"))
    assert len(np.unique(figure[20:130, 10:100])) > 50  # the first original is stretched, not flat
    found = json.loads((tmp_path / "reconstruction.json").read_text())["models"][trained.out.name]
    assert all(np.isfinite(one["masked_psnr"]) for one in found["images"])


def test_no_patient_is_told(tmp_path, caplog, capfd):
    """Neither of files that are trained on, nor of those that are broken."""
    caplog.set_level("DEBUG")
    data = write_dicoms(tmp_path / "data")
    whole = next(data.rglob("*00.dcm"))
    (whole.parent / "cut.dcm").write_bytes(whole.read_bytes()[:-500])
    (whole.parent / "window.dcm").write_bytes(whole.read_bytes().replace(b"-1024", b"-10x4"))
    flags = [*SMALL, *FAST, "--num_channels", "1", *AUTO, "--train_dir", str(data), "--max_steps", "2"]
    run_pretraining.main([*flags, "--max_skipped_ratio", "0.5", "--output_dir", str(tmp_path / "out")])
    tuned = ["--model_name_or_path", str(tmp_path / "out"), "--train_dir", str(data), "--max_steps", "1"]
    tuned += ["--max_skipped_ratio", "0.5", "--validation_dir", str(data)]
    run_finetune.main([*FAST, *tuned, "--output_dir", str(tmp_path / "classifier")])
    predict.main([str(tmp_path / "classifier"), str(data), "--out", str(tmp_path / "found.csv"), "--num_workers", "0"])
    embed.main([str(tmp_path / "out"), str(data), "--out", str(tmp_path / "vectors.parquet")])
    assert contains_patient(data)
    for folder in tmp_path.iterdir():
        if folder != data:
            assert contains_patient(folder) == [] if folder.is_dir() else not says_patient(folder.read_bytes())
    said = capfd.readouterr()
    assert not says_patient((caplog.text + said.out + said.err).encode())
    with open(tmp_path / "found.csv") as file:
        errors = [row["error"] for row in csv.DictReader(file) if row["error"]]
    assert len(errors) == 2
