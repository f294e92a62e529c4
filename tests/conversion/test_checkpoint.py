"""Official checkpoints of every kind: what becomes of them, that they compute what the official code does, and what is
refused. The numbers recorded from the official code are in `test_parity.py`."""

import importlib
import io
import os
import pickle
import re
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.commands.convert import main
from modeling_a2mim.conversion import checkpoint as conversion
from modeling_a2mim.conversion.checkpoint import _reorder_merging, convert, load_official, read_official
from modeling_a2mim.conversion.published import PUBLISHED

from .. import official
from ..golden.golden import load


pytestmark = pytest.mark.usefixtures("one_thread")
# Encoders as the official ones, but small: 64 px
VIT = {"width": 32, "depth": 3, "heads": 2, "grid": 4}
SWIN = {"depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "window": 6}


@pytest.fixture(scope="module")
def resnet():
    return load("a2mim_r18_l3")[0]


@pytest.fixture(scope="module")
def vit():
    return official.random_weights(official.pretraining(official.vit(**VIT), (1, 1, 32), 32, 16))


@pytest.fixture(scope="module")
def swin():
    return official.random_weights(official.pretraining(official.swin(width=24, **SWIN), (1, 1, 24), 192, 32))


@pytest.fixture(scope="module")
def vit_classifier():
    return official.random_weights(official.classifier(official.vit(**VIT, norm="fc_norm"), 32, 10))


def bare(state):
    return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}


# What they compute


def test_resnet_classifier_equals_torchvision():
    state = official.random_weights(official.classifier(official.resnet(), 2048, 10))
    theirs = torchvision.models.resnet50(num_classes=10).eval()
    theirs.load_state_dict({k.removeprefix("backbone.").removeprefix("head."): v for k, v in state.items()})
    ours, images = convert(state).model, torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = ours(images).logits, theirs(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def logits_agree(state, forward, size):
    model, images = convert(state).model, torch.randn(2, 3, size, size)
    assert isinstance(model, A2MIMForImageClassification)
    assert not model.training
    with torch.no_grad():
        ours, theirs = model(images).logits, forward(state)(images)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "head"), [("fc_norm", "head.fc"), ("ln1", "head.layers.head")])
@pytest.mark.parametrize("bias", [True, False])
def test_vit_classifier_equals_its_definition(norm, head, bias):
    keys = official.classifier(official.vit(**VIT, norm=norm, bias=bias), 32, 10, head)
    logits_agree(official.random_weights(keys), official.VitForward, 64)


def test_convnext_classifier_equals_its_definition():
    state = official.random_weights(official.classifier(official.convnext(), 768, 10))
    for key in state:
        if key.endswith("gamma"):  # 18 blocks
            state[key] = state[key] * 0.1
    logits_agree(state, official.ConvNextForward, 64)


def test_swin_classifier_equals_its_definition():
    settings = {**SWIN, "window": 7}
    keys = official.classifier(official.swin(width=24, **settings), 192, 10)
    logits_agree(official.random_weights(keys), lambda state: official.SwinForward(state, **settings), 224)


def test_swin_equals_the_official_forward(swin):
    model = convert(swin).model
    image = torch.randn(2, 3, 192, 192)
    with torch.no_grad():
        ours, theirs = model.a2mim(image).last_hidden_state, official.SwinForward(swin, **SWIN)(image)
    # Two implementations in float32; the reference measured 3e-6 between the official encoder and timm's.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert model.a2mim.site.module == "patch_embed"
    assert model.config.mask_gamma_init is None
    assert torch.equal(model.a2mim.mask_token.token, swin["backbone.mask_token"].flatten())


def test_swin_refuses_what_does_not_fit(swin):
    with pytest.raises(ValueError, match=r"layers\.1\.downsample\.norm\.bias \(\), expected \(96,\)"):
        convert({**swin, "backbone.stages.0.downsample.norm.bias": torch.tensor(1.0)})
    key = "backbone.stages.1.blocks.0.attn.w_msa.relative_position_index"
    with pytest.raises(ValueError, match=r"layers\.1\.blocks\.0.*: the relative positions are not those of timm"):
        convert({**swin, key: swin[key].T.contiguous()})


