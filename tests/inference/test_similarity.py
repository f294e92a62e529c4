"""Cosine similarity in blocks: the same as all at once, and duplicates by hand."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from modeling_a2mim.inference import similarity
from modeling_a2mim.inference.similarity import cosine, duplicate_groups, nearest, typical_similarity


def at(*degrees):
    """Vectors in a plane, of different lengths."""
    angles = np.deg2rad(degrees)
    return (np.stack([np.cos(angles), np.sin(angles)], 1) * np.arange(1, len(degrees) + 1)[:, None]).astype(np.float32)


def groups(*args):
    return [rows.tolist() for rows in duplicate_groups(*args)]


@pytest.mark.parametrize("block", [7, 2048])
def test_nearest(block, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK", block)
    vectors = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    vectors[40] = vectors[3] * 2
    rows, similarities = nearest(vectors, vectors[:5], 9)
    everything = cosine_similarity(vectors[:5], vectors)
    assert rows[[0, 1, 2, 4], 0].tolist() == [0, 1, 2, 4]
    assert sorted(rows[3, :2]) == [3, 40]
    np.testing.assert_allclose(similarities, -np.sort(-everything)[:, :9], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(everything, rows, 1), similarities, atol=1e-6)


def test_equal_vectors_come_in_their_order():
    rows, similarities = nearest(np.ones((6, 2), np.float32), np.ones((1, 2), np.float32), 3)
    assert rows.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(similarities, 1, atol=1e-6)


def test_few_vectors_and_zeros():
    vectors = np.array([[0, 0], [1, 0], [-1, 0]], np.float16)
    rows, similarities = nearest(vectors, np.array([[2, 0]], np.float16), 5)
    assert rows.tolist() == [[1, 0, 2]]
    assert similarities.tolist() == [[1, 0, -1]]
    assert nearest(vectors, np.empty((0, 2)), 2)[0].shape == (0, 2)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="^count: must be at least 1, got 0"):
        nearest(at(0), at(0), 0)
    with pytest.raises(ValueError, match=r"^queries: expected \(queries, 2\), got \(1, 3\)"):
        nearest(at(0), np.ones((1, 3)), 1)
    for threshold in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="^threshold: must be"):
            duplicate_groups(at(0), threshold)


@pytest.mark.parametrize("block", [2, 3, 2048])
def test_groups_by_hand(block, monkeypatch):
    """cos 10° = 0.985, cos 20° = 0.940: a chain of steps of 10° is one group, though its ends are far apart."""
    monkeypatch.setattr(similarity, "BLOCK", block)
    vectors = at(0, 90, 10, 200, 20, 91, 30, 145)
    assert groups(vectors, 0.98) == [[0, 2, 4, 6], [1, 5]]
    assert groups(vectors, 0.99) == [[1, 5]]
    assert groups(vectors, 0.93) == [[0, 2, 4, 6], [1, 5]]
    assert groups(vectors, 0.4) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    np.testing.assert_allclose(cosine(vectors, np.array([0, 4]), 0), [1, np.cos(np.deg2rad(20))], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_duplicates(dtype, monkeypatch):
    """Found whatever rounding makes of the cosine of equal vectors; and no others."""
    monkeypatch.setattr(similarity, "BLOCK", 64)
    vectors = np.random.default_rng(0).normal(size=(300, 50)).astype(dtype)
    vectors[[299, 100]], vectors[[200, 7, 8]] = vectors[5], vectors[6]
    assert groups(vectors, 1.0) == [[6, 7, 8, 200], [5, 100, 299]]


def test_the_threshold_itself_is_enough():
    assert groups(np.array([[1, 0], [3, 4]], np.float32), 0.6) == [[0, 1]]
    assert groups(np.array([[1, 0], [3, 4]], np.float32), 0.61) == []


def test_nothing_but_duplicates(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK", 10)
    assert groups(np.ones((35, 4), np.float32), 0.98) == [list(range(35))]
    assert groups(np.zeros((35, 4), np.float32), 0.98) == []
    assert groups(np.empty((0, 4), np.float32), 0.98) == []


def test_typical_similarity(monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK", 100)
    vectors = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    pairs = cosine_similarity(vectors)[np.triu_indices(400, 1)]
    # 10,000 pairs: the standard error of the median is about 0.005, that of the percentile 0.01.
    np.testing.assert_allclose(typical_similarity(vectors), np.percentile(pairs, [50, 99]), atol=0.03)
    np.testing.assert_allclose(typical_similarity(at(0, 60)), [0.5, 0.5], atol=1e-6)
    assert np.isnan(typical_similarity(at(0))).all()
