"""What a classifier learns beside one class for each image: several (`multi_label_classification`), or a number
(`regression`), by transformers' names for `config.problem_type`. Their columns, and their metrics."""

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, LargeList, List, Value
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
    root_mean_squared_error,
)

from ...arguments.data import MULTI, REGRESSION
from ...data.labels import NAMED, as_numbers, has_label, with_column
from ...encoders.plan import classifier_parameters
from ...evaluation.metrics import compute_metrics
from ...models.classifier import A2MIMForImageClassification
from ...models.linear_probe import LinearProbe


logger = logging.getLogger("a2mim")

USUAL = {MULTI: ("labels", "label", "classes", "tags"), REGRESSION: ("label", "labels", "target", "value")}
NUMBERS = ("int", "uint", "float", "decimal")
FEW_TARGETS = 0.1, 10.0  # standard deviations that the usual learning rates reach


def check_problem_type(problem_type: str, model_args, data_args, args):
    """Refuse what is for images of one class each.

    Raises:
        ValueError: naming the argument.
    """
    for name in ("labels_per_class", "label_fraction", "label_subset"):
        if getattr(data_args, name) is not None:
            raise ValueError(f"{name}: is for images of one class each, not for --problem_type {problem_type}")
    given = [(name, getattr(args, name)) for name in ("mixup", "cutmix", "label_smoothing_factor", "bce_loss")]
    given += [("class_weights", args.class_weights), ("corruptions", data_args.corruptions)]
    given += [("knn", model_args.knn), ("streaming", data_args.streaming)]
    for name, value in given:
        if value:
            raise ValueError(f"{name}: does not go with --problem_type {problem_type}; leave it out")


# Columns


def find_targets(features: Features, problem_type: str, name: str | None) -> str:
    """The column to learn: the one called `name`, else one of the right kind by a usual name, else the only one.

    Raises:
        ValueError: naming `label_column_name`, if there is none of the right kind, or several.
    """
    wanted = "lists of classes" if problem_type == MULTI else "numbers"
    fits = _is_list if problem_type == MULTI else _is_number
    if name is not None:
        if name not in features:
            raise ValueError(f"label_column_name: the dataset has no column {name!r}; it has {', '.join(features)}")
        if not fits(features[name]):
            raise ValueError(f"label_column_name: column {name!r} holds {features[name]}, no {wanted}")
        return name
    found = [column for column, kind in features.items() if fits(kind)]
    usual = [column for column in USUAL[problem_type] if column in found]
    if not usual and len(found) != 1:
        if not found:
            raise ValueError(
                f"label_column_name: the dataset has no column of {wanted}; its columns are {', '.join(features)}"
            )
        raise ValueError(f"label_column_name: there are several columns of {wanted}: {', '.join(found)}; name one")
    return (usual or found)[0]


def _is_list(kind) -> bool:
    return isinstance(kind, List | LargeList) and isinstance(kind.feature, ClassLabel | Value)


def _is_number(kind) -> bool:
    return isinstance(kind, Value) and kind.dtype.startswith(NUMBERS)


def numbers_of_words(dataset: Dataset, name: str | None) -> Dataset:
    """The dataset with numbers of numbers that are stored as text, as tables keep some: in the column called `name`,
    else in those of usual names, and where there is no column of numbers, in any.

    Raises:
        ValueError: naming `label_column_name`, if texts of the column called `name` say no numbers.
    """
    numbers = any(map(_is_number, dataset.features.values()))
    for column in [name] if name else USUAL[REGRESSION] if numbers else dataset.column_names:
        kind = dataset.features.get(column)
        if isinstance(kind, Value) and "string" in kind.dtype:
            values = dataset[column][:]
            found = as_numbers(values)
            if found is None and name and (wrong := [v for v in values if v and as_numbers([v, "0"]) is None]):
                raise ValueError(
                    f"label_column_name: column {name!r} holds {wrong[0][:40]!r} (the first of {len(wrong):,} such "
                    "values), which is no number to learn; correct it, or leave it empty to leave the image out"
                )
            dataset = dataset if found is None else with_column(dataset, column, found, Value("float64"))
    return dataset


