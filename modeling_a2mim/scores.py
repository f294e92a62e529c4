"""How good the predictions of a classifier are."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score, recall_score


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


def compute_metrics(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: logits (samples, classes) and class indices to values in [0, 1].

    Returns:
        `accuracy`: share of right predictions; `top5_accuracy`, of more than 5 classes: share of samples whose class
        is among the 5 likeliest; `balanced_accuracy`: mean over the classes in the labels of their accuracies;
        `macro_f1`: mean of the F1 of all classes that are in the labels or predicted.
    """
    logits = prediction.predictions
    # Stable: of equal logits the first, as argmax has it.
    best = np.argsort(-logits, axis=-1, kind="stable")[:, : TOP if logits.shape[-1] > TOP else 1]
    return ClassificationMetrics(keep_in_memory=True).compute(predictions=best, references=prediction.label_ids)
