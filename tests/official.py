"""Official checkpoints, built from compact descriptions: names and shapes of the weights of OpenMixup's models, random
values for them, the files they are saved in, and what the official encoders compute, written from their definitions.

`SECTIONS` are the models whose lists were recorded from the official code; `fixtures/official_keys.json` has a digest
of each list.
"""

import hashlib
import math
from collections import OrderedDict

import torch
from torch.nn import functional as F


INDEX = "relative_position_index"
RESNET_50, SWIN_TINY, SWIN_BASE = (3, 4, 6, 3), (2, 2, 6, 2), (2, 2, 18, 2)
CONVNEXT_TINY = (3, 3, 9, 3)


def _layer(name, *shape, bias=True):
    """A convolution or linear layer, or with one dimension a norm."""
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def _batch_norm(name, width):
    statistics = {f"{name}.{k}": (width,) for k in ("running_mean", "running_var")}
    return {**_layer(name, width), **statistics, f"{name}.num_batches_tracked": ()}


def resnet(blocks=RESNET_50, bottleneck=True):
    keys, inputs = {**_layer("conv1", 64, 3, 7, 7, bias=False), **_batch_norm("bn1", 64)}, 64
    for stage, depth in enumerate(blocks, 1):
        width = 64 * 2 ** (stage - 1)
        out = 4 * width if bottleneck else width
        for block in range(depth):
            name = f"layer{stage}.{block}"
            sizes = [(width, inputs, 1), (width, width, 3), (out, width, 1)]
            for i, (o, c, k) in enumerate(sizes if bottleneck else [(width, inputs, 3), (width, width, 3)], 1):
                keys |= _layer(f"{name}.conv{i}", o, c, k, k, bias=False) | _batch_norm(f"{name}.bn{i}", o)
            if block == 0 and inputs != out:
                keys |= _layer(f"{name}.downsample.0", out, inputs, 1, 1, bias=False)
                keys |= _batch_norm(f"{name}.downsample.1", out)
            inputs = out
    return keys


