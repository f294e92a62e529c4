"""One encoder of each family of timm, with real tensors: it pre-trains, what is saved and exported is the same, and
what is loaded from a Hub without this package is the same."""

import copy
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.analysis import architectures
from modeling_a2mim.analysis.architectures import Row, counts, examine, sweep, write
from modeling_a2mim.encoders.layout import tensors_in
from modeling_a2mim.encoders.meta import NoValues
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.hub import push_folder
from modeling_a2mim.mask_site import LEAST_ALIGNMENT
from modeling_a2mim.masking import random_mask
from modeling_a2mim.models.start import load_into_encoder

from ..sample_families import NAMES, sample_config


pytestmark = pytest.mark.usefixtures("one_thread")

# The largest of them, which are not published: what is left are fifty.
LARGE = ["convmixer_768_32", "csatv2", "gcvit_xxtiny", "gmlp_ti16_224", "hgnetv2_b0", "hrnet_w18_small", "iformer_t"]
LARGE += ["lowformer_b0", "mvitv2_tiny", "poolformerv2_s12", "repvit_m1"]
# Those that are tested in `make test`: of every layout and kind of site; the others take `make test-all`.
QUICK = [
    "coat_tiny",
    "edgenext_xx_small",
    "efficientvim_m1",
    "hiera_tiny_224",
    "levit_128s",
    "pvt_v2_b0",
    "test_byobnet",
    "test_coatnet",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_vit_relpos",
    "xcit_nano_12_p8_224",
]
assert set(QUICK) <= set(NAMES)
# Loaded without this package in `make test`: maps and tokens, with classifiers and poolings of several kinds.
QUICK_LOADED = ["coat_tiny", "hiera_tiny_224", "levit_128s", "test_byobnet", "test_vit_relpos", "xcit_nano_12_p8_224"]
# Of one resolution, which the multiscale decoder is not for.
ISOTROPIC = ["convit_tiny", "convmixer_768_32", "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_dinov3_qkvb"]
ISOTROPIC += ["gmlp_ti16_224", "test_vit_relpos", "xcit_nano_12_p8_224"]
# Pre-trained with it in `make test`: two whose maps are tokens, one of NHWC, one without a last map of its own.
QUICK_MULTISCALE = ["efficientvim_m1", "hiera_tiny_224", "levit_128s", "test_mambaout"]
# Other images than squares of 128 px with 3 channels.
OTHERS = {
    "grey": {
        "architecture": "test_convnext",
        "num_channels": 1,
        "image_size": 32,
        "mask_patch_size": 8,
        "mask_site": -3,
    },
    "rectangular": {"architecture": "test_vit", "image_size": [64, 96], "mask_patch_size": 16},
}
# Whose weights timm's features_only does not take as they are: these are resampled to the size of the images.
BACKBONES = {"rectangular": "not of the repository: ['model.pos_embed']"}
LABELS = ["cat", "dog", "bird"]


def configuration(name: str, **kwargs) -> A2MIMConfig:
    if name in OTHERS:
        return A2MIMConfig.for_architecture(**OTHERS[name], **kwargs)
    return sample_config(name, **kwargs)


