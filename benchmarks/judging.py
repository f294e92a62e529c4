"""How well classes are told apart: scores of logits, and logistic regression on frozen features, all on the device."""

import numpy as np
import torch


DECAYS = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the weights, beside the mean loss of a sample
FOLDS = 5
STEPS = 100  # of L-BFGS


def scores(logits: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the classes), AUROC and average precision (means over the classes,
    each against the others)."""
    logits = logits.double().cpu()
    found, classes = logits.argmax(1).numpy(), np.unique(labels)
    others = [logits[:, [other for other in range(logits.shape[1]) if other != c]].logsumexp(1) for c in classes]
    odds = [(logits[:, c] - other).numpy() for c, other in zip(classes, others, strict=True)]
    return {
        "accuracy": float((found == labels).mean()),
        "balanced_accuracy": float(np.mean([(found[labels == c] == c).mean() for c in classes])),
        "auroc": float(np.mean([auroc(labels == c, odd) for c, odd in zip(classes, odds, strict=True)])),
        "average_precision": float(
            np.mean([average_precision(labels == c, odd) for c, odd in zip(classes, odds, strict=True)])
        ),
    }


def auroc(positive: np.ndarray, values: np.ndarray) -> float:
    """The probability that a positive sample has a higher value than a negative one; equal values count half."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    ones, zeros = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def average_precision(positive: np.ndarray, values: np.ndarray) -> float:
    """The mean precision over the positive samples, each at its own value as the threshold."""
    _, place, counts = np.unique(-values, return_inverse=True, return_counts=True)
    found = np.bincount(place, positive)  # positive samples at each value, the highest first
    return float((found * found.cumsum() / counts.cumsum()).sum() / positive.sum())


def linear_probes(
    train: torch.Tensor, labels: np.ndarray, test: torch.Tensor, subsets: list[list[int]], held_out: int = FOLDS
):
    """Logits of `test` by logistic regression on each subset of the rows of `train`; both are standardised by the mean
    and deviation of all of `train`, which takes no labels. The decay of the weights is the one of `DECAYS` with the
    least log loss in a cross-validation of the subset alone; `held_out` of its `FOLDS` folds are in turn, which one is
    enough for where there are many images.

    Returns:
        (subsets, test images, classes), float64.
    """
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    x, others = (((features - mean) / std).double() for features in (train, test))
    used = np.unique(np.concatenate(subsets))
    x, labels, chosen = x[torch.from_numpy(used)], labels[used], np.zeros((len(subsets), len(used)), bool)
    folds = np.full(chosen.shape, -1)
    for number, rows in enumerate(subsets):
        chosen[number, np.searchsorted(used, rows)] = True
        for label in np.unique(labels):
            own = np.flatnonzero(chosen[number] & (labels == label))
            folds[number, np.random.default_rng(number).permutation(own)] = np.arange(len(own)) % FOLDS
    known = torch.from_numpy(labels).to(x.device)
    out = np.stack([folds == fold for fold in range(held_out)], 1)  # (subsets, folds, images)
    problems = (chosen[:, None] & ~out)[:, :, None].repeat(len(DECAYS), 2)
    shape = problems.shape[:3]
    decays = torch.tensor(DECAYS, dtype=torch.float64, device=x.device)
    weight, bias = _fit(x, known, problems.reshape(-1, len(used)), decays.repeat(shape[0] * shape[1]))
    losses = _losses(_logits(x, weight, bias), known).view(len(used), *shape)
    kept = torch.from_numpy(out).to(x).permute(2, 0, 1)[..., None]
    best = (losses * kept).sum((0, 2)).argmin(1)
    weight, bias = _fit(x, known, chosen, decays[best])
    return _logits(others, weight, bias).transpose(0, 1)


def _fit(x: torch.Tensor, labels: torch.Tensor, chosen: np.ndarray, decays: torch.Tensor):
    """Weights (features, problems * classes) and bias (problems, classes) of many problems at once, each of the images
    that are `chosen` (problems, images) and with a decay of its own."""
    share = torch.from_numpy(chosen).to(x).T
    share = share / share.sum(0)
    classes = int(labels.max()) + 1
    weight = x.new_zeros(x.shape[1], len(chosen) * classes, requires_grad=True)
    bias = x.new_zeros(len(chosen), classes, requires_grad=True)
    decay = decays.repeat_interleave(classes) / 2
    options = {"max_iter": STEPS, "history_size": 20, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([weight, bias], **options)

    def closure():
        optimizer.zero_grad()
        loss = (share * _losses(_logits(x, weight, bias), labels)).sum() + (decay * weight.square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _logits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(images, problems, classes)"""
    return (x @ weight).view(len(x), *bias.shape) + bias


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(images, problems)"""
    own = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    return logits.logsumexp(2) - own
