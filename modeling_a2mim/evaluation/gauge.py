"""Figures of an encoder that is being pre-trained, from the features of a few images alone: whether neighbors in the
space of features are of one class, and how much of that space the features fill.

A function of pooled features (images, channels) each, of any scale; `gauge` gives all of them, also of several maps
together. Features that are not finite, of a run that diverges, give NaN.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..models.pooled_features import unit_maps


# By their names in logs, and whether more of it is better.
MORE_IS_BETTER = {"knn_accuracy": True, "rankme": True, "feature_std": True, "feature_cosine": False}
NEIGHBORS = 5
EPSILON = 1e-7  # of RankMe


def gauge(
    features: np.ndarray, labels: np.ndarray | None = None, widths: Sequence[int] | None = None
) -> dict[str, float]:
    """All figures, by the names of `MORE_IS_BETTER`; `knn_accuracy` only with labels.

    Args:
        features: (images, channels), of at least two images.
        labels: (images,) class indices.
        widths: of the maps in the features, where there are several. Each map weighs the same then: neighbors are by
            `frozen.standardised_maps`, the other figures are of `pooled_features.unit_maps`.

    Raises:
        ValueError: if `leave_one_out_accuracy` cannot be had of these labels.
    """
    names = [name for name in MORE_IS_BETTER if name != "knn_accuracy" or labels is not None]
    if not np.isfinite(features).all():
        return dict.fromkeys(names, float("nan"))
    known = features
    if widths is not None:
        from .frozen import standardised_maps  # scikit-learn, which the names of the figures do not need

        known = standardised_maps(widths).fit_transform(features)
        features = unit_maps(torch.as_tensor(features), widths).numpy()
    found = {} if labels is None else {"knn_accuracy": leave_one_out_accuracy(known, labels)}
    spread = {"feature_std": feature_std(features), "feature_cosine": feature_cosine(features)}
    return {**found, "rankme": rankme(features), **spread}


def with_company(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Which images are not the only one of their class: (images,) bool."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return counts[places] > 1


def leave_one_out_accuracy(features: np.ndarray, labels: np.ndarray, neighbors: int = NEIGHBORS) -> float:
    """The share of images, in [0, 1], whose class their nearest neighbors by cosine among the other images tell
    (`frozen.nearest_neighbors`, where a neighbor's vote weighs 1 / (1 - cosine)).

    An image that is alone in its class has no neighbor to find and is left out. Where a class has fewer images than
    `neighbors` and itself, there are only as many neighbors as the smallest class can give.

    Args:
        features: (images, channels).
        labels: (images,) class indices.

    Raises:
        ValueError: if fewer than two classes have two images.
    """
    from .frozen import nearest_neighbors  # scikit-learn, which the names of the figures do not need

    kept = with_company(labels)
    counts = np.unique(labels[kept], return_counts=True)[1]
    if len(counts) < 2:
        raise ValueError("labels: expected at least two classes of at least two images each")
    nearest = nearest_neighbors((features[kept], labels[kept]), min(neighbors, counts.min() - 1))
    return float(nearest.score(None, labels[kept]))  # without X: of each image, among the others


def rankme(features: np.ndarray, epsilon: float = EPSILON) -> float:
    """RankMe, the effective rank of the features (https://arxiv.org/abs/2210.02885): exp(-sum p_k log p_k) with
    p_k = s_k / sum(s) + epsilon of the singular values s of `features` as they are, neither centred nor normalised.

    Args:
        features: (images, channels).

    Returns:
        A number of dimensions, from 1 (all features lie on a line through 0) to min(images, channels), to which it is
        cut where epsilon would bring it above.
    """
    values = np.linalg.svd(np.asarray(features, dtype=np.float64), compute_uv=False)
    shares = values / max(values.sum(), np.finfo(np.float64).tiny) + epsilon
    return float(min(np.exp(-(shares * np.log(shares)).sum()), len(values)))


def feature_std(features: np.ndarray) -> float:
    """How far features spread: the standard deviation over the images (divided by images, not by images - 1) of each
    channel of the features divided by their length, mean over channels, times sqrt(channels).

    Features of random directions have a deviation of about 1 / sqrt(channels) in each channel, the same features for
    all images one of 0 (SimSiam, https://arxiv.org/abs/2011.10566, section 4.1).

    Args:
        features: (images, channels).

    Returns:
        0 (collapsed) to 1 (spread, in all channels alike and around 0).
    """
    unit = _unit(features)
    return float(unit.std(0).mean() * np.sqrt(unit.shape[1]))


def feature_cosine(features: np.ndarray) -> float:
    """The mean cosine similarity of all pairs of different images.

    Args:
        features: (images, channels). Those that are zero count as equal to each other, and as orthogonal to others.

    Returns:
        1 if all features have one direction (collapsed), about 0 if directions are random; at least
        -1 / (images - 1).
    """
    unit, count = _unit(features), len(features)
    zeros = count - np.count_nonzero(unit.any(1))
    pairs = np.square(unit.sum(0)).sum() - (count - zeros) + zeros * (zeros - 1)
    return float(pairs / (count * (count - 1)))


def _unit(features: np.ndarray) -> np.ndarray:
    """The features divided by their length, in float64; zero where they are zero."""
    features = np.asarray(features, dtype=np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
