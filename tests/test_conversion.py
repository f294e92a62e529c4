"""Official checkpoints: what conversion refuses, and Swin, for which there is no golden data."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.conversion import _reorder_merging, convert, load_official, main

from .golden.golden import load


@pytest.fixture(scope="module")
def resnet():
    return load("a2mim_r18_l3")[0]


def official_swin(depths=(2, 2, 2, 2), width=24, heads=(1, 2, 4, 8), window=6):
    """Random weights under the official names of `a2mim_swin_tiny_l0`, relative positions by their definition."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def linear(name, out, inputs, bias=True):
        state[f"{name}.weight"] = torch.randn(out, inputs, generator=generator) * inputs**-0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def norm(name, size):
        state[f"{name}.weight"] = 1 + torch.randn(size, generator=generator) * 0.1
        state[f"{name}.bias"] = torch.randn(size, generator=generator) * 0.1

    axis = torch.arange(window)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    apart = cells[:, :, None] - cells[:, None, :] + window - 1
    index = apart[0] * (2 * window - 1) + apart[1]
    state["backbone.mask_token"] = torch.randn(1, 1, width, generator=generator)
    state["backbone.patch_embed.projection.weight"] = torch.randn(width, 3, 4, 4, generator=generator) * 0.1
    state["backbone.patch_embed.projection.bias"] = torch.randn(width, generator=generator) * 0.1
    norm("backbone.patch_embed.norm", width)
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        size = width * 2**stage
        for block in range(depth):
            name = f"backbone.stages.{stage}.blocks.{block}"
            norm(f"{name}.norm1", size)
            table = torch.randn((2 * window - 1) ** 2, head, generator=generator)
            state[f"{name}.attn.w_msa.relative_position_bias_table"] = table
            state[f"{name}.attn.w_msa.relative_position_index"] = index
            linear(f"{name}.attn.w_msa.qkv", 3 * size, size)
            linear(f"{name}.attn.w_msa.proj", size, size)
            norm(f"{name}.norm2", size)
            linear(f"{name}.ffn.layers.0.0", 4 * size, size)
            linear(f"{name}.ffn.layers.1", size, 4 * size)
        if stage < 3:
            norm(f"backbone.stages.{stage}.downsample.norm", 4 * size)
            linear(f"backbone.stages.{stage}.downsample.reduction", 2 * size, 4 * size, bias=False)
    norm("backbone.norm3", 8 * width)
    state["neck.decoder_pred.0.weight"] = torch.randn(3072, 8 * width, 1, 1, generator=generator) * 0.02
    state["neck.decoder_pred.0.bias"] = torch.zeros(3072)
    return state


