"""Interaction strength as it is evaluated without sharing anything, beside ours: the same pairs and contexts."""

import time

import numpy as np
import torch
from torch.nn import functional as F

from modeling_a2mim.analysis.contexts import contexts_of, draw_pairs, draw_permutations
from modeling_a2mim.analysis.measurement import interaction_strength
from modeling_a2mim.analysis.strength import InteractionSettings


def logits_of(model, pixels: torch.Tensor) -> torch.Tensor:
    output = model(pixels)
    return getattr(output, "logits", output).float()


@torch.inference_mode()
def straightforward(model, image: torch.Tensor, label: int, settings: InteractionSettings, number: int) -> np.ndarray:
    """|I_ij(m)| of one image, (orders, pairs), for the pairs and contexts that `interaction_strength` takes."""
    generator = np.random.default_rng([settings.seed, number])
    pairs = draw_pairs(settings.grid, settings.pairs, generator, settings.sampling)
    places = draw_permutations(settings.players, settings.contexts, generator)
    device, grid = next(model.parameters()).device, settings.grid
    image, found = image.to(device), []
    for order in settings.orders:
        contexts = contexts_of(places, pairs.cells, order)
        for (i, j), of_pair in zip(pairs.cells, contexts, strict=True):
            masks = []
            for context in of_pair:
                for cells in ((), (i,), (j,), (i, j)):
                    mask = torch.zeros(settings.players)
                    mask[torch.from_numpy(np.flatnonzero(context))] = 1
                    for cell in cells:
                        mask[cell] = 1
                    masks.append(mask.view(1, grid, grid))
            shown = F.interpolate(torch.stack(masks).to(device), image.shape[-2:], mode="nearest")
            logits = logits_of(model, image * shown)
            others = logits[:, torch.arange(logits.shape[1]) != label]
            values = (logits[:, label] - others.logsumexp(1)).double().cpu().view(-1, 4)
            found.append(abs((values[:, 3] - values[:, 1] - values[:, 2] + values[:, 0]).mean().item()))
    return np.array(found).reshape(len(settings.orders), -1)


def compare_times(model, images, labels, args, sampling: str, dtype: torch.dtype | None = None) -> dict:
    """Both ways in turn, on another image in each round, under autocast with `dtype`; `args` has `grid`, `pairs`,
    `contexts`, `seed`, `rounds` and `batch_size`."""
    device = next(model.parameters()).device
    drawn = {name: getattr(args, name) for name in ("grid", "pairs", "contexts", "seed")}
    settings = InteractionSettings(**drawn, sampling=sampling)
    seconds, passes, deviation = {"straightforward": [], "ours": []}, [], 0.0
    for number in range(args.rounds):
        start = time.perf_counter()
        # All images have number 0 here: the same pairs, for both.
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            expected = straightforward(model, images[number], labels[number], settings, 0)
        seconds["straightforward"].append(time.perf_counter() - start)
        start = time.perf_counter()
        result = interaction_strength(
            model,
            images[number : number + 1],
            labels[number : number + 1],
            **drawn,
            sampling=sampling,
            batch_size=args.batch_size,
            dtype=dtype,
        )
        seconds["ours"].append(time.perf_counter() - start)
        passes.append(result.forward_passes)
        mean = (expected @ result.weights[0])[None]
        strength = mean / mean.mean()
        deviation = max(deviation, float(np.abs(result.strength / strength[0] - 1).max()))
    ratios = np.divide(seconds["straightforward"], seconds["ours"])
    return {
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "forward_passes": {"straightforward": 4 * settings.contexts * settings.pairs * len(settings.orders)}
        | {"ours": int(np.median(passes))},
        "times_faster": [round(float(value), 2) for value in (np.median(ratios), ratios.min(), ratios.max())],
        "largest_relative_deviation_of_J": float(f"{deviation:.3g}"),
    }