def pretrain(name: str, folder, **kwargs) -> A2MIMForPreTraining:
    """One step, looked at from all sides; then it is exported to `folder`, and read again from there."""
    config = configuration(name, **kwargs)
    model = A2MIMForPreTraining(config).train()
    token, site = model.a2mim.mask_token, model.a2mim.site
    images = torch.randn(2, config.num_channels, *config.input_size)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    output.loss.backward()
    assert token.token.grad.isfinite().all()
    assert token.token.grad.any()
    gradients = [parameter.grad for parameter in model.a2mim.encoder.parameters()]
    assert sum(g is not None for g in gradients) > 0.8 * len(gradients)  # not those of heads and last norms
    assert all(parameter.grad.any() for parameter in model.decoder.parameters())
    torch.optim.SGD(model.parameters(), 1e-3).step()
    model.zero_grad()

    export_model(model.eval(), folder)
    again = copy.deepcopy(A2MIMForPreTraining.from_pretrained(folder, subfolder="pretraining"))
    assert again.a2mim.site == site
    with torch.no_grad():
        one, two = (m(images, output.bool_masked_pos) for m in (model, again))
    assert torch.equal(one.reconstruction, two.reconstruction)
    return model


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """`pretrained(name)` pre-trains an encoder, once; returns it and where it was exported to."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        return pretrain(name, folder), folder

    return make


@pytest.fixture(scope="module")
def published(pretrained, module_hub, tmp_path_factory):
    """`published(name)` publishes the encoder and a classifier made of it, once; returns both."""

    @functools.cache
    def publish(name):
        model, folder = pretrained(name)
        labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
        classifier = A2MIMForImageClassification(configuration(name, **labels)).eval()
        load_into_encoder(classifier, model.a2mim.encoder.state_dict())
        push_folder(folder, f"org/{name}")
        push_folder(export_model(classifier, tmp_path_factory.mktemp(name)), f"org/{name}-classifier")
        return model.a2mim, classifier

    return publish


@pytest.fixture(scope="module")
def without_package(request, published, module_hub, tmp_path_factory):
    """What one process without this package made of all that was published (for the tests that are to run)."""
    tests = [
        item for item in request.session.items if getattr(item, "function", None) is test_loads_without_this_package
    ]
    names = [item.callspec.params["name"] for item in tests]
    for name in names:
        published(name)
    out = tmp_path_factory.mktemp("without_package")
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "stranger.py"),
        str(out),
        *(f"org/{name}" for name in names),
    ]
    environment = {**module_hub.environment(out / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, json.loads((out / "told.json").read_text())


def marked(names, quick=QUICK):
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [*marked(NAMES), *OTHERS])
def test_pretrains(name, pretrained):
    pretrained(name)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", marked((name for name in NAMES if name not in ISOTROPIC), QUICK_MULTISCALE))
def test_pretrains_with_the_multiscale_decoder(name, tmp_path):
    """The maps that it reads are those that timm declares, and nothing else than without them is computed or made."""
    model = pretrain(name, tmp_path / "multiscale", decoder="multiscale")
    core, config = model.a2mim, model.config
    images = torch.randn(2, config.num_channels, *config.input_size)
    mask = random_mask(2, config.mask_grid, config.num_masked)
    with torch.no_grad():
        (one, maps), (two, _) = (core.encode(images, mask, states, decoded=True) for states in (True, False))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(tensors_in(one), tensors_in(two), strict=True))
    for index in model.decoder.indices:
        stage, (count, channels, *cells) = core.encoder.feature_info[index], maps[index].shape
        assert (count, channels) == (2, stage["num_chs"])
        for number, size in zip(cells, config.input_size, strict=True):
            assert abs(number - size / stage["reduction"]) <= 1  # one less where convolutions are not padded (PiT)
    export_model(core, tmp_path / "encoder")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "multiscale" / file).read_bytes() == (tmp_path / "encoder" / file).read_bytes()


@pytest.mark.parametrize("name", marked(ISOTROPIC, QUICK))
def test_encoders_of_one_resolution_have_no_multiscale_decoder(name):
    """Said when the model is made."""
    config = configuration(name, decoder="multiscale")
    message = rf"^decoder: multiscale reads maps of several resolutions, .*; {name} has \d+ px; use linear"
    with torch.device("meta"), NoValues(), pytest.raises(ValueError, match=message):
        A2MIMForPreTraining(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*marked((name for name in NAMES if name not in LARGE), QUICK_LOADED), *OTHERS])
def test_loads_without_this_package(name, published, without_package):
    """From a Hub over HTTP, without this package: everything equal, bit for bit, to the encoder that was trained."""
    encoder, classifier = published(name)
    found, told = load_file(without_package[0] / f"org-{name}.safetensors"), without_package[1][f"org/{name}"]
    with torch.no_grad():
        ours = encoder(found["pixels"])
        logits = classifier(found["pixels"]).logits
    maps = [tensor for _, tensor in tensors_in(ours.last_hidden_state)]
    for prefix in ("last", "timm_last"):
        theirs = [tensor for place, tensor in sorted(found.items()) if place.split(".")[0] == prefix]
        assert len(theirs) == len(maps)
        assert all(torch.equal(one, two) for one, two in zip(theirs, maps, strict=True))
    assert torch.equal(found["pooled"], ours.pooler_output)
    assert torch.equal(found["timm_pooled"], ours.pooler_output)
    assert torch.equal(found["logits"], logits)
    assert torch.equal(found["timm_logits"], logits)
    assert (told["type"], told["labels"]) == ("timm_wrapper", LABELS)
    assert told["features_only"] == BACKBONES.get(name, "same weights")
    if encoder.config.num_channels == 3:  # transformers' pipelines make images RGB
        features = [tensor for place, tensor in sorted(found.items()) if place.split(".")[0] == "pipeline"]
        assert all(torch.equal(one.flatten(), two.flatten()) for one, two in zip(features, maps, strict=True))
        scores = dict(zip(LABELS, logits.softmax(-1)[0].tolist(), strict=True))
        assert told["answers"] == pytest.approx(scores, abs=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["hrnet_w18_small", "test_vit"])
@pytest.mark.parametrize("kwargs", [{"image_size": (64, 96)}, {"num_channels": 1}, {"num_channels": 5}])
def test_other_images(name, kwargs):
    config = A2MIMConfig.for_architecture(name, **{"image_size": 64, "mask_patch_size": 16, **kwargs})
    model, images = A2MIMForPreTraining(config), torch.randn(2, config.num_channels, *config.input_size)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    output.loss.backward()
    assert model.a2mim.mask_token.token.grad.any()


def test_encoders_that_take_no_224_px_get_their_own_size():
    config = A2MIMConfig.for_architecture("crossvit_15_dagger_408")
    assert (config.image_size, config.mask_patch_size) == ([408, 408], [24, 24])
    assert A2MIMConfig.for_architecture("resnet18").image_size == 224
    with pytest.raises(ValueError, match=r"^image_size: crossvit_15_dagger_408 cannot take .* made for 408 x 408 px"):
        A2MIMConfig.for_architecture("crossvit_15_dagger_408", image_size=224)
    with pytest.raises(ValueError, match="^architecture: "):
        A2MIMConfig.for_architecture("crossvit_16")


def test_encoders_without_a_classifier():
    """Seven of timm's 1,371 names."""
    config = A2MIMConfig.for_encoder(architecture="qwen3_vit_88m_enc")
    message = "^architecture: timm's qwen3_vit_88m_enc is an encoder without a classifier"
    with torch.device("meta"), NoValues(), pytest.raises(ValueError, match=message):
        A2MIMForImageClassification(config)


