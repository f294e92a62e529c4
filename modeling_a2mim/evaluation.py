"""How good an encoder is: accuracy, linear probe and nearest neighbours on its frozen features."""

import datasets
import evaluate
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import default_data_collator


class Accuracy(evaluate.Metric):
    """Share of right predictions. `evaluate.load("accuracy")` is the same but downloads its script from the Hub."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of predictions that equal the reference.",
            citation="",
            inputs_description="predictions, references: class indices",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


def compute_accuracy(prediction) -> dict[str, float]:
    """`compute_metrics` of a Trainer: logits (samples, classes) and labels to accuracy."""
    metric = Accuracy(keep_in_memory=True)
    return metric.compute(predictions=prediction.predictions.argmax(-1), references=prediction.label_ids)


def labels_subset(labels, per_class: int, seed: int) -> list[int]:
    """Indices of `per_class` random samples of every class, the same for the same seed.

    Raises:
        ValueError: if a class has fewer.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        indices = np.flatnonzero(labels == label)
        if len(indices) < per_class:
            raise ValueError(f"labels_per_class: class {label} has only {len(indices)} images, not {per_class}")
        chosen.append(generator.choice(indices, per_class, replace=False))
    return sorted(np.concatenate(chosen).tolist())


@torch.no_grad()
def extract_features(
    model: nn.Module, samples, batch_size: int = 256, num_workers: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of frozen encoder and labels: the mean of the last feature map over positions, (samples, channels).

    Args:
        model: an A2MIMModel, or a model that holds one as `a2mim`.
        samples: dataset of dicts with `pixel_values` and `labels`.
    """
    core, training = getattr(model, "a2mim", model), model.training
    model.eval()
    features, labels = [], []
    loader = DataLoader(samples, batch_size, num_workers=num_workers, collate_fn=default_data_collator)
    for batch in tqdm(loader, desc="features", leave=False):
        pixels = batch["pixel_values"].to(core.device)
        maps = core.feature_map(core.encode(pixels)[0], tuple(pixels.shape[-2:]))
        features.append(maps.float().mean((2, 3)).cpu().numpy())
        labels.append(batch["labels"].numpy())
    model.train(training)
    return np.concatenate(features), np.concatenate(labels)


def linear_probe_accuracy(train: tuple, test: tuple, strength: float = 1.0) -> float:
    """Accuracy on `test` of a logistic regression on the standardised features of `train`, both (features, labels);
    `strength` is scikit-learn's C."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return float(probe.fit(*train).score(*test))


def knn_accuracy(train: tuple, test: tuple, neighbours: int = 5) -> float:
    """Accuracy on `test` of the nearest neighbours (cosine distance, weighted by it) in `train`, both
    (features, labels)."""
    knn = KNeighborsClassifier(min(neighbours, len(train[1])), weights="distance", metric="cosine")
    return float(knn.fit(*train).score(*test))
