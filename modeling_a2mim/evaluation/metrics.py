"""How good the predictions of a classifier are."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score


TOP = 5


class ClassificationMetrics(evaluate.Metric):
    """Accuracy, balanced accuracy, macro F1 and, if 5 classes are given for each sample, top-5 accuracy. Those of
    `evaluate.load` take one class for each sample, and download their scripts from the Hub."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy, top-5 accuracy, balanced accuracy and macro F1.",
            citation="",
            inputs_description="predictions: the likeliest classes of each sample, best first; references: its class",
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        best, references = np.asarray(predictions), np.asarray(references)
        right = best == references[:, None]
        values = {"accuracy": right[:, 0].mean()}
        if best.shape[1] == TOP:
            values["top5_accuracy"] = right.any(1).mean()
        # Recall of the classes that there are. scikit-learn's balanced_accuracy_score is the same, but warns of
        # predictions of other classes.
        present = np.unique(references)
        values["balanced_accuracy"] = recall_score(references, best[:, 0], labels=present, average="macro")
        values["macro_f1"] = f1_score(references, best[:, 0], average="macro")
        return {name: float(value) for name, value in values.items()}


def compute_metrics(prediction, names: Sequence[str] | None = None) -> dict[str, float]:
    """`compute_metrics` of a Trainer: logits (samples, classes) and class indices to values in [0, 1].

    Args:
        prediction: of a Trainer.
        names: of the classes; with them, there are also figures of each class.

    Returns:
        `accuracy`: share of right predictions; `top5_accuracy`, of more than 5 classes: share of samples whose class
        is among the 5 likeliest; and what `class_metrics` gives.
    """
    logits = np.asarray(prediction.predictions)
    # Stable: of equal logits the first, as argmax has it.
    best = np.argsort(-logits, axis=-1, kind="stable")[:, : TOP if logits.shape[-1] > TOP else 1]
    return classification_metrics(best, log_odds(logits), prediction.label_ids, names)


def classification_metrics(
    best: np.ndarray, scores: np.ndarray, labels: Sequence[int] | np.ndarray, names: Sequence[str] | None = None
) -> dict[str, float]:
    """What `compute_metrics` returns, and for each class of `names` that occurs in the labels `precision_NAME` (0 if
    it is never predicted), `recall_NAME` and `average_precision_NAME`.

    `balanced_accuracy`: mean over the classes in the labels of their recalls; `macro_f1`: mean of the F1 of all
    classes that are in the labels or predicted; `auroc` and `average_precision`: means over the classes in the labels
    of the area under the ROC curve, and of the average precision, of each against the rest. The last two are left out
    where the labels hold one class alone, and are NaN where scores are not finite.

    Args:
        best: (samples, 1 or 5) class indices, the likeliest first.
        scores: (samples, classes) by which the samples are ranked for each class, the likeliest highest.
        labels: (samples,) class indices.
        names: of all classes.
    """
    labels = np.asarray(labels)
    values = ClassificationMetrics(keep_in_memory=True).compute(predictions=best, references=labels)
    auroc, average_precision = ranking_metrics(scores, labels)
    if len(auroc):
        values |= {"auroc": np.mean(list(auroc.values()))}
        values |= {"average_precision": np.mean(list(average_precision.values()))}
    if names is not None:
        present = np.unique(labels)
        options = {"labels": present, "average": None, "zero_division": 0.0}
        for name, score in (("precision", precision_score), ("recall", recall_score)):
            found = score(labels, best[:, 0], **options)
            values |= {f"{name}_{names[c]}": value for c, value in zip(present, found, strict=True)}
        values |= {f"average_precision_{names[c]}": value for c, value in average_precision.items()}
    return {name: float(value) for name, value in values.items()}


def ranking_metrics(scores: np.ndarray, labels: np.ndarray) -> tuple[dict[int, float], dict[int, float]]:
    """AUROC and average precision of each class in the labels against the rest; none where there is no rest."""
    present = np.unique(labels)
    auroc, precision = {}, {}
    for c in present.tolist() if len(present) > 1 else ():
        finite = np.isfinite(scores[:, c]).all()
        auroc[c] = roc_auc_score(labels == c, scores[:, c]) if finite else np.nan
        precision[c] = average_precision_score(labels == c, scores[:, c]) if finite else np.nan
    return auroc, precision


def log_odds(logits: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of the softmax of logits (samples, classes), which ranks samples as p does, also where p is
    so near 1 that it is rounded to it."""
    logits = np.asarray(logits, dtype=np.float64)
    logs = log_softmax(logits, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = logs - np.log1p(-np.exp(logs))
    # Of the likeliest class the rest is added up, which is exact where 1 - p is not.
    first, rows = logits.argmax(1), np.arange(len(logits))
    rest = logits.copy()
    rest[rows, first] = -np.inf
    odds[rows, first] = logits[rows, first] - logsumexp(rest, axis=1)
    return odds