# The table


def test_examine():
    row = examine("test_resnet")
    assert (row.family, row.status, row.image_size) == ("resnet", "pre-trains", [224, 224])
    assert (row.site, row.site_kind, row.site_prefix, row.site_grid) == ("layer3.0", "NCHW", 0, [14, 14])
    assert (row.channels, row.map_kind, row.map_grid, row.stride) == (192, "NCHW", [7, 7], 32)
    assert row.isotropic is False
    assert row.alignment > LEAST_ALIGNMENT
    assert examine("test_resnet", max_parameters=0).alignment is None


def test_what_goes_wrong_is_shown(monkeypatch):
    def fail(config):
        raise (ValueError if config.architecture == "test_vit" else KeyError)("mask_site: nowhere")

    monkeypatch.setattr(architectures, "plan_encoder", fail)
    refused, broken = examine("test_vit"), examine("test_resnet")
    assert refused.status == "error: mask_site: nowhere"
    assert broken.status == "other: KeyError: 'mask_site: nowhere'"
    assert counts([refused, broken, Row("a", "b")]) == "1 pre-train, 1 named errors, 1 other"


def test_table(tmp_path, capsys):
    rows = sweep(["test_resnet", "test_vit"], 30e6, 1, str(tmp_path))
    assert [row.name for row in rows] == ["test_resnet", "test_vit"]
    assert "2 pre-train, 0 named errors, 0 other" in capsys.readouterr().out
    record = json.loads((tmp_path / "architectures.json").read_text())
    assert record["rows"] == [vars(row) for row in rows]
    assert record["summary"] == "2 pre-train, 0 named errors, 0 other"
    rows[1].status = "error: of today"
    write(rows[1:], tmp_path, 1)  # the other one is kept
    again = json.loads((tmp_path / "architectures.json").read_text())
    assert [row["status"] for row in again["rows"]] == ["pre-trains", "error: of today"]
    assert len(again["runs"]) == 2
    rows[1].status = "pre-trains"
    write(rows, tmp_path, 1)
    assert len(json.loads((tmp_path / "architectures.json").read_text())["runs"]) == 1
    table = (tmp_path / "architectures.md").read_text()
    assert "| test_vit | 306240 | 224x224 | patch_embed | NHWC | 14x14 | 64 | 16 | 1.0 | pre-trains |" in table
    assert "| resnet | 1 | 1 | NCHW 14x14 | NCHW 7x7 |" in table
    with pytest.raises(ValueError, match="^names: no timm encoder is called resnet5o"):
        sweep(["resnet5o"], 30e6, 1, None)
