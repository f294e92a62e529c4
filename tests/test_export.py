"""The exported folder, loaded by people who have never heard of this package."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.export import export_model, load_encoder, load_into_encoder, load_pretraining_model
from modeling_a2mim.transforms import FineTuneTransform

from .families import FAMILIES, family_config


NAMES = ["cat", "dog", "hen"]

# Runs with this package hidden: only transformers and timm load the folders, and write down what they computed.
STRANGER = """
import json, sys
sys.modules["modeling_a2mim"] = None
import numpy as np, timm, torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

try:
    import modeling_a2mim
except ImportError:
    pass
else:
    raise SystemExit("the package is not hidden")

for folder in sys.argv[1:]:
    encoder, classifier = f"{folder}/encoder", f"{folder}/classifier"
    image = Image.open(f"{folder}/image.png")
    result = {}
    pixels = AutoImageProcessor.from_pretrained(encoder)(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = AutoModel.from_pretrained(encoder).eval()(pixels)
        result |= {"pixels": pixels, "last": output.last_hidden_state, "pooled": output.pooler_output}
        local = timm.create_model(f"local-dir:{encoder}", pretrained=True).eval()
        result |= {"timm_last": local.forward_features(pixels), "timm_pooled": local(pixels)}
        stages = timm.create_model(f"local-dir:{encoder}", pretrained=True, features_only=True).eval()(pixels)
        result["timm_stage"] = stages[-1]
        fresh = AutoModelForImageClassification.from_pretrained(encoder, num_labels=7).eval()
        result["fresh_logits"] = fresh(pixels).logits
        trained = AutoModelForImageClassification.from_pretrained(classifier).eval()
        result["logits"] = trained(pixels).logits
        result["timm_logits"] = timm.create_model(f"local-dir:{classifier}", pretrained=True).eval()(pixels)
    if pixels.shape[1] == 3:  # transformers' pipelines make every image RGB
        result["features"] = pipeline("image-feature-extraction", model=encoder, return_tensors=True)(image)
        answers = pipeline("image-classification", model=classifier)(image)
        labels = [answer["label"] for answer in answers]
        result["scores"] = torch.tensor([answer["score"] for answer in answers])
    else:
        labels = [trained.config.id2label[i] for i in range(3)]
    torch.save({k: v.contiguous() for k, v in result.items()}, f"{folder}/result.pt")
    told = {"labels": labels, "type": AutoConfig.from_pretrained(encoder).model_type}
    open(f"{folder}/told.json", "w").write(json.dumps(told))
"""


def picture(path, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def models(family, **kwargs):
    config = family_config(family, **kwargs)
    pretraining = A2MIMForPreTraining(config).eval()
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    classifier = A2MIMForImageClassification(family_config(family, **kwargs, **labels)).eval()
    load_into_encoder(classifier, pretraining.a2mim.encoder.state_dict())
    return pretraining, classifier


CASES = [(family, 3, 64) for family in FAMILIES] + [("convnext", 1, 32), ("vit", 3, (64, 96))]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Every case exported, and loaded in one process without this package: {case: (folder, encoder, classifier)}."""
    made = {}
    for case in CASES:
        family, channels, size = case
        small = {"mask_patch_size": 8, "mask_site": -3} if size == 32 else {}
        encoder, classifier = models(family, num_channels=channels, image_size=size, **small)
        folder = tmp_path_factory.mktemp(family)
        export_model(encoder, folder / "encoder")
        export_model(classifier, folder / "classifier", encoder)
        picture(folder / "image.png", "RGB" if channels == 3 else "L")
        made[case] = (folder, encoder, classifier)
    folders = [str(folder) for folder, *_ in made.values()]
    command = [sys.executable, "-c", STRANGER, *folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders[0], check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize("case", CASES, ids=str)
def test_strangers_load_it(case, strangers):
    channels = case[1]
    folder, pretraining, classifier = strangers[case]
    told = json.loads((folder / "told.json").read_text())
    theirs = torch.load(folder / "result.pt", weights_only=True)

    cfg = json.loads((folder / "encoder" / "config.json").read_text())["pretrained_cfg"]
    pixels = FineTuneTransform(cfg, train=False)(Image.open(folder / "image.png"))["pixel_values"][None]
    assert torch.equal(theirs["pixels"], pixels)
    with torch.no_grad():
        ours, logits = pretraining.a2mim(pixels), classifier(pixels).logits
    for name in ("last", "timm_last"):
        assert torch.equal(theirs[name], ours.last_hidden_state), name
    for name in ("pooled", "timm_pooled"):
        assert torch.equal(theirs[name], ours.pooler_output), name
    for name in ("logits", "timm_logits"):
        assert torch.equal(theirs[name], logits), name
    assert theirs["fresh_logits"].shape == (1, 7)
    assert theirs["fresh_logits"].isfinite().all()
    assert theirs["timm_stage"].isfinite().all()
    assert told["type"] == "timm_wrapper"
    assert sorted(told["labels"]) == NAMES
    if channels == 3:
        assert torch.equal(theirs["features"].flatten(), ours.last_hidden_state.flatten())
        probabilities = logits.softmax(-1)[0]
        assert torch.allclose(theirs["scores"], probabilities.sort(descending=True).values, atol=1e-6)
        assert told["labels"] == [NAMES[i] for i in probabilities.argsort(descending=True)]


def test_files_and_contents(tmp_path):
    pretraining, _ = models("resnet")
    export_model(pretraining, tmp_path)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pretraining/config.json",
        "pretraining/model.safetensors",
    ]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == pretraining.a2mim.encoder.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 0
    assert "img_size" not in config["model_args"]
    for file in tmp_path.rglob("*.[jm][sd]*"):
        assert str(tmp_path) not in file.read_text(), file
    for file in tmp_path.rglob("*.safetensors"):
        assert file.stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_pretraining_folder_continues(tmp_path):
    pretraining, _ = models("swin")
    export_model(pretraining, tmp_path)
    again = A2MIMForPreTraining.from_pretrained(tmp_path, subfolder="pretraining").eval()
    pixels, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4) < 0.5
    with torch.no_grad():
        assert torch.equal(again(pixels, mask).reconstruction, pretraining(pixels, mask).reconstruction)
    for source in (tmp_path, tmp_path / "pretraining"):
        loaded = load_pretraining_model(str(source))
        assert all(map(torch.equal, loaded.state_dict().values(), pretraining.state_dict().values()))


