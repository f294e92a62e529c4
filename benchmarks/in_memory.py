"""Pre-training and fine-tuning with all images on the device, crops and flips made there: what benchmarks use that
compare many short runs. Models, masks, losses, errors and parameter groups are the package's, the schedule is its
default one (AdamW, weight decay 0.05, 5% of linear warm-up, cosine to 0, gradients clipped at 5)."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.evaluation.baselines import masked_errors, summarise_errors
from modeling_a2mim.masking import random_mask
from modeling_a2mim.modeling_a2mim import find_core
from modeling_a2mim.training.frozen_start import FrozenStart
from modeling_a2mim.training.optimization import parameter_groups


WARM = 3  # steps before one is recorded as a CUDA graph


def load(path, split: str, size: int | None = None, device: str = "cpu") -> tuple[torch.Tensor, np.ndarray]:
    """Images (count, channels, height, width) uint8 of an .npz of `images.write_arrays`, resized if asked, and
    labels."""
    with np.load(path) as arrays:
        images, labels = torch.from_numpy(arrays[split]), arrays[f"{split}_labels"]
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    if size is not None and images.shape[-1] != size:
        kind = {"mode": "area"} if images.shape[-1] > size else {"mode": "bicubic", "align_corners": False}
        resized = (F.interpolate(part.float(), size=(size, size), **kind) for part in images.split(4096))
        images = torch.cat([part.round().clamp(0, 255).byte() for part in resized])
    return images.to(device), labels


def normalize(images: torch.Tensor, config: A2MIMConfig) -> torch.Tensor:
    """uint8 to float32, as the package's transforms do."""
    moments = torch.tensor([config.image_mean, config.image_std]).to(images.device, non_blocking=True)
    mean, std = moments[:, :, None, None]
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
    graph: bool = False  # record a step as a CUDA graph
    options: dict = field(default_factory=dict)  # of A2MIMConfig
    frozen: int = 0  # first steps in which the encoder stays as it is
    layer_decay: float | None = None


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """Linear warm-up over 5% of the steps, then cosine to 0."""
    warmup = math.ceil(0.05 * schedule.steps)
    if step < warmup:
        return schedule.learning_rate * step / warmup
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (schedule.steps - warmup)))


class Step:
    """A step of training. As a CUDA graph it is recorded once and replayed from then on: the many kernels of a small
    model take longer to launch from Python than to run. Inputs then have to keep their shapes.

    Attributes:
        failure: why it could not be recorded, if so; it goes on without.
    """

    def __init__(self, model: nn.Module, groups: list[dict], loss: Callable[..., torch.Tensor], schedule: Schedule):
        self.frozen, self.phase = schedule.frozen, None
        if schedule.frozen:
            self.phase = FrozenStart(find_core(model).encoder)
        self.model, self.loss, self.bf16 = model, loss, schedule.bf16
        self.device = next(model.parameters()).device
        self.recording, self.failure = schedule.graph and self.device.type == "cuda", None
        self.rates = [group.get("lr", schedule.learning_rate) for group in groups]
        if self.recording:  # a graph reads the rate from the memory of the device
            rates = [torch.tensor(rate, device=self.device) for rate in self.rates]
            groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
        rate = schedule.learning_rate
        self.optimizer = torch.optim.AdamW(groups, lr=rate, fused=True, capturable=self.recording)
        self.count, self.graph, self.inputs = 0, None, []

    def __call__(self, factor: float, *inputs: torch.Tensor):
        """Train on `inputs`, with `factor` of the rate of each group."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor
        self.count += 1
        if self.recording and self.count == WARM + 1:
            self._record(inputs)
        if self.graph is not None:
            for own, given in zip(self.inputs, inputs, strict=True):
                own.copy_(given)
            self.graph.replay()
        elif self.recording:  # what is recorded has to have run on a stream of its own before
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._run(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
        else:
            self._run(*inputs)

    def _record(self, inputs: tuple[torch.Tensor, ...]):
        self.inputs, graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._run(*self.inputs)
            self.graph = graph
        except RuntimeError as error:
            self.recording, self.failure = False, str(error).split("\n")[0]
            self.optimizer.zero_grad(set_to_none=True)

    def _run(self, *inputs: torch.Tensor):
        frozen = self.count <= self.frozen
        if frozen:
            self.phase.before_forward()
        elif self.phase is not None:
            self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(*inputs)
        loss.backward()
        if frozen:
            self.phase.after_backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def batches(count: int, batch_size: int, seed: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Indices of all images in a random order, then in another one, and so on, `batch_size` at a time."""
    generator, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        rows, left = left[:batch_size], left[batch_size:]
        yield rows.to(device, non_blocking=True)


