"""Evaluation of a frozen encoder: nearest neighbors and logistic regression on its features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import default_data_collator
from transformers.utils.logging import tqdm

from ..data.dataset import ImageSamples
from ..modeling_a2mim import A2MIMModel
from ..models.pooled_features import ALL, Layer, layer_features, layer_index, layer_widths, unit_maps
from .metrics import classification_metrics, log_odds
from .summary import layer_name


C_VALUES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
LONE_C = 0.1
MANY = 5000  # samples
KEPT_BATCHES = 16  # of features on the device, before they are copied


@torch.inference_mode()
def extract_features(
    model: nn.Module,
    samples,
    batch_size: int = 256,
    num_workers: int = 0,
    layers: Sequence[Layer] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
    """Features of a frozen encoder, and labels.

    Args:
        model: an A2MIMModel, or a model that holds one as `a2mim`; it is run in evaluation mode and put back.
        samples: dataset of dicts with `pixel_values` and `labels`.
        layers: which features, all from one forward pass (see `pooled_features.layer_features`). Without it, the mean
            of the last feature map over its positions.
        dtype: run the encoder under autocast with this type; the features are float32 in any case.

    Returns:
        The features (samples, channels), with `layers` a list of those of each layer; the labels (samples,).

    Raises:
        ValueError: if the encoder has no such layer.
    """
    core, training = cast(A2MIMModel, getattr(model, "a2mim", model)), model.training
    default: Sequence[Layer] = [-1]
    wanted = [layer_index(core, layer, "probe_layers") for layer in (default if layers is None else layers)]
    device = core.device
    waiting: list[list[torch.Tensor]] = []
    features: list[list[np.ndarray]] = []
    labels: list[np.ndarray] = []
    loader = DataLoader(
        samples,
        batch_size,
        num_workers=num_workers,
        collate_fn=default_data_collator,
        pin_memory=device.type == "cuda",
    )

    def copy_waiting():  # waits for the device, hence not for each batch
        if waiting:
            features.append([torch.cat(parts).cpu().numpy() for parts in zip(*waiting, strict=True)])
            waiting.clear()

    model.eval()
    try:
        for batch in tqdm(loader, desc="features", leave=False):
            pixels = batch["pixel_values"].to(device, non_blocking=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                waiting.append(layer_features(core, pixels, wanted))
            labels.append(batch["labels"].numpy())
            if len(waiting) == KEPT_BATCHES:
                copy_waiting()
        copy_waiting()
    finally:
        model.train(training)
    joined = [np.concatenate(parts) for parts in zip(*features, strict=True)]
    return joined[0] if layers is None else joined, np.concatenate(labels)


def nearest_neighbors(
    train: tuple, neighbors: int = 5, temperature: float | None = None, widths: Sequence[int] | None = None
) -> KNeighborsClassifier | Pipeline:
    """The nearest neighbors by cosine in `train` (features, labels); with the `widths` of several maps in the features
    by `standardised_maps`, so that each map weighs the same.

    A neighbor's vote weighs 1 / (1 - cosine), or with a temperature exp(cosine / temperature), as in instance
    discrimination (https://arxiv.org/abs/1805.01978, with 0.07) and DINO.
    """

    def votes(distances):  # (samples, neighbors), 1 - cosine; the nearest one weighs 1, so that none underflows
        return np.exp((distances.min(1, keepdims=True) - distances) / temperature)

    weights = "distance" if temperature is None else votes
    classifier = KNeighborsClassifier(min(neighbors, len(train[1])), weights=weights, metric="cosine")
    return (classifier if widths is None else make_pipeline(standardised_maps(widths), classifier)).fit(*train)


def standardised_maps(widths: Sequence[int]) -> Pipeline:
    """Standardises each feature by those that it is fitted to, and gives the part of each map (of these widths) the
    same length (`pooled_features.unit_maps`): neither the scale of a map nor its number of channels counts."""

    def equal_lengths(features: np.ndarray) -> np.ndarray:
        return unit_maps(torch.as_tensor(features), widths).numpy()

    return make_pipeline(StandardScaler(), FunctionTransformer(equal_lengths))


def knn_accuracy(train: tuple, test: tuple, neighbors: int = 5, temperature: float | None = None) -> float:
    """Accuracy on `test` of `nearest_neighbors` in `train`, both (features, labels)."""
    return float(nearest_neighbors(train, neighbors, temperature).score(*test))


def linear_probe_accuracy(train: tuple, test: tuple, c: float | None = 1.0) -> float:
    """Accuracy on `test` of a logistic regression on the standardised features of `train`, both (features, labels);
    `c` is the inverse regularization, that of `choose_c` if `None`."""
    c = choose_c(*train) if c is None else c
    return float(_logistic_regression(c).fit(*train).score(*test))


def frozen_metrics(classifier, test: tuple, classes: int, names: Sequence[str] | None = None) -> dict[str, float]:
    """`metrics.classification_metrics` (without top-5 accuracy) of a fitted `nearest_neighbors` or logistic regression
    on `test` (features, labels). Samples are ranked by the votes for a class, or by its log-odds.

    Args:
        classes: how many there are, also such as the classifier does not know.
        names: theirs.
    """
    features, labels = test
    if hasattr(classifier, "decision_function"):
        found = classifier.decision_function(features)
        found = log_odds(np.stack([-found, found], 1) / 2 if found.ndim == 1 else found)
    else:
        found = classifier.predict_proba(features)
    scores = np.zeros((len(labels), classes))  # the same for classes without samples
    scores[:, classifier.classes_] = found
    return classification_metrics(classifier.predict(features)[:, None], scores, labels, names)


def choose_c(features: np.ndarray, labels: np.ndarray, class_weights: dict[int, float] | str | None = None) -> float:
    """The inverse regularization (one of `C_VALUES`) with the least log loss in a cross-validation of these samples
    alone: 5 folds, or as many as the smallest class has samples; of many samples one fifth is held out once. Samples
    count in the log loss as they do in the regression (`class_weights`, see `evaluate_frozen`).

    With few samples many values have the same accuracy, but not the same log loss. A class of one sample leaves
    nothing to validate on: then `LONE_C`, which suits few samples.
    """
    folds = min(5, np.unique(labels, return_counts=True)[1].min())
    if folds < 2:
        return LONE_C
    if len(labels) < MANY:
        splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    else:
        splits = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
    grid = {"logisticregression__C": C_VALUES}
    scoring: str | Callable = "neg_log_loss"
    if class_weights is not None:

        def weighted(regression, samples, truth):
            weights = compute_sample_weight(class_weights, truth)
            return -log_loss(
                truth, regression.predict_proba(samples), sample_weight=weights, labels=regression.classes_
            )

        scoring = weighted

    regression = _logistic_regression(class_weights=class_weights)
    search = GridSearchCV(regression, grid, scoring=scoring, cv=splits, refit=False)
    return search.fit(features, labels).best_params_["logisticregression__C"]


def _logistic_regression(c: float = 1.0, class_weights: dict[int, float] | str | None = None):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000, class_weight=class_weights))


def _checked(samples) -> set[int]:
    """The rows that were found to be broken, unless these are too many (`ImageSamples.check_left_out`)."""
    rows = set(samples.broken) if isinstance(samples, ImageSamples) else set()
    if rows:
        samples.without(rows).check_left_out()
    return rows


def evaluate_frozen(
    model: nn.Module,
    train,
    test,
    subsets: Mapping[tuple[str, int], Sequence[int]],
    layers: Sequence[Layer] = (-1,),
    neighbors: int = 5,
    temperature: float | None = None,
    c: float | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    names: Sequence[str] | None = None,
    class_weights: dict[int, float] | str | None = None,
) -> list[dict]:
    """Figures on `test` of nearest neighbors and of logistic regression on frozen features of subsets of `train`.

    Args:
        train, test: datasets of dicts with `pixel_values` and `labels`; the images of all subsets, and of `test`, go
            through the encoder once.
        subsets: rows of `train` (see `draw_subset`) by the name of the subset and the seed that drew it, such as
            `("10 per class", 0)`. Results of one name are summed up over its seeds (`summary.results_table`).
        layers: which features (see `pooled_features.layer_features`). Neighbors in several maps are by
            `standardised_maps`; the regression standardises each feature in any case.
        neighbors, temperature, c: see `nearest_neighbors` and `linear_probe_accuracy`.
        names: of the classes; with them, there are also figures of each class.
        class_weights: how much a sample of each class counts in the regression, "balanced" for the inverse of how
            often it occurs. Neighbors do not know of it.

    Returns:
        One dict for each subset, seed, layer and method: `subset`, `seed`, `images` (how many), `layer` (as given),
        `method` ("k-NN" or "logistic regression") and the figures of `frozen_metrics`, `accuracy` the first of them;
        of the regression also its `strength`.

    Raises:
        ValueError: if the encoder has no such layer, one is named twice, or there are no subsets or layers; naming
            `max_skipped_ratio`, if more than that share of the images is broken.
    """
    if not subsets or not layers:
        raise ValueError("subsets, layers: expected at least one of each")
    core = cast(A2MIMModel, getattr(model, "a2mim", model))
    if len({layer_index(core, layer, "probe_layers") for layer in layers}) < len(layers):
        raise ValueError(f"probe_layers: {' '.join(map(layer_name, layers))} names one of them twice")
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "layers": layers, "dtype": dtype}
    needed = sorted({row for rows in subsets.values() for row in rows})
    place = {row: i for i, row in enumerate(needed)}
    known, labels = extract_features(model, Subset(train, needed), **options)
    evaluated, answers = extract_features(model, test, **options)
    broken = [_checked(samples) for samples in (train, test)]
    good = [row for row in range(len(answers)) if row not in broken[1]]
    evaluated, answers = [features[good] for features in evaluated], answers[good]
    classes = int(max(labels.max(), answers.max())) + 1 if names is None else len(names)
    results = []
    for (subset, seed), rows in tqdm(subsets.items(), desc="subsets", leave=False):
        chosen = [place[row] for row in rows if row not in broken[0]]
        for layer, features, others in zip(layers, known, evaluated, strict=True):
            sample, against = (features[chosen], labels[chosen]), (others, answers)
            common = {"subset": subset, "seed": seed, "images": len(chosen), "layer": layer}
            widths = layer_widths(core, layer) if layer == ALL else None
            nearest = nearest_neighbors(sample, neighbors, temperature, widths)
            found = frozen_metrics(nearest, against, classes, names)
            results.append({**common, "method": "k-NN", **found})
            used = choose_c(*sample, class_weights) if c is None else c
            found = frozen_metrics(_logistic_regression(used, class_weights).fit(*sample), against, classes, names)
            results.append({**common, "method": "logistic regression", **found, "strength": used})
    return results
