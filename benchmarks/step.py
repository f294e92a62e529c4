"""What a step of A2MIM pre-training (forward, loss, backward, optimiser) costs over the same step of the bare encoder.

Every variant has a model and an optimiser of its own; they take turns in one process, in a new order each round, and
the ratios are taken within a round. Two floors: the timm encoder with the mean of its features as the loss, and that
encoder with the 1x1 decoder and the mean of its output. Printed are medians over the rounds, with the 10th and 90th
percentile.

    python benchmarks/step.py [--device cuda --bf16 --compile]
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import random
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTModel


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining  # noqa: E402
from modeling_a2mim.losses import spatial_loss  # noqa: E402
from modeling_a2mim.masking import pixel_mask, random_mask  # noqa: E402


ENCODERS = {
    "resnet50": A2MIMConfig.resnet("resnet50"),
    "convnext_tiny": A2MIMConfig.convnext("convnext_tiny"),
    "vit_base_patch16_224": A2MIMConfig.vit("vit_base_patch16_224"),
    "swin_tiny_patch4_window7_224": A2MIMConfig.resnet("swin_tiny_patch4_window7_224", mask_gamma_init=None),
}
ENCODER, DECODER, OURS = "encoder", "encoder + decoder", "A2MIM"
OFFICIAL = "A2MIM, loss as in the official code"
MULTISCALE = "A2MIM, multi-scale decoder"  # of encoders with maps of several resolutions, so not of a ViT
NORMALISED = "A2MIM, normalised target"
THEIR_ENCODER, THEIRS = "transformers' ViTModel", "ViTForMaskedImageModeling"


def official_loss(config, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same value in the order of the official code: prediction and target of each image are transformed whole and
    subtracted then; the batch is averaged in the spectrum."""
    spatial = spatial_loss(prediction, target, mask, config.spatial_loss)
    if not config.frequency_loss_weight:
        return spatial
    visible = pixel_mask(mask, target.shape[-2:]).float()
    visible = visible + (1 - visible) * config.frequency_unmasked_weight
    prediction, target = prediction.float(), target.float()
    replacement = (prediction.detach() + target) / 2
    mixed = prediction * visible + replacement * (1 - visible)
    one, two = (torch.fft.fft2(image, norm="ortho") for image in (mixed, target))
    one, two = (torch.stack([x.real, x.imag], -1).mean(0, keepdim=True) for x in (one, two))
    power = (one - two).square().sum(-1)
    weight = power.detach().sqrt().log1p()
    return spatial + config.frequency_loss_weight * ((weight / weight.amax()).clamp(0, 1) * power).mean()


class Floor(nn.Module):
    """The bare timm encoder, with or without the 1x1 decoder, and a mean as the loss."""

    def __init__(self, model: A2MIMForPreTraining, decoded: bool):
        super().__init__()
        self.encoder = model.a2mim.plan.create()
        self.decoder = nn.Conv2d(model.decoder.in_channels, model.decoder.out_channels, 1) if decoded else None
        self.layout = model.a2mim.plan.map_layout

    def forward(self, pixel_values, mask):
        features = self.encoder.forward_features(pixel_values)
        if self.decoder is not None:
            features = self.decoder(self.layout.to_map(features, self.layout.grid))
        return features.float().mean()


class Ours(nn.Module):
    def __init__(self, model: A2MIMForPreTraining, kind: str):
        super().__init__()
        self.model, self.kind, self.config = model, kind, model.config

    def forward(self, pixel_values, mask):
        if self.kind in (OURS, MULTISCALE, NORMALISED):
            return self.model(pixel_values, mask).loss
        core, size = self.model.a2mim, pixel_values.shape[-2:]
        last, _ = core.encode(pixel_values, mask)
        return official_loss(self.config, self.model.decode(core.feature_map(last, size), size), pixel_values, mask)


