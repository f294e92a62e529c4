"""A decision threshold from scores of labelled images, by a rule, and what it gives on them."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import expit, softmax
from sklearn.metrics import precision_recall_curve, roc_curve

from .decisions import F1, false_alarm_limit, parse_threshold


EQUAL = 1e-12  # figures that differ by less are the same; they are quotients of numbers of images


@dataclass(frozen=True)
class ThresholdFigures:
    """What a threshold gives: an image is called positive where its score is at least the threshold.

    Args:
        threshold: in [0, 1].
        precision: share of the images called positive that are; 0 where none is called so.
        recall: share of the positive images that are called so; `None` where there are none.
        f1: harmonic mean of the two, `None` where there are no positive images.
        false_alarm_rate: share of the other images that are called positive; `None` where there are none.
        images, positives: how many there were.
    """

    threshold: float
    precision: float
    recall: float | None
    f1: float | None
    false_alarm_rate: float | None
    images: int
    positives: int

    def record(self) -> dict:
        """As plain JSON."""
        return asdict(self)


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Softmax, or sigmoid if `multi_label`, of logits (images, classes), as float64 numbers that float32 has too: what
    tools compute that know of float32 alone, transformers' pipelines among them."""
    logits = np.asarray(logits, dtype=np.float64)
    return (expit(logits) if multi_label else softmax(logits, axis=1)).astype(np.float32).astype(np.float64)


def figures_at(scores: np.ndarray, positives: np.ndarray, threshold: float) -> ThresholdFigures:
    """What a threshold gives on images with scores (images,) in [0, 1], of which those are positive that `positives`
    (images,) says. Raises as `choose_threshold`, but for sets of one kind alone."""
    scores, positives = _checked(scores, positives)
    called = scores >= threshold
    hits, there, others = int((called & positives).sum()), int(positives.sum()), int((~positives).sum())
    return ThresholdFigures(
        threshold=float(threshold),
        precision=hits / int(called.sum()) if called.any() else 0.0,
        recall=hits / there if there else None,
        f1=2 * hits / (there + int(called.sum())) if there else None,
        false_alarm_rate=int((called & ~positives).sum()) / others if others else None,
        images=len(scores),
        positives=there,
    )


def choose_threshold(scores: np.ndarray, positives: np.ndarray, rule: str) -> ThresholdFigures:
    """The threshold that a rule finds best: `f1`, the highest F1; `fpr=0.05`, the highest recall among those that call
    at most that share of the other images positive. Of equally good ones the highest, which gives the fewest false
    alarms.

    Thresholds that lie between the same two neighbouring scores decide alike. Of these, the middle is taken, so that
    an image whose score is computed elsewhere with another rounding is decided alike, too; it is rounded to as few
    decimals as stay in the middle half of the gap. Below the lowest score, the gap reaches to 0.

    Args:
        scores: (images,) in [0, 1].
        positives: (images,) whether each image is of the class.
        rule: as `parse_threshold` gives it.

    Raises:
        ValueError: naming `threshold`, if a score is not in [0, 1] or no number, if there are not images of both
            kinds, or if nothing can be found at so few false alarms; naming `rule`, if it is none.
    """
    scores, positives = _checked(scores, positives)
    if isinstance(parse_threshold(rule), float):
        raise ValueError(f"rule: expected f1 or fpr=..., got {rule!r}")
    if not len(scores) or positives.all() or not positives.any():
        raise ValueError(
            f"threshold: {rule} needs images of the class and images without it; of {len(scores)}, "
            f"{int(positives.sum())} are of the class"
        )
    limit = false_alarm_limit(rule)
    if rule == F1:
        precision, recall, thresholds = precision_recall_curve(positives, scores, drop_intermediate=False)
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
        best = thresholds[np.flatnonzero(f1 >= f1.max() - EQUAL)[-1]]  # they rise
    else:
        alarms, recall, thresholds = roc_curve(positives, scores, drop_intermediate=False)
        recall = np.where(alarms <= limit, recall, -1.0)  # type: ignore[operator]
        place = int(recall.argmax())  # of equal ones the first; they fall, from infinity
        if not recall[place] > 0:
            alone = (scores[~positives] >= scores[positives].max()).mean()
            raise ValueError(
                f"threshold: {rule} finds nothing: {alone:.3g} of the images without the class score as high as the "
                "best of the class, or higher; allow more false alarms, or take f1"
            )
        best = thresholds[place]
    return figures_at(scores, positives, _in_the_gap(scores, best))


def _in_the_gap(scores: np.ndarray, score: float) -> float:
    """A threshold between a score and the next lower one, decided alike (see `choose_threshold`)."""
    lower = scores[scores < score].max(initial=0.0)
    middle, room = (score + lower) / 2, (score - lower) / 4
    rounded = (float(round(middle, decimals)) for decimals in range(17))
    found = next((value for value in rounded if abs(value - middle) <= room and lower < value <= score), None)
    return float(score) if found is None else found  # there is no number between two neighbours of float64


def _checked(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positives = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    if scores.ndim != 1 or scores.shape != positives.shape:
        raise ValueError(f"positives: expected one for each score, got {scores.shape} and {positives.shape}")
    wrong = int((~((scores >= 0) & (scores <= 1))).sum())
    if wrong:
        raise ValueError(f"threshold: {wrong} of {len(scores)} scores are not in [0, 1], or no numbers")
    return scores, positives
