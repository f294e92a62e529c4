"""One comparison of `methods.py` and `methods_gpu.py`: pre-train an encoder with a method of `rivals.py`, and evaluate
it, with nothing but torch, timm and transformers."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.in_memory import Schedule, Step, fine_tune, moved, normalize, predict, train
from benchmarks.judging import FOLDS, linear_probes, scores
from benchmarks.rivals import METHODS, Supervised
from modeling_a2mim import A2MIMConfig, A2MIMModel
from modeling_a2mim.data.subsets import draw_subset


SCRATCH = "scratch"
ENDS = 20  # steps at either end of training over which the loss is averaged
MANY = 1000  # images, from which on one fold chooses the decay of a linear probe


def learn(
    method: str | Callable, config: A2MIMConfig, images: torch.Tensor, labels: np.ndarray, schedule: Schedule
) -> tuple:
    """Pre-train on uint8 images by a method of `METHODS`, or by another one of its kind.

    Returns:
        The weights of the encoder, and {"cpu_seconds", "steps_per_second", "first_loss", "last_loss", ...}.
    """
    torch.manual_seed(schedule.seed)
    device, known, extra = images.device, torch.from_numpy(labels).to(images.device), {}
    make_method = METHODS[method] if isinstance(method, str) else method
    if make_method is Supervised:
        extra = {"classes": int(labels.max()) + 1}
    model = moved(make_method(config, schedule.steps, **extra), device).train()
    schedule = replace(schedule, graph=schedule.graph and model.same_each_step)
    generator = torch.Generator(device).manual_seed(schedule.seed)
    losses = torch.zeros(schedule.steps + 8, device=device)  # a step that is recorded is tried before
    place = torch.zeros(1, dtype=torch.long, device=device)

    def make(rows):
        return model.inputs(normalize(images[rows], config), known[rows], generator)

    def loss(*inputs):
        found = model(*inputs)
        losses.index_copy_(0, place, found.detach().float().view(1))
        place.add_(1)
        return found

    begin = time.process_time()
    step = Step(model, model.groups(schedule.learning_rate), loss, schedule)
    result = train(step, make, len(images), schedule)
    ends = min(ENDS, max(1, schedule.steps // 2))
    taken = losses[: int(place)]
    found = {
        "cpu_seconds": round(time.process_time() - begin, 1),
        "steps_per_second": result["steps_per_second"],
        "first_loss": round(float(taken[:ends].mean()), 4),
        "last_loss": round(float(taken[-ends:].mean()), 4),
    }
    weights = {name: weight.contiguous() for name, weight in model.encoder_weights().items()}
    return weights, found | {key: result[key] for key in ("graph_failure",) if key in result}


def encoder_with(config: A2MIMConfig, weights: dict[str, torch.Tensor] | None, seed: int) -> A2MIMModel:
    """The encoder with these weights; `None`: with the random ones of a seed."""
    torch.manual_seed(seed)
    core = A2MIMModel(config)
    if weights is not None:
        core.encoder.load_state_dict(weights)
    return core


def subsets_of(
    labels: np.ndarray, counts: dict[str, int | None], draws: int, whole: int = 1
) -> list[tuple[str, int, list[int]]]:
    """Name, draw and rows of each subset of so many labels of each class; all labels (`None`) come `whole` times."""
    known = labels.tolist()
    return [
        (name, draw, draw_subset(known, per_class=count, seed=draw) if count else list(range(len(known))))
        for name, count in counts.items()
        for draw in range(draws if count else whole)
    ]


def probe_rows(own: dict, labels: np.ndarray, others: dict, known: np.ndarray, subsets: list) -> list[dict]:
    """Figures of linear probes on each kind of `features` of training images (`own`) and test images (`others`)."""
    # Several at once would compute each on the images of all, which only a GPU does in no time.
    groups = [[subset] for subset in subsets]
    if next(iter(own.values())).is_cuda:
        groups = [[subset for subset in subsets if (len(subset[-1]) > MANY) is many] for many in (False, True)]
    rows = []
    for kind, trained in own.items():
        for group in filter(None, groups):
            held_out = 1 if max(len(subset) for *_, subset in group) > MANY else FOLDS
            logits = linear_probes(trained, labels, others[kind], [subset for *_, subset in group], held_out)
            for (name, draw, _), part in zip(group, logits, strict=True):
                rows.append({"by": f"probe, {kind}", "labels": name, "draw": draw, **scores(part, known)})
    return rows


def tuned_rows(
    config: A2MIMConfig, weights: dict | None, data: tuple, subsets: list, schedule: Schedule
) -> list[dict]:
    """Figures of fine-tuning on each of `subsets`, with the batches of `schedule` or smaller ones where the subset is;
    the draw is also the seed, so that several of all labels differ."""
    (images, labels), (test, known) = data
    rows = []
    for name, draw, subset in subsets:
        chosen = torch.tensor(subset)
        own = replace(schedule, batch_size=min(schedule.batch_size, len(subset)), seed=100 * schedule.seed + draw)
        targets = torch.from_numpy(labels)[chosen].to(images.device)
        model, _ = fine_tune(config, weights, images[chosen], targets, int(labels.max()) + 1, own)
        logits = predict(model, test, own.bf16)
        rows.append({"by": "fine-tuning", "labels": name, "draw": draw, **scores(logits, known)})
    return rows


def rounded(rows: list[dict]) -> list[dict]:
    """Rows with four decimals."""
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