class OfficialSwin(nn.Module):
    """The official encoder's forward written out from its definition (Liu et al., https://arxiv.org/abs/2103.14030;
    patch merging through `nn.Unfold`, as mmcv does), reading the official names."""

    def __init__(self, state, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=6):
        super().__init__()
        self.state = {k.removeprefix("backbone."): v for k, v in state.items()}
        self.depths, self.heads, self.window = depths, heads, window

    def linear(self, x, name):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def attention(self, x, name, heads, shift):
        batch, rows, columns, size = x.shape
        w = min(self.window, rows)
        shift = shift if rows > self.window else 0
        regions = torch.zeros(rows, columns)
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            edges = (slice(0, -w), slice(-w, -shift), slice(-shift, None))
            for number, (r, c) in enumerate((r, c) for r in edges for c in edges):
                regions[r, c] = number

        def windows(t):
            t = t.unflatten(2, (-1, w)).unflatten(1, (-1, w))
            return t.transpose(2, 3).flatten(1, 2).flatten(2, 3).flatten(0, 1)

        tokens, regions = windows(x), windows(regions[None, ..., None])[..., 0]
        qkv = self.linear(tokens, f"{name}.qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-1, -2) * (size // heads) ** -0.5
        index = self.state[f"{name}.relative_position_index"]
        scores = scores + self.state[f"{name}.relative_position_bias_table"][index].permute(2, 0, 1)
        hidden = (regions[:, :, None] != regions[:, None, :]).float() * -100
        scores = (scores.unflatten(0, (batch, -1)) + hidden[:, None]).flatten(0, 1)
        out = self.linear((scores.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2), f"{name}.proj")
        out = out.unflatten(1, (w, w)).unflatten(0, (batch, rows // w, columns // w)).transpose(2, 3)
        return out.flatten(1, 2).flatten(2, 3).roll((shift, shift), (1, 2))

    def forward(self, image):
        s = self.state
        x = F.conv2d(image, s["patch_embed.projection.weight"], s["patch_embed.projection.bias"], stride=4)
        x = self.norm(x.permute(0, 2, 3, 1), "patch_embed.norm")
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                name = f"stages.{stage}.blocks.{block}"
                shift = self.window // 2 if block % 2 else 0
                x = x + self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn.w_msa", self.heads[stage], shift)
                inner = F.gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.ffn.layers.0.0"))
                x = x + self.linear(inner, f"{name}.ffn.layers.1")
            if stage < 3:
                rows = x.shape[1] // 2
                x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
                x = self.linear(
                    self.norm(x, f"stages.{stage}.downsample.norm"), f"stages.{stage}.downsample.reduction"
                )
                x = x.unflatten(1, (rows, rows))
        return self.norm(x, "norm3")


def test_swin_equals_the_official_forward():
    state = official_swin()
    model = convert(state)
    image = torch.randn(2, 3, 192, 192)
    with torch.no_grad():
        ours, theirs = model.a2mim(image).last_hidden_state, OfficialSwin(state)(image)
    # Two implementations in float32; the reference measured 3e-6 between the official encoder and timm's.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert model.a2mim.site.module == "patch_embed"
    assert model.config.mask_gamma_init is None
    assert torch.equal(model.a2mim.mask_token.token, state["backbone.mask_token"].flatten())


def test_swin_refuses_other_relative_positions():
    state = official_swin()
    key = "backbone.stages.1.blocks.0.attn.w_msa.relative_position_index"
    with pytest.raises(ValueError, match=r"stages\.1\.blocks\.0.*: the relative positions are not those of timm"):
        convert({**state, key: state[key].T.contiguous()})


def test_reordering_of_patch_merging():
    x = torch.randn(1, 5, 4, 4)
    weight = torch.randn(7, 20)
    official = F.unfold(x, 2, stride=2).transpose(1, 2) @ weight.T
    # timm's order: (column, row) outside, channels inside
    parts = x.permute(0, 2, 3, 1).unflatten(2, (2, 2)).unflatten(1, (2, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
    torch.testing.assert_close(parts.flatten(1, 2) @ _reorder_merging(weight).T, official)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("wrapping", ["bare", "state_dict", "module", "ema"])
def test_wrappings(resnet, tmp_path, wrapping, legacy):
    state = {f"module.{k}": v for k, v in resnet.items()} if wrapping == "module" else dict(resnet)
    if wrapping == "ema":
        state["ema_backbone_conv1_weight"] = torch.zeros(1)
    content = state if wrapping == "bare" else {"meta": {"epoch": 1}, "state_dict": state, "optimizer": {"lr": 1.0}}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=not legacy)
    model = load_official(tmp_path / "in.pth")
    assert torch.equal(model.a2mim.encoder.conv1.weight, resnet["backbone.conv1.weight"])
    assert model.a2mim.site.module == "layer3.1"


def test_site_can_be_given_or_read_from_the_configuration(resnet):
    assert convert(resnet, mask_site="layer3.0").a2mim.site.module == "layer3.0"
    vit = load("a2mim_deit_small_l8")[0]
    assert convert(vit).a2mim.site.module == "patch_embed"
    assert convert(vit, config_text="backbone=dict(mask_layer=8)").a2mim.site.module == "blocks.6"


def test_command_line(resnet, tmp_path, capsys):
    torch.save({"state_dict": resnet}, tmp_path / "in.pth")
    main([str(tmp_path / "in.pth"), str(tmp_path / "out")])
    assert "resnet18: 12,752" in capsys.readouterr().out
    again = A2MIMForPreTraining.from_pretrained(tmp_path / "out", subfolder="pretraining")
    assert torch.equal(again.decoder.weight, resnet["neck.decoder_pred.0.weight"])
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "missing.pth"), str(tmp_path / "other")])
    assert stopped.value.code == 2
    assert "missing.pth: no such file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


class Malicious:
    def __reduce__(self):
        return (open, ("/tmp/never", "w"))


def test_files_that_are_refused(resnet, tmp_path):
    def refused(content, message, raw=None):
        path = tmp_path / "in.pth"
        path.write_bytes(raw) if raw is not None else torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_official(path)

    refused(None, "not a checkpoint that torch reads with weights_only=True", pickle.dumps(Malicious(), protocol=2))
    refused(None, "not a checkpoint that torch reads with weights_only=True", b"garbage")
    refused([1, 2], "expected a dict of weights, found a list")
    head_only = {k: v for k, v in resnet.items() if not k.startswith("neck.")}
    refused({"state_dict": head_only}, "not a full pre-training checkpoint")
    refused({"state_dict": {**resnet, "head.fc.weight": torch.zeros(1)}}, r"unknown keys: head\.fc\.weight")
    refused({"state_dict": {**resnet, "backbone.extra": torch.zeros(1)}}, "the weights do not fit resnet18")
    missing = {k: v for k, v in resnet.items() if k != "backbone.bn1.weight"}
    refused({"state_dict": missing}, "the weights do not fit resnet18")
    other = {k.replace("layer1", "block1"): v for k, v in resnet.items()}
    refused({"state_dict": other}, "no official ResNet, ConvNeXt, ViT or Swin")
    shallow = {k: v for k, v in resnet.items() if ".layer4.1." not in k}
    refused({"state_dict": shallow}, r"timm has no ResNet with \(\(2, 2, 2, 1\), False\)")
