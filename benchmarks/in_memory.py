"""Pre-training with all images on the device, crops and flips made there: what benchmarks use that compare many short
runs. Model, masks, losses, errors and parameter groups are the package's, the schedule is its default one (AdamW,
weight decay 0.05, 5% of linear warm-up, cosine to 0, gradients clipped at 5)."""

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.analysis.baselines import masked_errors, summarise_errors
from modeling_a2mim.masking import random_mask
from modeling_a2mim.optimization import parameter_groups


def load(path, split: str, size: int | None = None, device: str = "cpu") -> tuple[torch.Tensor, np.ndarray]:
    """Images (count, 1, height, width) uint8 of an .npz of `datasets.write_arrays`, resized if asked, and labels."""
    with np.load(path) as arrays:
        images, labels = torch.from_numpy(arrays[split])[:, None], arrays[f"{split}_labels"]
    if size is not None and images.shape[-1] != size:
        kind = {"mode": "area"} if images.shape[-1] > size else {"mode": "bicubic", "align_corners": False}
        images = F.interpolate(images.float(), size=(size, size), **kind).round().clamp(0, 255).byte()
    return images.to(device), labels


def normalize(images: torch.Tensor, config: A2MIMConfig) -> torch.Tensor:
    """uint8 to float32, as the package's transforms do."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (config.image_mean, config.image_std))
    return (images.float() / 255 - mean) / std


def random_views(
    images: torch.Tensor, scale: tuple[float, float], generator: torch.Generator, flip: float = 0.5
) -> torch.Tensor:
    """Random crops of a share `scale` of the area with aspect ratios of 3/4 to 4/3, resized bilinearly, and flips; of
    float images (batch, channels, height, width)."""
    count, device = len(images), images.device
    draw = torch.rand(5, count, generator=generator, device=device)
    area = scale[0] + draw[0] * (scale[1] - scale[0])
    ratio = torch.exp((2 * draw[1] - 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (2 * draw[2] - 1) * (1 - width), (2 * draw[3] - 1) * (1 - height)
    sign = torch.where(draw[4] < flip, -1.0, 1.0)
    zero = torch.zeros_like(x)
    theta = torch.stack([torch.stack([width * sign, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass
class Schedule:
    """How long, how fast and on how many images at a time."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    crop_scale: tuple[float, float] = (0.8, 1.0)
    points: tuple[float, ...] = (1.0,)  # shares of the run after which the errors are measured
    bf16: bool = False
    options: dict = field(default_factory=dict)  # of A2MIMConfig


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """Linear warm-up over 5% of the steps, then cosine to 0."""
    warmup = math.ceil(0.05 * schedule.steps)
    if step < warmup:
        return schedule.learning_rate * step / warmup
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (schedule.steps - warmup)))


def pretrain(config: A2MIMConfig, images: torch.Tensor, test: torch.Tensor, schedule: Schedule) -> tuple:
    """Pre-train on `images`, and measure the masked errors on `test` (both uint8, on the device).

    Returns:
        The model, and {"points": [{"step", "masked_psnr", ...}], "seconds"}.
    """
    torch.manual_seed(schedule.seed)
    device = images.device
    model = A2MIMForPreTraining(config).to(device).train()
    scale = 1.0 if config.mask_gamma_init is None else 0.1
    groups = parameter_groups(model, schedule.learning_rate, 0.05, scale)
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator(device).manual_seed(schedule.seed)
    order = torch.Generator().manual_seed(schedule.seed)
    left: list[int] = []
    wanted = {max(1, round(point * schedule.steps)) for point in schedule.points}
    found, start = [], time.perf_counter()
    for step in range(schedule.steps):
        while len(left) < schedule.batch_size:
            left += torch.randperm(len(images), generator=order).tolist()
        rows, left = left[: schedule.batch_size], left[schedule.batch_size :]
        views = random_views(normalize(images[rows], config), schedule.crop_scale, generator)
        mask = random_mask(len(rows), config.mask_grid, config.num_masked, generator, device)
        factor = learning_rate_at(step, schedule) / schedule.learning_rate
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bf16):
            loss = model(views, mask, num_masked=config.num_masked).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step + 1 in wanted:
            found.append({"step": step + 1, **errors_on(model, test, schedule.bf16)})
    return model, {"points": found, "seconds": round(time.perf_counter() - start, 1)}


@torch.no_grad()
def errors_on(model: A2MIMForPreTraining, images: torch.Tensor, bf16: bool = False) -> dict[str, float]:
    """`summarise_errors` of a model on uint8 images, each with a mask of its own that is always the same."""
    config, training, device = model.config, model.training, images.device
    generator, parts = torch.Generator().manual_seed(1), []
    model.eval()
    for part in images.split(128):
        mask = random_mask(len(part), config.mask_grid, config.num_masked, generator).to(device)
        pixels = normalize(part, config)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = model(pixels, mask)
        parts.append(masked_errors(output.reconstruction, pixels, mask, config))
    model.train(training)
    return {name: round(value, 4) for name, value in summarise_errors(torch.cat(parts)).items()}