def train(step: Step, make: Callable[[torch.Tensor], tuple], count: int, schedule: Schedule, measure=None) -> dict:
    """All steps, each on what `make` gives for the indices of a batch.

    Returns:
        {"points": [{"step", **measure()}], "seconds", "steps_per_second"}, the last without the first, slow steps and
        without measuring, and "graph_failure" if the step could not be recorded.
    """
    wanted = {max(1, round(point * schedule.steps)) for point in schedule.points} if measure else ()
    rows = batches(count, schedule.batch_size, schedule.seed, step.device)
    found, start, since, measuring = [], clock(step.device), None, 0.0
    for number in range(schedule.steps):
        if number == min(WARM + 1, schedule.steps - 1):
            since = clock(step.device) - measuring
        step(learning_rate_at(number, schedule) / schedule.learning_rate, *make(next(rows)))
        if number + 1 in wanted:
            before = clock(step.device)
            found.append({"step": number + 1, **measure()})
            measuring += clock(step.device) - before
    end = clock(step.device)
    speed = (schedule.steps - min(WARM + 1, schedule.steps - 1)) / (end - measuring - since)
    result = {"points": found, "seconds": round(end - start, 1), "steps_per_second": round(speed, 2)}
    return result | ({"graph_failure": step.failure} if step.failure else {})


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def moved(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device, in the layout of memory in which convolutions are fastest."""
    return model.to(device, memory_format=torch.channels_last)


def pretrain(
    config: A2MIMConfig,
    images: torch.Tensor,
    test: torch.Tensor,
    schedule: Schedule,
    weights: dict[str, torch.Tensor] | None = None,
) -> tuple:
    """Pre-train on `images`, from `weights` of an encoder or from new ones, and measure the masked errors on `test`
    (both uint8, on the device).

    Returns:
        The model, and what `train` returns, with `errors_on` at each point.
    """
    torch.manual_seed(schedule.seed)
    device = images.device
    model = A2MIMForPreTraining(config)
    if weights is not None:
        model.a2mim.encoder.load_state_dict({name: weights[name] for name in model.a2mim.plan.names})
    model = moved(model, device).train()
    scale = 1.0 if config.mask_gamma_init is None else 0.1
    groups = parameter_groups(model, schedule.learning_rate, 0.05, scale, schedule.layer_decay)
    generator = torch.Generator(device).manual_seed(schedule.seed)

    def make(rows):
        views = random_views(normalize(images[rows], config), schedule.crop_scale, generator)
        return views, random_mask(len(rows), config.mask_grid, config.num_masked, generator, device)

    step = Step(model, groups, lambda views, mask: model(views, mask).loss, schedule)
    return model, train(step, make, len(images), schedule, lambda: errors_on(model, test, schedule.bf16))


def with_classes(config: A2MIMConfig, classes: int) -> A2MIMConfig:
    """The configuration of a classifier; the two classes that transformers names by default are not its."""
    options = {name: value for name, value in config.to_dict().items() if name not in {"id2label", "label2id"}}
    return A2MIMConfig.from_dict(options, num_labels=classes)


def fine_tune(
    config: A2MIMConfig,
    weights: dict[str, torch.Tensor] | None,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    schedule: Schedule,
) -> tuple:
    """Train all of a classifier on labelled images (uint8, with their labels on the device).

    Args:
        config: what the encoder was pre-trained with.
        weights: of the pre-trained encoder; `None`: from scratch.

    Returns:
        The model, and what `train` returns.
    """
    torch.manual_seed(schedule.seed)
    device = images.device
    model = A2MIMForImageClassification(with_classes(config, classes))
    if weights is not None:
        own = {name: weights[name] for name in model.a2mim.plan.names}
        model.a2mim.encoder.load_state_dict(own, strict=False)  # all but the classifier
    model = moved(model, device).train()
    generator = torch.Generator(device).manual_seed(schedule.seed)

    def make(rows):
        return random_views(normalize(images[rows], config), schedule.crop_scale, generator), labels[rows]

    groups = parameter_groups(model, schedule.learning_rate, 0.05, layer_decay=schedule.layer_decay)
    step = Step(model, groups, lambda views, known: model(views, labels=known).loss, schedule)
    return model, train(step, make, len(images), schedule)


@torch.no_grad()
def predict(model: A2MIMForImageClassification, images: torch.Tensor, bf16: bool = False) -> torch.Tensor:
    """Logits (images, classes) in float32 of uint8 images."""
    model.eval()
    parts = []
    for part in images.split(256):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            parts.append(model(normalize(part, model.config)).logits.float())
    return torch.cat(parts)


@torch.no_grad()
def features(core: A2MIMModel, images: torch.Tensor, bf16: bool = False) -> dict[str, torch.Tensor]:
    """What a linear probe reads of uint8 images, (images, features) in float32: the mean of the `last map`, and mean
    and standard deviation over the positions of the map of `every stage`."""
    core.eval()
    last_maps, stages = [], []
    for part in images.split(256):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            pixels = normalize(part, core.config)
            last, maps = core.encode(pixels, output_hidden_states=True, decoded=True)
            last_maps.append(core.feature_map(last, tuple(pixels.shape[-2:])).float().mean((2, 3)))
        moments = [moment for x in maps for moment in torch.std_mean(x.float(), (2, 3), correction=0)]
        stages.append(torch.cat(moments, dim=1))
    return {"last map": torch.cat(last_maps), "every stage": torch.cat(stages)}


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
