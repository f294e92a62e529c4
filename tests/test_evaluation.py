"""Metrics against hand-computed values, and features of frozen encoders."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_a2mim import A2MIMModel
from modeling_a2mim.evaluation import (
    Accuracy,
    compute_accuracy,
    extract_features,
    knn_accuracy,
    labels_subset,
    linear_probe_accuracy,
)

from .families import FAMILIES, family_config


def test_accuracy():
    assert Accuracy(keep_in_memory=True).compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])["accuracy"] == 0.75
    logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert compute_accuracy(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 1]))) == {"accuracy": 2 / 3}


def test_labels_subset():
    labels = np.repeat([0, 1, 2], 20)
    chosen = labels_subset(labels, 4, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert chosen == labels_subset(labels, 4, seed=0) != labels_subset(labels, 4, seed=1)
    with pytest.raises(ValueError, match="^labels_per_class: class 0 has only 20 images, not 21"):
        labels_subset(labels, 21, seed=0)


def test_probe_and_neighbours_separate_what_is_separable():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    features = generator.normal(size=(60, 4)) + labels[:, None] * 20 * np.array([1, -1, 0, 0]) - [10, -10, 0, 0]
    train, test = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    assert linear_probe_accuracy(train, test) == knn_accuracy(train, test) == 1.0
    wrong = (test[0], 1 - test[1])
    assert linear_probe_accuracy(train, wrong) == knn_accuracy(train, wrong) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_mean_of_the_last_map(family):
    model = A2MIMModel(family_config(family)).train()
    images = torch.randn(5, 3, 64, 64)
    samples = [{"pixel_values": image, "labels": torch.tensor(i)} for i, image in enumerate(images)]
    features, labels = extract_features(model, samples, batch_size=2)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert model.training
    model.eval()
    with torch.no_grad():
        maps = model.feature_map(model(images).last_hidden_state, (64, 64))
    # Other batches, hence other sums in float32.
    np.testing.assert_allclose(features, maps.mean((2, 3)).numpy(), atol=1e-5)