def test_reordering_of_patch_merging():
    x = torch.randn(1, 5, 4, 4)
    weight = torch.randn(7, 20)
    theirs = F.unfold(x, 2, stride=2).transpose(1, 2) @ weight.T
    # timm's order: (column, row) outside, channels inside
    parts = x.permute(0, 2, 3, 1).unflatten(2, (2, 2)).unflatten(1, (2, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
    torch.testing.assert_close(parts.flatten(1, 2) @ _reorder_merging(weight).T, theirs)


# Wrappings and kinds


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("wrapping", ["bare", "training", "published", "module", "ema", "directory"])
def test_wrappings(vit, tmp_path, wrapping, legacy):
    training = official.training_file(vit)
    content = {
        "bare": dict(vit),
        "training": training,
        "published": {k: v for k, v in training.items() if k != "optimizer"},
        "module": {"state_dict": {f"module.{k}": v for k, v in vit.items()}},
        "ema": {"state_dict": official.averaged(vit)},
        "directory": official.published_dir_file(vit),
    }[wrapping]
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    model = load_official(tmp_path / "in.pth")
    assert isinstance(model, A2MIMForPreTraining)
    assert not model.training
    assert torch.equal(model.a2mim.encoder.patch_embed.proj.weight, vit["backbone.patch_embed.projection.weight"])
    assert torch.equal(model.a2mim.mask_token.token, vit["backbone.mask_token"].flatten())
    assert torch.equal(model.decoder.weight, vit["neck.decoder_pred.0.weight"])
    assert model.config.decoder == "linear"


def test_extracted_backbone(vit, vit_classifier, tmp_path):
    torch.save(official.extracted_file(vit), tmp_path / "in.pth")
    model = load_official(tmp_path / "in.pth")
    assert type(model) is A2MIMModel
    assert not model.training
    images, mask = torch.randn(2, 3, 64, 64), torch.tensor([[[1, 0], [1, 1]]]).expand(2, -1, -1)
    whole = convert(vit).model
    with torch.no_grad():
        ours, theirs = model(images, mask).last_hidden_state, whole.a2mim(images, mask).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    without = {k: v for k, v in bare(vit).items() if k != "mask_token"}
    assert convert(without).model.mask_token is None
    assert convert(bare(vit_classifier)).model.config.model_args["global_pool"] == "avg"


def test_classifiers_as_they_are_saved(vit_classifier, tmp_path):
    for content in (
        {"state_dict": official.averaged(vit_classifier)},
        official.published_dir_file(vit_classifier),
    ):
        torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
        model = load_official(tmp_path / "in.pth")
        assert torch.equal(model.a2mim.encoder.fc_norm.weight, vit_classifier["backbone.fc_norm.weight"])
        assert torch.equal(model.a2mim.encoder.head.weight, vit_classifier["head.fc.weight"])
        assert model.config.id2label[9] == "LABEL_9"


def test_method(vit, vit_classifier):
    simmim = {k.replace("decoder_pred", "decoder"): v for k, v in vit.items()}
    assert convert(simmim, name="a2mim.pth").method == "SimMIM"
    assert convert(simmim).model.config.mask_token_mode == "replace"
    text = {"config": "model = dict(type='SimMIM', backbone=dict())"}
    assert convert({"state_dict": bare(vit), "meta": text}, name="a2mim.pth").method == "SimMIM"
    assert convert(vit_classifier).method is None
    assert convert(vit_classifier, name="simmim_vit_small_ft.pth").method == "SimMIM"
    assert convert(vit_classifier, name="A2MIM_vit_ft_simmim.pth").method == "A2MIM"


def test_decoder_of_several_layers(vit):
    neck = {
        "neck.decoder.conv.0.conv.weight": torch.zeros(32, 1, 5, 5),
        "neck.decoder.conv.0.ln.weight": torch.ones(32),
    }
    with pytest.raises(ValueError, match=r"decoder \(neck\.decoder\.conv\.0.*--encoder_only.* drops the decoder"):
        convert({**vit, **neck})
    dropped = convert({**vit, **neck}, encoder_only=True)
    assert type(dropped.model) is A2MIMModel
    assert dropped.method == "A2MIM"
    assert torch.equal(dropped.model.mask_token.token, vit["backbone.mask_token"].flatten())


# The command line


def test_command_line(resnet, tmp_path, capsys, monkeypatch):
    torch.save({"state_dict": resnet}, tmp_path / "in.pth")
    monkeypatch.setattr(conversion, "published_for", lambda *args: [PUBLISHED[0]])
    main([str(tmp_path / "in.pth"), str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "resnet18: 12,752,960 parameters, pre-training checkpoint of A2MIM, token at layer3.1" in shown
    assert "| SimMIM | ViT-S | ImageNet-1K | top-1 accuracy | 81.7 |" in shown
    assert "These numbers are the paper's, not measured here" in shown
    assert (tmp_path / "out" / "README.md").read_text() in shown
    again = A2MIMForPreTraining.from_pretrained(tmp_path / "out", subfolder="pretraining")
    assert torch.equal(again.decoder.weight, resnet["neck.decoder_pred.0.weight"])
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "missing.pth"), str(tmp_path / "other")])
    assert stopped.value.code == 2
    assert "missing.pth: no such file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["resnet18.pth", "a2mim_resnet18.pth", "resnet18_simmim.pth"])
def test_command_line_for_a_resnet_of_anyone(name, tmp_path, capsys, monkeypatch):
    """Whose names are torchvision's and timm's: neither they nor its own tell how it was trained."""
    weights = timm.create_model("resnet18", num_classes=0).state_dict()
    torch.save({"state_dict": weights}, tmp_path / name)
    monkeypatch.setattr(conversion, "published_for", lambda *args: [PUBLISHED[0]])
    main([str(tmp_path / name), str(tmp_path / "out")])
    told = "encoder, of which the file does not tell how it was trained"
    assert f"resnet18: 11,176,512 parameters, {told}, to " in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "# resnet18, an image encoder\n" in card.text
    assert "3 channel(s), of which it is not known how it was trained: an encoder" in card.text
    assert f"| training | converted from torchvision's format: {told} |" in card.text
    assert "| licence of the weights | not stated |" in card.text
    assert "Not evaluated." in card.text
    assert (card.data.license, card.data.datasets) == (None, None)
    assert card.data.tags == ["image-feature-extraction", "timm", "transformers"]
    assert not re.search("(?i)a2mim|simmim|masked|paper|imagenet|81.7", card.content)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()


def test_command_line_for_classifiers_and_encoders(vit, vit_classifier, tmp_path, capsys):
    images = torch.randn(1, 3, 64, 64)
    torch.save(vit_classifier, tmp_path / "ft.pth")
    main([str(tmp_path / "ft.pth"), str(tmp_path / "classifier")])
    told = "fine-tuned classifier, of which the file does not tell how it was trained"
    assert f"{told}, 10 classes" in capsys.readouterr().out
    stranger = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        expected = official.VitForward(vit_classifier)(images)
        torch.testing.assert_close(stranger(images).logits, expected, rtol=0, atol=1e-5)
    torch.save(vit, tmp_path / "a2mim_full.pth")
    main([str(tmp_path / "a2mim_full.pth"), str(tmp_path / "encoder"), "--encoder_only"])
    assert "encoder of A2MIM, token at patch_embed (which is not exported)" in capsys.readouterr().out
    assert not (tmp_path / "encoder" / "pretraining").exists()
    with torch.no_grad():
        features = AutoModel.from_pretrained(tmp_path / "encoder")(images).last_hidden_state
        expected = convert(vit).model.a2mim(images).last_hidden_state
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


# What is refused


def refused(content, message, path):
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        load_official(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_contents_that_are_refused(vit, vit_classifier, tmp_path):
    def check(content, message):
        refused(content, message, tmp_path / "in.pth")

    def without(name):
        return {k: v for k, v in vit.items() if k != name}

    check([1, 2], "expected a dict of weights, found a list")
    check({"state_dict": [1]}, "state_dict: expected a dict of weights, found a list")
    check({"model": vit}, "expected weights by their names, found 'model' with a OrderedDict")
    check({}, "no official ResNet, ConvNeXt, ViT or Swin: no weights")
    check({k.replace("layers", "blocks"): v for k, v in vit.items()}, "no official ResNet, ConvNeXt, ViT or Swin")
    check({**vit, "backbone.extra": torch.zeros(1)}, r"weights left over: a2mim\.encoder\.extra")
    check({**vit, "extra.weight": torch.zeros(1)}, r"weights left over: extra\.weight")
    check({**vit, "module.backbone.cls_token": torch.zeros(1)}, r"backbone\.cls_token is there twice")
    check({**vit, "backbone.norm.weight": torch.ones(32)}, "left over: some are there twice")
    check({**vit, **{k: v for k, v in vit_classifier.items() if "head" in k}}, "both a decoder and a classifier")
    check({**vit_classifier, "backbone.mask_token": torch.zeros(1, 1, 32)}, "a mask_token beside a classifier")
    check({**vit_classifier, "head.more.weight": torch.zeros(1)}, r"classifier \(.*head\.more.* not a single linear")
    check(without("backbone.mask_token"), "weights missing: mask_token")
    check(without("backbone.pos_embed"), "weights missing: pos_embed")
    index = "backbone.layers.2.attn.relative_position_index"
    check(without(index), r"weights missing: a2mim\.encoder\.blocks\.2\.attn\.relative_position_index")
    check(without("backbone.layers.1.ln2.bias"), r"weights missing: a2mim\.encoder\.blocks\.1\.norm2\.bias")
    head = {"head.fc.weight": torch.zeros(10, 33)}
    check(
        {**vit_classifier, **head},
        r"of another shape or type: a2mim\.encoder\.head\.weight \(10, 33\), expected \(10, 32\)",
    )
    check({**vit, "backbone.pos_embed": torch.zeros(0, 1, 1)}, r"pos_embed: .* found the shape \(0, 1, 1\)")
    check({**vit, "backbone.pos_embed": torch.zeros(17)}, r"pos_embed: expected 3 dimensions, found the shape \(17,\)")
    types = {"backbone.layers.1.ln2.bias": torch.zeros(32, dtype=torch.int32)}
    check({**vit, **types}, r"of another shape or type: a2mim\.encoder\.blocks\.1\.norm2\.bias \(32,\)")
    with pytest.raises(ValueError, match="mask_site: 'stem' given, but there is no mask token"):
        convert(vit_classifier, mask_site="stem")


def test_small_files_do_not_make_large_models(vit, tmp_path):
    def check(content, message):
        refused(content, message, tmp_path / "in.pth")

    check(
        {**vit, "backbone.layers.999999999999.x": torch.zeros(1)}, r"layers\.999999999999 is there, but not all before"
    )
    huge = torch.zeros(1).expand(10**6, 10**6)
    check({**vit, "backbone.cls_token": huge}, "the weights call themselves 4,000,000,.* bytes and are")
    shared = {f"backbone.layers.{i}{k[17:]}": v for i in range(99) for k, v in vit.items() if ".layers.0." in k}
    check({**vit, **shared}, "the weights call themselves")
    check({"w": torch.eye(2).to_sparse()}, "w: not a plain tensor")
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "in.pth")
    with zipfile.ZipFile(tmp_path / "in.pth") as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ValueError, match=r"bomb\.pth: refused: unpacked, it would have many more"):
        load_official(tmp_path / "bomb.pth")


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Only callable objects can be pickled as what is called."""


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def raw(protocol):
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol))


def old_tar(content, path):
    """The format before torch 0.1.10."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, item in {"storages": 0, "tensors": 0, "pickle": content}.items():
            data = pickle.dumps(item, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def torchscript(content, path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)


WEIGHTS = {"backbone.conv1.weight": torch.zeros(2)}
MALICIOUS = {  # (what is pickled, given the command and the Python code that leave a trace; how; what is named)
    "os.system": (lambda shell, code: Calls(os.system, shell), legacy, "posix.system"),
    "raw pickle": (lambda shell, code: Calls(os.system, shell), raw(2), "posix.system"),
    "raw text pickle": (lambda shell, code: Calls(os.system, shell), raw(0), "posix.system"),
    "raw new pickle": (lambda shell, code: Calls(os.system, shell), raw(4), "operand"),
    "eval": (lambda shell, code: {"state_dict": Calls(eval, code)}, torch.save, "GLOBAL eval"),
    "meta": (lambda shell, code: {"meta": {"config": Calls(exec, code)}, **WEIGHTS}, legacy, "GLOBAL exec"),
    "optimizer": (
        lambda shell, code: {"state_dict": WEIGHTS, "optimizer": Calls(subprocess.Popen, shell.split())},
        torch.save,
        "Popen",
    ),
    "import": (
        lambda shell, code: {"state_dict": {"w": Calls(importlib.import_module, "antigravity")}},
        torch.save,
        "importlib.import_module",
    ),
    "getattr": (
        lambda shell, code: Calls(Calls(getattr, Calls(importlib.import_module, "os"), "system"), shell),
        torch.save,
        "GLOBAL getattr",
    ),
    "torch.hub": (lambda shell, code: {"w": Calls(torch.hub.load, "a/b", "c")}, torch.save, "torch.hub.load"),
    "numpy object": (
        lambda shell, code: {"w": np.array([Calls(os.system, shell)], dtype=object)},
        torch.save,
        r"numpy.*_reconstruct",
    ),
    "numpy scalar": (
        lambda shell, code: {"meta": {"best": np.float64(80.4)}, **WEIGHTS},
        torch.save,
        "multiarray.scalar",
    ),
    "whole module": (lambda shell, code: torch.nn.Linear(2, 2), torch.save, "torch.nn.modules.linear.Linear"),
    "old tar": (lambda shell, code: Calls(os.system, shell), old_tar, r"legacy \.tar format"),
    "TorchScript": (lambda shell, code: None, torchscript, "TorchScript archives"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files(tmp_path, capsys, name):
    make, save, named = MALICIOUS[name]
    trace, path, out = tmp_path / "trace", tmp_path / "in.pth", tmp_path / "out"
    save(make(f"touch {trace}", f"open({str(trace)!r}, 'w').close()"), path)
    message = rf"in\.pth: refused, and nothing in it was run: .*weights_only=True \(.*{named}"
    with pytest.raises(ValueError, match=message):
        load_official(path)
    with pytest.raises(SystemExit) as stopped:
        main([str(path), str(out)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: refused")
    assert not trace.exists()
    assert not out.exists()


def test_the_malicious_files_would_do_harm(tmp_path):
    """Otherwise the test above would show nothing."""
    for name in ("os.system", "eval", "getattr", "numpy object"):
        make, save, _ = MALICIOUS[name]
        trace = tmp_path / "trace"
        save(make(f"touch {trace}", f"open({str(trace)!r}, 'w').close()"), tmp_path / "in.pth")
        # On purpose, and of a file made here: without its refusal the code does run, so the other test can fail.
        torch.load(tmp_path / "in.pth", weights_only=False)
        assert trace.exists(), name
        trace.unlink()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".", b"PK\x03\x04"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"in\.pth: not a checkpoint, or a damaged one \(.+\)"):
        load_official(tmp_path / "in.pth")


def test_truncated_files(vit, tmp_path):
    for zipped in (True, False):
        torch.save(vit, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
        data = (tmp_path / "in.pth").read_bytes()
        (tmp_path / "in.pth").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="not a checkpoint, or a damaged one"):
            read_official(tmp_path / "in.pth")
