"""`a2mim export` from end to end: the files, what they say, and that they run without PyTorch."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.commands.export import main
from modeling_a2mim.export import onnx as writing
from modeling_a2mim.export import runtime_model
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.models.linear_probe import LinearProbe

from ..families import family_config
from ..sample_families import awaken
from ..small_models import make_images


pytestmark = pytest.mark.usefixtures("one_thread")
DOCS = Path(__file__).parents[2] / "docs" / "export_and_hub.md"
LABELS = {"id2label": {0: "cats", 1: "dogs"}, "label2id": {"cats": 0, "dogs": 1}}
DECISION = {"thresholds": {"cats": 0.25}, "rule": "f1", "images": 12}
WITHOUT = """
import sys
for name in ("torch", "timm", "transformers", "modeling_a2mim"):
    sys.modules[name] = None
"""


def made(cls, family, **kwargs):
    return awaken(cls(family_config(family, **kwargs)), make_images(8))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a classifier and its decision."""
    folder = tmp_path_factory.mktemp("classifier")
    export_model(made(A2MIMForImageClassification, "resnet", **LABELS), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decision": DECISION}))
    return folder


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    assert stopped.value.code == 2
    return capsys.readouterr().err.removeprefix("error: ").strip()


@pytest.mark.ci
def test_classifier(classifier, folder, tmp_path, caplog):
    """As ONNX and in 8 bits, with accuracies; and the example of the documentation, where nothing of ours is."""
    out = tmp_path / "a2mim-r50-classifier" / "onnx" / "model.onnx"
    argv = ["--out", str(out), "--int8", "--calibration", str(folder), "--evaluate", str(folder)]
    main([str(classifier), *argv, "--calibration_images", "5"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model_check.json", "model_int8.onnx"]
    found = json.loads((out.parent / "model_check.json").read_text())
    assert found["float32"]["error"] <= 1e-5
    assert found["float32"]["response"] > 0.01
    assert found["float32"]["batches"] == [[1, 3, 64, 64], [3, 3, 64, 64]]
    assert found["int8"]["layers"]["Conv"] > 5
    assert found["int8"]["calibration_images"] == 5
    figures = found["evaluation"]
    assert list(figures) == ["pytorch", "onnx float32", "onnx int8"]
    assert all(figure["images"] == 12 for figure in figures.values())
    assert figures["onnx float32"]["accuracy"] == figures["pytorch"]["accuracy"]
    assert figures["onnx float32"]["agreement"] == 1
    assert 0.5 <= figures["onnx int8"]["agreement"] <= 1
    assert "accuracy" in caplog.text
    assert str(out) in caplog.text

    for name in ("model.onnx", "model_int8.onnx"):
        data = (out.parent / name).read_bytes()
        assert not re.search(rb"site-packages|modeling_a2mim/|\.py\b|" + str(tmp_path).encode(), data), name
        about = onnxruntime.InferenceSession(out.parent / name).get_modelmeta().custom_metadata_map
        assert json.loads(about["id2label"]) == {"0": "cats", "1": "dogs"}
        assert json.loads(about["decision"]) == DECISION
        assert (about["architecture"], json.loads(about["input_size"])) == ("test_resnet", [3, 64, 64])
    onnx.checker.check_model(out)

    image = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((140, 100), Image.Resampling.BICUBIC).save(image)
    code = next(
        code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "def prepare" in code
    )
    code = WITHOUT + code + "\nprint(json.dumps([answers, decision]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers, decision = json.loads(done.stdout)
    named = load_model(str(classifier), kind="classifier")
    with torch.no_grad():
        scores = named.model(**{k: v[None] for k, v in named.transform(str(image)).items()}).logits.softmax(-1)[0]
    assert answers == pytest.approx(dict(zip(["cats", "dogs"], scores.tolist(), strict=True)), abs=1e-6)
    assert decision == DECISION


@pytest.mark.slow
def test_encoder_of_free_sizes(tmp_path, folder, caplog):
    """A ViT resamples its positions, as timm does; what 8 bits change is measured on the images of the calibration."""
    model = made(A2MIMForPreTraining, "vit")
    export_model(model, tmp_path)
    main([str(tmp_path), "--dynamic_size", "--int8", "--calibration", str(folder)])
    found = json.loads((tmp_path / "onnx" / "model_check.json").read_text())
    assert found["on_calibration_images"]["onnx int8"]["images"] == 12
    assert 0.9 < found["on_calibration_images"]["onnx int8"]["cosine"] < 1
    assert "multiples of 16 px" in caplog.text
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map["size_multiple"] == "16"
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state", "pooler_output"]
    core = runtime_model.free_sizes(model.a2mim).eval()
    for size in ((64, 64), (48, 112)):
        images = make_images(2, height=size[0], width=size[1])
        last, pooled = session.run(None, {"pixel_values": images.numpy()})
        with torch.no_grad():
            expected = core(images)
        assert last.shape == (2, size[0] * size[1] // 256 + 1, 64)
        torch.testing.assert_close(torch.from_numpy(last), expected.last_hidden_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(pooled), expected.pooler_output, rtol=1e-4, atol=1e-4)
    main([str(tmp_path), "--overwrite"])
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["model.onnx", "model_check.json"]
    assert "model_int8.onnx, of what was there before" in caplog.text


RUN = """
import json, sys, torch
sys.modules["modeling_a2mim"] = sys.modules["timm"] = sys.modules["transformers"] = None
about = {"metadata.json": ""}
model = torch.export.load("model.pt2", extra_files=about).module()
channels, *size = json.loads(json.loads(about["metadata.json"])["input_size"])
images = torch.linspace(-1, 1, 3 * channels * size[0] * size[1]).reshape(3, channels, *size)
print(json.dumps({name: value.tolist() for name, value in model(pixel_values=images).items()}))
"""


@pytest.mark.slow
def test_program_without_this_package(tmp_path):
    """A linear probe, as PyTorch loads it."""
    encoder = made(A2MIMModel, "convnext")
    probe = LinearProbe.from_encoder(encoder, id2label=LABELS["id2label"]).eval()
    probe.save_pretrained(tmp_path)
    main([str(tmp_path), "--format", "torch"])
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        pickles = [each for each in archive.infolist() if each.filename.endswith((".pt", ".pkl")) and each.file_size]
    assert not pickles
    data = (tmp_path / "model.pt2").read_bytes()
    assert not re.search(rb"site-packages|" + str(tmp_path).encode(), data)
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-1, 1, 3 * 3 * 64 * 64).reshape(3, 3, 64, 64)
    with torch.no_grad():
        expected = probe(images).logits
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)["logits"]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.ci
def test_classifier_of_transformers(tmp_path):
    """Its processor's settings, under timm's names."""
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
    model = ViTForImageClassification(ViTConfig(**{**config.to_dict(), "patch_size": 8, "num_labels": 3})).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    main([str(tmp_path), "--opset", "20"])
    written = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert [opset.version for opset in written.opset_import if opset.domain == ""] == [20]
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert (about["architecture"], about["crop_mode"], about["interpolation"]) == ("vit", "squash", "bilinear")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).logits
    (logits,) = session.run(["logits"], {"pixel_values": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


# What is refused; nothing may be left behind


@pytest.mark.ci
def test_arguments_that_do_not_fit(classifier, tmp_path, capsys):
    for argv, message in [
        (("--opset", "3"), "opset: the model needs"),
        (("--format", "torch", "--int8"), "int8: is for --format onnx"),
        (("--calibration", "x"), "calibration: is for --int8"),
        (("--int8", "--calibration_images", "3"), "calibration_images: give --calibration"),
        (("--tolerance", "0"), "tolerance: must be in"),
        (("--out", tmp_path / "model.pt"), "out: expected the name of a file that ends in .onnx"),
        (("--int8", "--calibration", tmp_path / "nowhere"), f"{tmp_path}/nowhere: no such file or folder"),
        (("--evaluate", tmp_path / "nowhere"), f"{tmp_path}/nowhere: no such file or folder"),
    ]:
        assert refused(capsys, classifier, *argv).startswith(message)
    assert refused(capsys, tmp_path / "nowhere").startswith("out: ")
    assert not (classifier / "onnx").exists()


def test_what_is_there_is_kept(tmp_path, classifier, capsys):
    out = tmp_path / "new" / "model.onnx"
    out.parent.mkdir()
    out.write_bytes(b"mine")
    assert "is there already; --overwrite replaces it" in refused(capsys, classifier, "--out", out)
    assert out.read_bytes() == b"mine"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.ci
def test_a_file_that_differs_is_not_written(tmp_path, classifier, capsys, monkeypatch):
    right = writing.session
    monkeypatch.setattr(
        writing, "session", lambda path: lambda images: {name: 1.01 * v for name, v in right(path)(images).items()}
    )
    out = tmp_path / "new" / "folder" / "model.onnx"
    assert refused(capsys, classifier, "--out", out).startswith("tolerance: logits differs from PyTorch's by 1.0e-02")
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing(classifier, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert refused(capsys, classifier) == "format: onnx needs onnxscript: pip install 'a2mim[onnx]'"


@pytest.mark.ci
def test_models_of_one_size(tmp_path, capsys, monkeypatch):
    """One that timm has no option for, and one whose rule PyTorch does not find in time."""
    export_model(made(A2MIMModel, "vit", architecture="test_vit_relpos"), tmp_path / "relpos")
    export_model(made(A2MIMModel, "swin"), tmp_path / "swin")
    monkeypatch.setattr(runtime_model, "TRACE_SECONDS", 2)
    message = "dynamic_size: the model takes 64x64 px alone: Input height"
    assert refused(capsys, tmp_path / "relpos", "--dynamic_size").startswith(message)
    message = refused(capsys, tmp_path / "swin", "--dynamic_size", "--format", "torch")
    assert re.match("dynamic_size: the model cannot be traced for more than one size: .* within 2 s", message)
    assert not list(tmp_path.rglob("*.onnx"))


def test_segmenters_and_detectors(tmp_path, capsys):
    for name in ("A2MIMForObjectDetection", "UperNetForSemanticSegmentation"):
        config = {"model_type": "upernet", "architectures": [name]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert f"holds a {name}; only classifiers and encoders" in refused(capsys, tmp_path)


def test_accuracy_is_for_classifiers(tmp_path, folder, capsys):
    export_model(made(A2MIMModel, "resnet"), tmp_path / "encoder")
    message = refused(capsys, tmp_path / "encoder", "--evaluate", folder)
    assert message.startswith("evaluate: is for classifiers of one class for each image; this model is an encoder")
