"""`evaluation.thresholds`: small cases by hand, and every rule against all thresholds that there are."""

import numpy as np
import pytest

from modeling_a2mim.evaluation.thresholds import choose_threshold, figures_at, probabilities


# Scores, of which the 2nd, 4th and 5th are of the class. By threshold: 0.9 P 0/1; 0.8 P 1/2 R 1/3; 0.4 P 3/4 R 1;
# 0.2 P 3/5; 0.1 P 3/6.
SCORES = np.array([0.9, 0.8, 0.2, 0.4, 0.4, 0.1])
THERE = np.array([False, True, False, True, True, False])


def brute(scores, positives):
    """What each threshold gives that decides otherwise than the others: the scores, as what is at least it counts."""
    return [figures_at(scores, positives, value) for value in np.unique(scores)]


def test_figures_by_hand():
    found = figures_at(SCORES, THERE, 0.4)  # a score that is met counts
    assert (found.precision, found.recall, found.false_alarm_rate) == (3 / 4, 1.0, 1 / 3)
    assert found.f1 == 6 / 7
    assert (found.images, found.positives) == (6, 3)
    above = figures_at(SCORES, THERE, np.nextafter(0.4, 1))
    assert (above.precision, above.recall, above.false_alarm_rate, above.f1) == (1 / 2, 1 / 3, 1 / 3, 2 / 5)
    nothing = figures_at(SCORES, THERE, 0.95)
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.false_alarm_rate) == (0.0, 0.0, 0.0, 0.0)
    assert found.record() == {
        "threshold": 0.4,
        "precision": 0.75,
        "recall": 1.0,
        "f1": 6 / 7,
        "false_alarm_rate": 1 / 3,
        "images": 6,
        "positives": 3,
    }


def test_figures_of_one_kind_alone():
    found = figures_at(SCORES, np.zeros(6, bool), 0.5)
    assert (found.recall, found.f1, found.false_alarm_rate) == (None, None, 1 / 3)
    found = figures_at(SCORES, np.ones(6, bool), 0.5)
    assert (found.precision, found.recall, found.false_alarm_rate) == (1.0, 1 / 3, None)


def test_best_f1_by_hand():
    found = choose_threshold(SCORES, THERE, "f1")
    assert found.threshold == 0.3  # the middle of 0.4 and 0.2
    assert found == figures_at(SCORES, THERE, 0.3)
    assert found.f1 == figures_at(SCORES, THERE, 0.4).f1 == 6 / 7


def test_recall_at_a_rate_of_false_alarms_by_hand():
    assert choose_threshold(SCORES, THERE, "fpr=0.34").threshold == 0.3  # 1 of 3
    assert choose_threshold(SCORES, THERE, "fpr=0.34").recall == 1
    scores, there = np.array([0.9, 0.7, 0.6, 0.2]), np.array([True, False, True, False])
    none = choose_threshold(scores, there, "fpr=0")
    assert (none.threshold, none.recall, none.false_alarm_rate) == (0.8, 0.5, 0.0)
    half = choose_threshold(scores, there, "fpr=0.5")  # exactly the limit is allowed
    assert (half.threshold, half.recall, half.false_alarm_rate) == (0.4, 1.0, 0.5)


def test_of_equally_good_thresholds_the_highest():
    # 0.8: P 1, R 1/2; 0.5: P 2/4, R 1. Both have an F1 of 2/3.
    scores, there = np.array([0.8, 0.7, 0.6, 0.5]), np.array([True, False, False, True])
    assert choose_threshold(scores, there, "f1").threshold == 0.75
    # Of all with a recall of 1, the one with the fewest false alarms.
    scores, there = np.array([0.9, 0.5, 0.3]), np.array([True, False, False])
    assert choose_threshold(scores, there, "fpr=1").threshold == 0.7


def test_ties_stay_together():
    scores, there = np.array([0.6, 0.6, 0.6, 0.1]), np.array([True, True, False, False])
    found = choose_threshold(scores, there, "f1")
    assert (found.threshold, found.precision, found.recall) == (0.4, 2 / 3, 1.0)  # of 0.35
    with pytest.raises(ValueError, match="^threshold: fpr=0.4 finds nothing: 0.5 of the images without the class"):
        choose_threshold(scores, there, "fpr=0.4")


