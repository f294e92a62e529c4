"""Figures of features: known values of features whose spread and neighbors are known, and the definitions of the
papers, computed in another way."""

import numpy as np
import pytest
import torch

from modeling_a2mim.evaluation.gauge import (
    MORE_IS_BETTER,
    feature_cosine,
    feature_std,
    gauge,
    leave_one_out_accuracy,
    rankme,
    with_company,
)


def test_every_map_weighs_the_same():
    """Also a narrow one of small values beside a wide one that says nothing."""
    labels = np.arange(60) % 3
    telling, noise = np.eye(3)[labels] + 0.1 * draws(60, 3), 50 + draws(60, 40, seed=1)
    features = np.concatenate([telling, noise], 1)
    found = gauge(features, labels, [3, 40])
    assert found["knn_accuracy"] > 0.9
    assert gauge(features, labels)["knn_accuracy"] < 0.6
    again = gauge(np.concatenate([1e-3 * telling, 1e3 * noise], 1), labels, [3, 40])
    assert again == pytest.approx(found)
    assert found["feature_cosine"] == pytest.approx((feature_cosine(telling) + feature_cosine(noise)) / 2)
    collapsed = np.concatenate([np.ones((60, 3)), np.ones((60, 40))], 1)
    assert gauge(collapsed, None, [3, 40])["feature_cosine"] == pytest.approx(1)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def low_rank(images=200, channels=64, rank=7):
    """Orthogonal directions that are equally strong."""
    left, right = np.linalg.qr(draws(images, rank))[0], np.linalg.qr(draws(channels, rank, seed=1))[0]
    return left @ right.T


@pytest.mark.parametrize("rank", [1, 7, 64])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_rankme_counts_directions(rank, scale):
    # Epsilon adds 1e-7 * ln(1e7) for each of the 64 - rank singular values that are 0: at most 1e-4 to the entropy.
    assert rankme(scale * low_rank(rank=rank)) == pytest.approx(rank, rel=2e-4)


def test_rankme_is_that_of_the_paper():
    features = draws(30, 20) @ np.diag(np.geomspace(1, 1e-3, 20))
    values = torch.linalg.svdvals(torch.from_numpy(features))
    shares = values / values.sum() + 1e-7
    # Of probabilities; the shares sum up to 1 + 2e-6.
    expected = torch.distributions.Categorical(shares).entropy().exp().item()
    assert rankme(features) == pytest.approx(expected, rel=1e-4)
    assert rankme(features) == pytest.approx(rankme(features.T), rel=1e-9)
    assert rankme(np.eye(512)) == 512  # and not above, as epsilon alone would have it
    assert rankme(np.zeros((4, 3))) == pytest.approx(1, abs=1e-4)


def test_spread_of_random_and_of_collapsed_features():
    spread, collapsed = draws(400, 128), np.tile(draws(1, 128), (400, 1))
    # Of random directions 1 up to 1 / (2 * 128), cosines 0 up to 1 / sqrt(400 * 400 / 2 * 128).
    assert feature_std(spread) == pytest.approx(1, abs=0.01)
    assert feature_cosine(spread) == pytest.approx(0, abs=0.003)
    assert feature_std(collapsed) == pytest.approx(0, abs=1e-12)
    assert feature_cosine(collapsed) == pytest.approx(1, abs=1e-12)
    lengths = np.linspace(0.1, 10, 400)[:, None]
    assert feature_std(spread * lengths) == pytest.approx(feature_std(spread), abs=1e-12)
    assert feature_cosine(spread * lengths) == pytest.approx(feature_cosine(spread), abs=1e-12)
    assert feature_std(spread + 3) < 0.4
    assert feature_cosine(spread + 3) > 0.8


def test_cosine_of_all_pairs():
    features = draws(9, 5)
    features[3] = features[7] = 0
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    cosines = unit @ unit.T
    cosines[3, 7] = cosines[7, 3] = 1
    expected = cosines[~torch.eye(9, dtype=bool)].mean().item()
    assert feature_cosine(features) == pytest.approx(expected, abs=1e-12)
    assert feature_cosine(np.array([[1.0, 0], [-1, 0]])) == -1


def test_no_image_is_its_own_neighbor():
    labels = np.repeat([0, 1], 20)
    apart = draws(40, 8) + 9 * labels[:, None] * [1, 0, 0, 0, 0, 0, 0, 0]
    apart[:, 1] += 9 * (1 - labels)
    assert leave_one_out_accuracy(apart, labels) == 1
    # Each image has its twin, of the other class, at no distance: itself would be as near.
    twins, classes = np.repeat(draws(20, 8), 2, 0), np.tile([0, 1], 20)
    assert leave_one_out_accuracy(twins, classes) == 0
    assert leave_one_out_accuracy(twins, np.repeat(np.arange(20), 2)) == 1  # one neighbor, as there is one more image
    assert leave_one_out_accuracy(draws(2000, 8), np.arange(2000) % 4) == pytest.approx(0.25, abs=0.04)  # 4 errors


def test_neighbors_are_those_of_a_count_by_hand():
    features, labels = draws(60, 4), np.arange(60) % 3
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    np.fill_diagonal(distances, np.inf)
    votes = np.zeros((60, 3))
    for image, near in enumerate(np.argsort(distances, 1)[:, :5]):
        for other in near:
            votes[image, labels[other]] += 1 / distances[image, other]
    assert leave_one_out_accuracy(features, labels) == (votes.argmax(1) == labels).mean()


def test_images_alone_in_their_class():
    labels = np.array([5, 5, 2, 2, 2, 9])
    assert with_company(labels).tolist() == [True] * 5 + [False]
    features = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [0.05, 1], [1, 0.05]])
    assert leave_one_out_accuracy(features, labels) == 1  # one neighbor, and the last image is none
    with pytest.raises(ValueError, match="^labels: expected at least two classes of at least two images"):
        leave_one_out_accuracy(features, np.array([0, 0, 0, 0, 1, 2]))


def test_all_figures():
    features, labels = draws(12, 6).astype(np.float32), np.arange(12) % 2
    assert list(gauge(features)) == ["rankme", "feature_std", "feature_cosine"]
    found = gauge(features, labels)
    assert found.keys() == MORE_IS_BETTER.keys()
    assert all(type(value) is float for value in found.values())
    features[3, 2] = np.nan
    assert gauge(features, labels).keys() == MORE_IS_BETTER.keys()
    assert np.isnan(list(gauge(features, labels).values())).all()