def convnext(blocks=CONVNEXT_TINY, width=96):
    keys = {**_layer("downsample_layers.0.0", width, 3, 4, 4), **_layer("downsample_layers.0.1", width)}
    for stage, depth in enumerate(blocks):
        size = width * 2**stage
        if stage:
            keys |= _layer(f"downsample_layers.{stage}.0", size // 2)
            keys |= _layer(f"downsample_layers.{stage}.1", size, size // 2, 2, 2)
        for block in range(depth):
            name = f"stages.{stage}.{block}"
            keys |= {f"{name}.gamma": (size,), **_layer(f"{name}.depthwise_conv", size, 1, 7, 7)}
            keys |= _layer(f"{name}.norm", size) | _layer(f"{name}.pointwise_conv1", 4 * size, size)
            keys |= _layer(f"{name}.pointwise_conv2", size, 4 * size)
    return keys | _layer("norm3", size)


def vit(width=768, depth=12, heads=12, hidden=None, grid=14, norm="ln1", bias=True):
    hidden, tokens = hidden or 4 * width, grid * grid + 1
    keys = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    keys |= _layer("patch_embed.projection", width, 3, 16, 16)
    for block in range(depth):
        name = f"layers.{block}"
        keys |= {f"{name}.gamma_1": (width,), f"{name}.gamma_2": (width,), **_layer(f"{name}.ln1", width)}
        if bias:
            keys |= {f"{name}.attn.q_bias": (width,), f"{name}.attn.v_bias": (width,)}
        keys |= {
            f"{name}.attn.relative_position_bias_table": ((2 * grid - 1) ** 2 + 3, heads),
            f"{name}.attn.{INDEX}": (tokens, tokens),
            **_layer(f"{name}.attn.qkv", 3 * width, width, bias=False),
            **_layer(f"{name}.attn.proj", width, width),
            **_layer(f"{name}.ln2", width),
            **_layer(f"{name}.ffn.layers.0.0", hidden, width),
            **_layer(f"{name}.ffn.layers.1", width, hidden),
        }
    return keys | _layer(norm, width)


def swin(depths=SWIN_TINY, width=96, heads=(3, 6, 12, 24), window=6):
    keys = _layer("patch_embed.projection", width, 3, 4, 4) | _layer("patch_embed.norm", width)
    for stage, (depth, head) in enumerate(zip(depths, heads, strict=True)):
        size = width * 2**stage
        for block in range(depth):
            name = f"stages.{stage}.blocks.{block}"
            keys |= {
                **_layer(f"{name}.norm1", size),
                f"{name}.attn.w_msa.relative_position_bias_table": ((2 * window - 1) ** 2, head),
                f"{name}.attn.w_msa.{INDEX}": (window**2, window**2),
                **_layer(f"{name}.attn.w_msa.qkv", 3 * size, size),
                **_layer(f"{name}.attn.w_msa.proj", size, size),
                **_layer(f"{name}.norm2", size),
                **_layer(f"{name}.ffn.layers.0.0", 4 * size, size),
                **_layer(f"{name}.ffn.layers.1", size, 4 * size),
            }
        if stage < len(depths) - 1:
            keys |= _layer(f"stages.{stage}.downsample.norm", 4 * size)
            keys |= _layer(f"stages.{stage}.downsample.reduction", 2 * size, 4 * size, bias=False)
    return keys | _layer("norm3", size)


def pretraining(encoder, token, features, stride, gamma=False, simmim=False):
    """Keys of a pre-training checkpoint; `token` is the shape of the mask token."""
    keys = {"mask_token": token, **({"mask_gamma": token} if gamma else {}), **encoder}
    neck = "neck.decoder.0" if simmim else "neck.decoder_pred.0"
    return {f"backbone.{k}": v for k, v in keys.items()} | _layer(neck, 3 * stride**2, features, 1, 1)


def classifier(encoder, features, classes=1000, head="head.fc"):
    return {f"backbone.{k}": v for k, v in encoder.items()} | _layer(head, classes, features)


DEIT = {"width": 384, "heads": 6}
CONV_NECK = {"neck.decoder.conv.0.conv.weight": (384, 1, 5, 5), **_layer("neck.decoder.conv.0.ln", 384)}
SECTIONS = {
    "a2mim_r50_l3": pretraining(resnet(), (1, 1024, 1, 1), 2048, 32, gamma=True),
    "a2mim_r18_l3": pretraining(resnet((2, 2, 2, 2), False), (1, 256, 1, 1), 512, 32, gamma=True),
    "a2mim_vit_base_l0": pretraining(vit(), (1, 1, 768), 768, 16),
    "a2mim_deit_small_l8": pretraining(vit(**DEIT, grid=12), (1, 1, 384), 384, 16),
    "a2mim_convnext_t_l3": pretraining(convnext(), (1, 768, 1, 1), 768, 32, gamma=True),
    "a2mim_swin_tiny_l0": pretraining(swin(), (1, 1, 96), 768, 32),
    "simmim_r50": pretraining(resnet(), (1, 64, 1, 1), 2048, 32, simmim=True),
    "simmim_deit_small": pretraining(vit(**DEIT), (1, 1, 384), 384, 16, simmim=True),
    "a2mim_vit_small_l0": pretraining(vit(depth=8, heads=8, hidden=2304), (1, 1, 768), 768, 16),
    "a2mim_deit_small_l0_mlp": pretraining(vit(**DEIT, grid=12), (1, 1, 384), 384, 16) | CONV_NECK,
    "a2mim_swin_base_l0": pretraining(swin(SWIN_BASE, 128, (4, 8, 16, 32)), (1, 1, 128), 1024, 32),
    "simmim_convnext_t": pretraining(convnext(), (1, 96, 1, 1), 768, 32, simmim=True),
    "simmim_vit_base": pretraining(vit(), (1, 1, 768), 768, 16, simmim=True),
    "ft_r50": classifier(resnet(), 2048),
    "ft_vit_base_p16": classifier(vit(norm="fc_norm"), 768),
    "ft_convnext_tiny": classifier(convnext(), 768),
    "ft_swin_base": classifier(swin(SWIN_BASE, 128, (4, 8, 16, 32), window=7), 1024),
    "ft_deit_small_p16": classifier(vit(**DEIT, bias=False), 384, head="head.layers.head"),
}


def is_integer(key):
    return key.endswith((INDEX, "num_batches_tracked"))


def digest(keys):
    """A digest of names, shapes and dtypes, whatever their order."""
    lines = (f"{k} {list(map(int, shape))} {'int64' if is_integer(k) else 'float32'}" for k, shape in keys.items())
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def relative_positions(tokens):
    """The index by which every pair of cells of a square window looks up its bias: row by row over the differences of
    (row, column). With a class token (Bao et al., https://arxiv.org/abs/2106.08254), three more for its pairs."""
    window = math.isqrt(tokens)
    axis = torch.arange(window)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    apart = cells[:, :, None] - cells[:, None, :] + window - 1
    index = apart[0] * (2 * window - 1) + apart[1]
    if tokens == window**2:
        return index
    full, last = index.new_zeros(tokens, tokens), (2 * window - 1) ** 2
    full[1:, 1:], full[0, :], full[:, 0], full[0, 0] = index, last, last + 1, last + 2
    return full


def random_weights(keys, seed=0):
    """Values for a list of keys, such that features keep their size and every weight matters."""
    generator, state = torch.Generator().manual_seed(seed), OrderedDict()
    for key, shape in keys.items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith(INDEX):
            state[key] = relative_positions(shape[0])
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = 1 + 0.5 * noise.tanh()
        elif key.endswith("table"):
            state[key] = noise
        elif len(shape) > 1 and key.endswith("weight"):
            state[key] = noise * math.prod(shape[1:]) ** -0.5
        else:
            state[key] = 0.1 * noise + (1 if key.endswith(("weight", "gamma", "gamma_1", "gamma_2")) else 0)
    return state


def training_file(state, config=""):
    """What mmcv saves; the published file lacks `optimizer`."""
    meta = {"mmcv_version": "1.7.1", "time": "Thu", "epoch": 300, "iter": 187800, "config": config, "seed": 0}
    meta |= {"hook_msgs": {"best_score": 80.4}, "env_info": "PyTorch: 1.12", "exp_name": "r50.py", "CLASSES": None}
    moments = {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    groups = [{"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05, "params": [0]}]
    return {"meta": meta, "state_dict": state, "optimizer": {"state": {0: moments}, "param_groups": groups}}


def averaged(state):
    """A fine-tuned model's state with the raw weights of its EMA hook beside it."""
    raw = {
        f"ema_{k.replace('.', '_')}": v + 1 for k, v in state.items() if v.is_floating_point() and "running" not in k
    }
    return OrderedDict([*state.items(), *raw.items()])


def extracted_file(state):
    bare = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    return {"state_dict": bare, "author": "openmixup"}


def published_dir_file(state):
    """As `publish_dir_models.py` renames: "backbone." goes, and from the place where "fc" was in the old name three
    characters go, from whatever is there in the new one."""
    renamed = {}
    for key, value in state.items():
        name, at = key.removeprefix("backbone."), key.find("fc")
        renamed[name if at < 0 else name[:at] + name[at + 3 :]] = value
    return {"state_dict": renamed, "author": "openmixup"}


class Forward:
    """The layers of an official encoder by their names."""

    def __init__(self, state):
        self.state = {k.removeprefix("backbone."): v for k, v in state.items()}

    def linear(self, x, name, bias=None):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias", bias))

    def norm(self, x, name, eps=1e-6):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def conv(self, x, name, **kwargs):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **kwargs)

    def mlp(self, x, first, second):
        return self.linear(F.gelu(self.linear(x, first)), second)


class VitForward(Forward):
    """Logits of the fine-tuned SimMIM ViT: absolute and relative positions, layer scale; the mean patch token through
    `fc_norm`, or the class token after `ln1`."""

    def __call__(self, images):
        s = self.state
        x = self.conv(images, "patch_embed.projection", stride=16).flatten(2).transpose(1, 2)
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], dim=1) + s["pos_embed"]
        for block in range(sum(key.endswith("gamma_1") for key in s)):
            name = f"layers.{block}"
            x = x + s[f"{name}.gamma_1"] * self.attention(self.norm(x, f"{name}.ln1"), f"{name}.attn")
            inner = self.mlp(self.norm(x, f"{name}.ln2"), f"{name}.ffn.layers.0.0", f"{name}.ffn.layers.1")
            x = x + s[f"{name}.gamma_2"] * inner
        if "fc_norm.weight" in s:
            return self.linear(self.norm(x[:, 1:].mean(1), "fc_norm"), "head.fc")
        return self.linear(self.norm(x, "ln1")[:, 0], "head.layers.head")

    def attention(self, x, name):
        s, bias = self.state, None
        if f"{name}.q_bias" in s:  # the keys have none
            bias = torch.cat([s[f"{name}.q_bias"], torch.zeros(x.shape[-1]), s[f"{name}.v_bias"]])
        table = s[f"{name}.relative_position_bias_table"]
        q, k, v = self.linear(x, f"{name}.qkv", bias).unflatten(-1, (3, table.shape[1], -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + table[s[f"{name}.{INDEX}"]].permute(2, 0, 1)
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{name}.proj")


class ConvNextForward(Forward):
    """Logits of the fine-tuned ConvNeXt; the official norms before downsampling have torch's own eps."""

    def __call__(self, images):
        x = self.conv(images, "downsample_layers.0.0", stride=4)
        x = self.norm(x.permute(0, 2, 3, 1), "downsample_layers.0.1")
        for stage in range(4):
            if stage:
                x = self.norm(x, f"downsample_layers.{stage}.0", eps=1e-5).permute(0, 3, 1, 2)
                x = self.conv(x, f"downsample_layers.{stage}.1", stride=2).permute(0, 2, 3, 1)
            for block in range(
                sum(key.startswith(f"stages.{stage}.") and key.endswith("gamma") for key in self.state)
            ):
                name = f"stages.{stage}.{block}"
                y = self.conv(x.permute(0, 3, 1, 2), f"{name}.depthwise_conv", padding=3, groups=x.shape[-1])
                y = self.norm(y.permute(0, 2, 3, 1), f"{name}.norm")
                y = self.mlp(y, f"{name}.pointwise_conv1", f"{name}.pointwise_conv2")
                x = x + self.state[f"{name}.gamma"] * y
        return self.linear(self.norm(x.mean((1, 2)), "norm3"), "head.fc")


class SwinForward(Forward):
    """The last map (batch, rows, columns, channels) of a Swin (Liu et al., https://arxiv.org/abs/2103.14030), or its
    logits if it has a classifier; patch merging through `nn.Unfold`, as mmcv does."""

    def __init__(self, state, depths, heads, window):
        super().__init__(state)
        self.depths, self.heads, self.window = depths, heads, window

    def norm(self, x, name):
        return super().norm(x, name, eps=1e-5)

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
        index = self.state[f"{name}.{INDEX}"]
        scores = scores + self.state[f"{name}.relative_position_bias_table"][index].permute(2, 0, 1)
        hidden = (regions[:, :, None] != regions[:, None, :]).float() * -100
        scores = (scores.unflatten(0, (batch, -1)) + hidden[:, None]).flatten(0, 1)
        out = self.linear((scores.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2), f"{name}.proj")
        out = out.unflatten(1, (w, w)).unflatten(0, (batch, rows // w, columns // w)).transpose(2, 3)
        return out.flatten(1, 2).flatten(2, 3).roll((shift, shift), (1, 2))

    def __call__(self, images):
        x = self.norm(self.conv(images, "patch_embed.projection", stride=4).permute(0, 2, 3, 1), "patch_embed.norm")
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                name = f"stages.{stage}.blocks.{block}"
                shift = self.window // 2 if block % 2 else 0
                x = x + self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attn.w_msa", self.heads[stage], shift)
                x = x + self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.ffn.layers.0.0", f"{name}.ffn.layers.1")
            if stage < 3:
                rows = x.shape[1] // 2
                x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
                x = self.linear(
                    self.norm(x, f"stages.{stage}.downsample.norm"), f"stages.{stage}.downsample.reduction"
                )
                x = x.unflatten(1, (rows, rows))
        x = self.norm(x, "norm3")
        return self.linear(x.mean((1, 2)), "head.fc") if "head.fc.weight" in self.state else x