def test_below_the_lowest_score_the_gap_reaches_to_0():
    assert choose_threshold([0.3, 0.2], [False, True], "f1").threshold == 0.1
    assert choose_threshold([0.3, 0.0], [False, True], "f1").threshold == 0.0


def test_neighbours_of_float64_have_nothing_between_them():
    high = np.nextafter(0.5, 1)
    found = choose_threshold(np.array([high, 0.5]), np.array([True, False]), "f1")
    assert (found.threshold, found.f1) == (high, 1.0)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-15])
def test_small_gaps_near_1(gap):
    found = choose_threshold(np.array([1 - gap, 1 - 2 * gap]), np.array([True, False]), "f1")
    assert 1 - 2 * gap < found.threshold <= 1 - gap
    assert (found.f1, found.false_alarm_rate) == (1.0, 0.0)


@pytest.mark.parametrize("levels", [3, 20, 10**9])
@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_is_better(seed, levels):
    """Levels: few make many ties."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 60))
    there = generator.random(count) < generator.choice([0.05, 0.3, 0.9])
    there[:2] = [True, False]
    scores = np.round(np.clip(generator.normal(0.4 + 0.2 * there, 0.3), 0, 1) * levels) / levels
    every = brute(scores, there)
    found = choose_threshold(scores, there, "f1")
    assert found.f1 == pytest.approx(max(one.f1 for one in every), abs=1e-12)
    assert found.threshold not in scores or found.threshold == 0
    for limit in (0, 0.01, 0.1, 0.5, 1):
        allowed = [one.recall for one in every if one.false_alarm_rate <= limit and one.recall]
        if not allowed:
            with pytest.raises(ValueError, match="finds nothing"):
                choose_threshold(scores, there, f"fpr={limit}")
            continue
        found = choose_threshold(scores, there, f"fpr={limit}")
        assert found.false_alarm_rate <= limit
        assert found.recall == max(allowed)
        alarms = [one.false_alarm_rate for one in every if one.recall == found.recall]
        assert found.false_alarm_rate == min(alarms)


@pytest.mark.parametrize("seed", range(5))
def test_other_rounding_does_not_change_decisions(seed):
    generator = np.random.default_rng(seed)
    there = generator.random(200) < 0.2
    scores = generator.random(200).astype(np.float32)
    found = choose_threshold(scores, there, "f1")
    nudged = scores.astype(np.float64) + generator.uniform(-1e-7, 1e-7, 200)
    assert figures_at(np.clip(nudged, 0, 1), there, found.threshold) == found


@pytest.mark.parametrize(
    ("scores", "there", "rule", "message"),
    [
        ([0.1, 0.2], [True, True], "f1", "^threshold: f1 needs images .* of 2, 2 are of the class"),
        ([0.1, 0.2], [False, False], "fpr=0.1", "^threshold: fpr=0.1 needs images .* of 2, 0 are of the class"),
        ([], [], "f1", "^threshold: f1 needs images"),
        ([0.1, np.nan], [True, False], "f1", "^threshold: 1 of 2 scores are not in"),
        ([0.1, 1.2], [True, False], "f1", "^threshold: 1 of 2 scores are not in"),
        ([0.1, 0.2], [True], "f1", "^positives: expected one for each score"),
        ([0.1, 0.2], [True, False], "0.5", "^rule: expected f1 or"),
        ([0.1, 0.2], [True, False], "best", "^threshold: expected a number"),
    ],
)
def test_what_nothing_can_be_chosen_from(scores, there, rule, message):
    with pytest.raises(ValueError, match=message):
        choose_threshold(np.array(scores), np.array(there, bool), rule)


def test_probabilities():
    logits = np.array([[0.0, np.log(3.0)], [50.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(probabilities(logits, False), [[0.25, 0.75], [1.0, 0.0]], atol=1e-7)
    assert probabilities(logits, True)[0, 0] == 0.5
    assert probabilities(logits, True)[0, 1] == pytest.approx(0.75, abs=1e-7)
    assert probabilities(logits, False)[1, 0] == 1  # as in float32