def encode_numbers(dataset: Dataset, column: str) -> Dataset:
    """A column of numbers as float32; NaN and infinities become `None`.

    Raises:
        ValueError: naming `label_column_name`, if one is beyond float32.
    """
    kind = dataset.features[column]
    values = [float(v) if v is not None and np.isfinite(float(v)) else None for v in dataset[column][:]]
    most = max((abs(value) for value in values if value is not None), default=0.0)
    if most > np.finfo(np.float32).max:
        raise ValueError(f"label_column_name: column {column!r} ({kind.dtype}) holds {most:g}; scale the targets")
    return with_column(dataset, column, values, Value("float32"))


def encode_lists(
    dataset: Dataset, column: str, names: Sequence[str] | None, field: str, one_hot: bool | None = None
) -> tuple[Dataset, list[str], bool]:
    """A column of lists of classes, or of one-hot lists (0 and 1 for each class), as one-hot lists of float32; the
    names of the classes; and whether the lists were one-hot. `None` stays; an empty list is an image of no class.

    Args:
        names: of the classes that are known; those that occur, or that the column names, if not given.
        field: the argument that names the images, for messages.
        one_hot: what the lists are, where that is known.

    Raises:
        ValueError: naming `label_column_name` or `field`, if the lists are neither, or there are other classes.
    """
    kind, rows = dataset.features[column].feature, dataset[column][:]
    there = [row for row in rows if row is not None]
    looks = not isinstance(kind, ClassLabel) and is_one_hot(there)
    one_hot = looks if one_hot is None else one_hot
    if one_hot:
        count = len(there[0])
        if not looks or (names is not None and len(names) != count):
            raise ValueError(f"{field}: expected one-hot lists of {len(names)} places in column {column!r}")
        names = [f"class {i}" for i in range(count)] if names is None else list(names)
        encoded = [None if row is None else [float(value) for value in row] for row in rows]
    else:
        if isinstance(kind, Value) and not kind.dtype.startswith(("int", "uint", "string", "large_string")):
            raise ValueError(
                f"label_column_name: column {column!r} holds lists of {kind.dtype} that are neither one-hot (0 and 1, "
                "all of one length) nor of classes (numbers or words)"
            )
        words = [None if row is None else [_word(v, kind) for v in row if has_label(v, kind)] for row in rows]
        if without := sum(map(len, there)) - sum(len(row) for row in words if row is not None):
            logger.warning("%s: %d entries of column %r are no classes (nothing or -1)", field, without, column)
        counts = Counter(word for row in words for word in row or ())
        if names is None:
            names = list(kind.names) if isinstance(kind, ClassLabel) else sorted(counts)
        index = {name: i for i, name in enumerate(names)}
        if others := [(name, count) for name, count in counts.most_common() if name not in index]:
            shown = ", ".join(f"{name!r} ({count:,} images)" for name, count in others[:NAMED])
            raise ValueError(f"{field}: {len(others)} of its classes are not those trained on: {shown}")
        encoded = [None if row is None else _one_hot([index[word] for word in row], len(names)) for row in words]
    logger.info("%s: column %r holds %s", field, column, "one-hot lists" if one_hot else "lists of classes")
    return with_column(dataset, column, encoded, List(Value("float32"))), list(names), one_hot


def is_one_hot(rows: Sequence[list]) -> bool:
    """Whether lists are of 0 and 1 for each class. Lists of two that hold one 0 and one 1 each are taken for it."""
    lengths = {len(row) for row in rows}
    values = {value for row in rows for value in row}
    if len(lengths) != 1 or not values <= {0, 1} or lengths <= {0, 1}:
        return False
    return all(isinstance(value, int | float) for value in values)


def _word(value, kind) -> str:
    return kind.names[value] if isinstance(kind, ClassLabel) else str(value)


def _one_hot(indices: Sequence[int], count: int) -> list[float]:
    row = np.zeros(count, dtype=np.float32)
    row[list(indices)] = 1
    return row.tolist()