class Theirs(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        config = ViTConfig(encoder_stride=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.kind = kind
        self.model = (
            ViTModel(config, add_pooling_layer=False) if kind == THEIR_ENCODER else ViTForMaskedImageModeling(config)
        )

    def forward(self, pixel_values, mask):
        if self.kind == THEIR_ENCODER:
            return self.model(pixel_values).last_hidden_state.float().mean()
        mask = F.interpolate(mask[:, None].float(), scale_factor=2).flatten(1) > 0  # cells of 32 px to patches of 16
        return self.model(pixel_values, bool_masked_pos=mask).loss


class Variant:
    """A model with its optimiser."""

    def __init__(self, model: nn.Module, config: A2MIMConfig, args):
        self.device, self.config, self.bf16 = args.device, config, args.bf16
        self.format = torch.channels_last if args.channels_last else torch.contiguous_format
        self.model = model.to(args.device, memory_format=self.format).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.call = torch.compile(self.model) if args.compile else self.model

    def batch(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, *self.config.input_size, generator=generator)
        mask = random_mask(batch_size, self.config.mask_grid, self.config.num_masked, generator)
        return images.to(self.device, memory_format=self.format), mask.to(self.device)

    def step(self, batch) -> None:
        autocast = torch.autocast(self.device, torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        with autocast:
            loss = self.call(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def time(self, batch) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.step(batch)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_memory(self, batch) -> int:
        """Bytes of weights, optimiser states and all that one step needs at once on top of them."""
        states = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        held = sum(t.nbytes for t in itertools.chain(self.model.parameters(), self.model.buffers(), states))
        if self.device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step(batch)
            torch.cuda.synchronize()
            return held + torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step(batch)
        events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return held + max(itertools.accumulate(sizes))


def variants(name: str, args) -> dict[str, Variant]:
    config = ENCODERS[name]
    torch.manual_seed(0)
    models = {ENCODER: None, DECODER: None, OURS: None, OFFICIAL: None}
    for kind in models:
        model = A2MIMForPreTraining(config)
        models[kind] = Ours(model, kind) if kind in (OURS, OFFICIAL) else Floor(model, kind == DECODER)
    if name.startswith("vit_base"):
        models |= {kind: Theirs(kind) for kind in (THEIR_ENCODER, THEIRS)}
    if not model.a2mim.plan.isotropic:
        multiscale = A2MIMConfig.from_dict({**config.to_dict(), "decoder": "multiscale"})
        models[MULTISCALE] = Ours(A2MIMForPreTraining(multiscale), MULTISCALE)
    normalised = A2MIMConfig.from_dict({**config.to_dict(), "target": "normalised"})
    models[NORMALISED] = Ours(A2MIMForPreTraining(normalised), NORMALISED)
    return {kind: Variant(model, config, args) for kind, model in models.items()}


def measure(name: str, batch_size: int, args, found: dict[str, Variant] | None = None) -> dict:
    """{variant: {"seconds": [...], "memory": bytes}}"""
    found = variants(name, args) if found is None else found
    batches = {kind: variant.batch(batch_size) for kind, variant in found.items()}
    result = {kind: {"seconds": []} for kind in found}
    for kind, variant in found.items():
        for _ in range(2):
            variant.time(batches[kind])
        result[kind]["memory"] = variant.peak_memory(batches[kind])
    order = list(found)
    for _ in tqdm(range(args.rounds), desc=name, unit="round"):
        random.shuffle(order)
        for kind in order:
            seconds = sum(found[kind].time(batches[kind]) for _ in range(args.steps)) / args.steps
            result[kind]["seconds"].append(seconds)
    return result


def ratio(result: dict, kind: str, floor: str) -> dict[str, float]:
    """Median, 10th and 90th percentile of time over a floor, and of peak memory."""
    ratios = np.array(result[kind]["seconds"]) / np.array(result[floor]["seconds"])
    low, median, high = np.percentile(ratios, [10, 50, 90])
    memory = result[kind]["memory"] / result[floor]["memory"]
    return {k: round(float(v), 4) for k, v in {"time": median, "low": low, "high": high, "memory": memory}.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS), metavar="NAME")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch_size", type=int, help="default: 128 on a GPU, 16 on a CPU, there 4 for a ViT-B")
    parser.add_argument("--rounds", type=int, default=20, help="rounds in which every variant takes its turn")
    parser.add_argument("--steps", type=int, help="steps of each turn; default: 1 on a CPU, 5 on a GPU")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    args.steps = args.steps or (1 if args.device == "cpu" else 5)
    random.seed(0)
    torch.set_float32_matmul_precision("high")

    table = {}
    for name in args.encoders:
        batch_size = args.batch_size or (128 if args.device == "cuda" else 4 if name.startswith("vit_base") else 16)
        result = measure(name, batch_size, args)
        print(f"\n{name}, batch of {batch_size}")
        print(f"{'':38}{'time / encoder':>24}{'time / encoder + decoder':>28}{'memory':>16}{'images/s':>10}")
        table[name] = {"batch_size": batch_size, "variants": {}}
        for kind in result:
            floors = (THEIR_ENCODER,) if kind in (THEIR_ENCODER, THEIRS) else (ENCODER, DECODER)
            row = {floor: ratio(result, kind, floor) for floor in floors}
            row["images_per_second"] = round(batch_size / float(np.median(result[kind]["seconds"])), 1)
            table[name]["variants"][kind] = row
            cells = [f"{row[f]['time']:.3f} ({row[f]['low']:.3f}-{row[f]['high']:.3f})" for f in floors]
            memory = " / ".join(f"{row[f]['memory']:.3f}" for f in floors)
            cells += [""] * (2 - len(cells))
            print(f"{kind:38}{cells[0]:>24}{cells[1]:>28}{memory:>16}{row['images_per_second']:>10}", flush=True)
        gc.collect()

    if args.output:
        device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
        run = {
            "command": " ".join(["python", "benchmarks/step.py", *sys.argv[1:]]),
            "machine": f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}",
            "versions": {m.__name__: m.__version__ for m in (torch, timm, transformers)}
            | {"python": platform.python_version()},
            "spread": f"median, 10th and 90th percentile of {args.rounds} rounds of {args.steps} step(s)",
        }
        record = json.loads(args.output.read_text()) if args.output.exists() else {}
        record |= {name: {**run, **result} for name, result in table.items()}  # other encoders keep their own
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