def test_export_again_replaces_and_leaves_the_rest(tmp_path):
    first, _ = models("resnet")
    export_model(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    torch.manual_seed(1)
    second, _ = models("resnet")
    export_model(second, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["conv1.0.weight"], second.a2mim.encoder.conv1[0].weight
    )
    assert not list(tmp_path.glob(".export*"))


def test_a_failed_export_changes_nothing(tmp_path, monkeypatch):
    model, _ = models("resnet")
    export_model(model, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(A2MIMForPreTraining, "save_pretrained", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export_model(models("resnet")[0], tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_load_encoder(tmp_path):
    pretraining, _ = models("vit")
    export_model(pretraining, tmp_path)
    found, (config, weights) = load_encoder(str(tmp_path))
    assert found is not None
    assert config.architecture == "test_vit"
    assert weights.keys() == pretraining.a2mim.encoder.state_dict().keys()
    for path in (tmp_path / "pretraining").iterdir():
        path.unlink()
    (tmp_path / "pretraining").rmdir()
    found, (config, weights) = load_encoder(str(tmp_path))
    assert found is None
    assert config.input_size == (64, 64)
    model = A2MIMModel(config)
    model.encoder.load_state_dict(weights)
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* cannot be read"):
        load_encoder(str(tmp_path / "pretraining"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^model_name_or_path: .*empty holds no checkpoint"):
        load_encoder(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="is a file"):
        export_model(pretraining, tmp_path / "config.json")


def test_load_encoder_of_our_own_checkpoints(tmp_path):
    for model in models("resnet"):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        found, (config, weights) = load_encoder(str(folder))
        assert isinstance(found, A2MIMForPreTraining) is isinstance(model, A2MIMForPreTraining)
        assert config.architecture == "test_resnet"
        classifier = A2MIMForImageClassification(family_config("resnet"))
        load_into_encoder(classifier, weights)
        assert torch.equal(classifier.a2mim.encoder.layer4[0].conv1.weight, model.a2mim.encoder.layer4[0].conv1.weight)


def test_a_broken_checkpoint_is_named(tmp_path):
    """The encoder beside it must not stand in for a pre-training model that cannot be read."""
    export_model(models("resnet")[0], tmp_path)
    (tmp_path / "pretraining" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no pre-training model there: .*model.safetensors"):
        load_encoder(str(tmp_path))
    shutil.rmtree(tmp_path / "pretraining")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* no model\.safetensors"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* is no timm checkpoint"):
        load_encoder(str(tmp_path))


def test_mean_pooled_vit_gets_a_new_norm():
    weights = models("vit")[0].a2mim.encoder.state_dict()
    model = A2MIMForImageClassification(family_config("vit", model_args={"global_pool": "avg", "fc_norm": True}))
    load_into_encoder(model, weights)
    assert torch.equal(model.a2mim.encoder.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    with pytest.raises(ValueError, match=r"^model_name_or_path: weights missing or left over: extra"):
        load_into_encoder(model, {**weights, "extra": torch.zeros(1)})