def start_at_mean(model: A2MIMForImageClassification | LinearProbe, targets: Sequence[float]):
    """Let a new regression begin with the mean of its targets, where its last layer has a bias, and say so where their
    scale is not what learning rates are made for."""
    mean, deviation = float(np.mean(targets)), float(np.std(targets))
    if isinstance(model, LinearProbe):
        biases = [model.classifier.bias]
    else:
        encoder = model.a2mim.encoder
        last = classifier_parameters(encoder)
        biases = [p for name, p in encoder.named_parameters() if name in last and name.endswith("bias")]
    with torch.no_grad():
        for bias in biases:
            if bias.numel() == 1:  # of a hidden layer there are more
                bias.fill_(mean)
    logger.info("targets: mean %.4g, standard deviation %.4g", mean, deviation)
    if not FEW_TARGETS[0] <= deviation <= FEW_TARGETS[1]:
        logger.warning(
            "the targets have a standard deviation of %.4g; learning rates are made for about 1: scale the targets, "
            "or give --learning_rate",
            deviation,
        )


# Metrics


def figures_of(prediction, problem_type: str, names: Sequence[str]) -> dict[str, float]:
    """The metrics of a Trainer's prediction."""
    if problem_type == MULTI:
        return multi_label_metrics(prediction.predictions, prediction.label_ids, names)
    if problem_type == REGRESSION:
        return regression_metrics(prediction.predictions, prediction.label_ids)
    return compute_metrics(prediction, names)


def multi_label_metrics(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Figures in [0, 1] of logits (samples, classes) and one-hot labels; what is above 0 (a probability of 1/2) is
    predicted.

    Returns:
        `micro_f1`; `macro_f1`, over the classes that are in the labels or predicted; `subset_accuracy`: share of
        samples all of whose classes are right; `mean_average_precision`, over the classes that some samples have and
        some have not (left out if there are none, NaN where logits are not finite); and for each class of `names` in
        the labels `precision_NAME`, `recall_NAME` and, as far as it is defined, `average_precision_NAME`.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels) > 0.5
    predicted, count = logits > 0, labels.shape[1]
    finite = np.isfinite(logits).all(0)
    present = np.any(labels, axis=0)
    ranked = {
        c: average_precision_score(labels[:, c], logits[:, c]) if finite[c] else np.nan
        for c in np.flatnonzero(present & ~labels.all(0)).tolist()
    }
    f1 = f1_score(labels, predicted, average=None, zero_division=0.0)
    counted = present | predicted.any(0)
    values = {
        **({"mean_average_precision": np.mean(list(ranked.values()))} if ranked else {}),
        "micro_f1": f1_score(labels, predicted, average="micro", zero_division=0.0),
        "macro_f1": f1[counted].mean() if counted.any() else 0.0,
        "subset_accuracy": (labels == predicted).all(1).mean(),
    }
    if names is not None:
        for name, score in (("precision", precision_score), ("recall", recall_score)):
            found = score(labels, predicted, average=None, zero_division=0.0)
            values |= {f"{name}_{names[c]}": found[c] for c in range(count) if present[c]}
        values |= {f"average_precision_{names[c]}": value for c, value in ranked.items()}
    return {name: float(value) for name, value in values.items()}


def regression_metrics(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Figures of predictions and targets (samples,): `mae` and `rmse` in the unit of the targets, and `r2`, the share
    of their variance that is explained, which is left out where they have none. NaN where a prediction is not finite.
    """
    predictions, targets = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (predictions, targets))
    varies = len(targets) > 1 and targets.min() < targets.max()
    if not np.isfinite(predictions).all():
        return dict.fromkeys(["mae", "rmse", *(["r2"] if varies else [])], float("nan"))
    values = {"mae": mean_absolute_error(targets, predictions), "rmse": root_mean_squared_error(targets, predictions)}
    return {n: float(v) for n, v in {**values, **({"r2": r2_score(targets, predictions)} if varies else {})}.items()}
