"""From the scores of a classifier to decisions: the thresholds that `config.decision` of an export holds, and what
users type for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arguments.data import MULTI, REGRESSION, SINGLE


FIELD = "decision"  # of a configuration
EVERY = "*"  # the name that stands for all labels of a multi-label problem that have no threshold of their own
USUAL = 0.5  # the threshold of labels that have none
F1, FALSE_ALARMS = "f1", "fpr="  # the rules by which a threshold is chosen; after the second comes a number
MOST_NAMED = 20  # classes in a message


@dataclass(frozen=True)
class DecisionRule:
    """From which score on a class is decided for.

    Args:
        thresholds: by class, in [0, 1]: of the softmax for problems of one class for each image, of which exactly one
            has a threshold, and of the sigmoid for multi-label problems, where `EVERY` stands for all others.
        rule: by which they were chosen: `f1`, or `fpr=0.05` (`parse_threshold`); `None` if they were given.
        images: on how many images they were chosen; `None` if they were given.

    Raises:
        ValueError: naming `threshold`, if there is none or one is not in [0, 1], or if `rule` is no rule or `images`
            no number of images.
    """

    thresholds: dict[str, float] = field(hash=False)
    rule: str | None = None
    images: int | None = None

    def __post_init__(self):
        if not isinstance(self.thresholds, Mapping) or not self.thresholds:
            raise ValueError(f"threshold: expected a number for each of some classes, got {self.thresholds!r}")
        for name, value in self.thresholds.items():
            if not isinstance(name, str) or not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"threshold: expected a number in [0, 1] for class {name!r}, got {value!r}")
        if self.rule is not None and (not isinstance(self.rule, str) or isinstance(parse_threshold(self.rule), float)):
            raise ValueError(f"threshold: expected the rule f1 or fpr=..., got {self.rule!r}")
        if self.images is not None and not (isinstance(self.images, int) and self.images > 0):
            raise ValueError(f"threshold: expected a number of images that it was chosen on, got {self.images!r}")

    @classmethod
    def from_config(cls, config) -> "DecisionRule | None":
        """The decision of a configuration of transformers or of this package; `None` if it has none.

        Raises:
            ValueError: naming `decision`, if it is not what `to_config` gives.
        """
        data = getattr(config, FIELD, None)
        if data is None:
            return None
        if not isinstance(data, Mapping) or not data.keys() <= {"thresholds", "rule", "images"}:
            raise ValueError(f"{FIELD}: expected an object of thresholds, rule and images, got {data!r}")
        try:
            return cls(data.get("thresholds"), data.get("rule"), data.get("images"))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{FIELD}: the configuration holds what is none: {error}") from error

    def to_config(self) -> dict[str, Any]:
        """The same as plain JSON: `{"thresholds": {class: value}, "rule": ..., "images": ...}`."""
        return {"thresholds": dict(self.thresholds), "rule": self.rule, "images": self.images}

    def check(self, names: Sequence[str], multi_label: bool):
        """Refuse thresholds of other classes than these.

        Raises:
            ValueError: naming `threshold`, or `positive_class` where not exactly one class has a threshold.
        """
        allowed = {*names, EVERY} if multi_label else {*names}
        if others := [name for name in self.thresholds if name not in allowed]:
            raise ValueError(f"threshold: there is no class {others[0]!r}; the classes are {listed(names)}")
        if not multi_label and len(self.thresholds) != 1:
            raise ValueError(
                "positive_class: where each image has one class, one class has a threshold; got "
                f"{len(self.thresholds)} ({listed(list(self.thresholds))})"
            )

    @property
    def positive(self) -> str:
        """The class that has the threshold, of a problem of one class for each image."""
        (name,) = self.thresholds
        return name

    def values(self, names: Sequence[str]) -> np.ndarray:
        """(classes,) the threshold of each label of a multi-label problem."""
        usual = USUAL if EVERY in names else self.thresholds.get(EVERY, USUAL)  # a label may be called so
        return np.array([self.thresholds.get(name, usual) for name in names])

    def decide(self, scores: np.ndarray, names: Sequence[str], multi_label: bool) -> list[str] | list[list[str]]:
        """The class of each image or, for a multi-label problem, its classes.

        One class for each image: the one with the threshold where its score is at least that, else the best of the
        others (of equal ones the first). Several: all with a score of at least their threshold, none if there is none.

        Args:
            scores: (images, classes), probabilities: softmax, or sigmoid if `multi_label`.
            names: of the classes, in the order of the scores.
            multi_label: whether an image may have several classes.

        Raises:
            ValueError: naming `threshold` or `positive_class` (see `check`), or `scores`, if they are not of these
                classes or one is not in [0, 1].
        """
        self.check(names, multi_label)
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != len(names):
            raise ValueError(f"scores: expected (images, {len(names)}), got {scores.shape}")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("scores: expected probabilities in [0, 1]; some are not, or not a number")
        if multi_label:
            chosen = scores >= self.values(names)
            return [[name for name, there in zip(names, row, strict=True) if there] for row in chosen]
        positive = list(names).index(self.positive)
        others = scores.copy()
        others[:, positive] = -1
        best = np.where(scores[:, positive] >= self.thresholds[self.positive], positive, others.argmax(1))
        return [names[index] for index in best]


# What users type


def parse_threshold(text: str) -> float | str:
    """`0.37` as a number; `f1` and `fpr=0.05` as they are: the threshold with the best F1, or with the highest recall
    among those that give a false alarm for at most that share of the images without the class.

    Raises:
        ValueError: naming `threshold`, if it is neither.
    """
    kind, number = (FALSE_ALARMS, text.removeprefix(FALSE_ALARMS)) if text.startswith(FALSE_ALARMS) else ("", text)
    if text == F1:
        return F1
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:  # nor NaN
        raise ValueError(f"threshold: expected a number in [0, 1], f1, or fpr= with one (fpr=0.05), got {text!r}")
    return f"{kind}{value:g}" if kind else value


def false_alarm_limit(rule: str) -> float | None:
    """The number of `fpr=...`; `None` for another rule."""
    return float(rule.removeprefix(FALSE_ALARMS)) if rule.startswith(FALSE_ALARMS) else None


def check_positive_class(
    positive_class: str | None, threshold: str | None, problem_type: str | None, names: Sequence[str] | None = None
):
    """Refuse a positive class or a threshold that the problem has no use for, or lacks.

    Args:
        positive_class, threshold: as given; `None` where not.
        problem_type: of a configuration.
        names: of the classes, if they are known yet.

    Raises:
        ValueError: naming `positive_class` or `threshold`.
    """
    kind = problem_type or SINGLE
    if threshold is None:
        if positive_class is not None:
            raise ValueError("positive_class: is the class that --threshold is of; give that, too")
        return
    if kind == REGRESSION:
        raise ValueError("threshold: is for classes; a regression has none, leave it out")
    if kind == MULTI:
        if positive_class is not None:
            raise ValueError(
                "positive_class: in a multi-label problem each label has a threshold of its own; leave it out"
            )
        return
    there = "" if names is None else f"; the classes are {listed(names)}"
    if positive_class is None:
        raise ValueError(f"positive_class: name the class that --threshold is of{there}")
    if names is not None and positive_class not in names:
        raise ValueError(f"positive_class: there is no class {positive_class!r}{there}")


def given_decision(
    threshold: str | None, positive_class: str | None, names: Sequence[str], problem_type: str | None
) -> DecisionRule | None:
    """The decision by a number that a user typed; `None` without one. Of a multi-label problem it is that of every
    label.

    Raises:
        ValueError: as `parse_threshold` and `check_positive_class`, and naming `threshold` if it is a rule, for which
            there must be labelled images.
    """
    check_positive_class(positive_class, threshold, problem_type, names)
    if threshold is None:
        return None
    value = parse_threshold(threshold)
    if isinstance(value, str):
        raise ValueError(
            f"threshold: {value} chooses one on labelled images, as run_finetune.py --threshold does; give a number"
        )
    if positive_class is None and EVERY in names:
        raise ValueError(f"threshold: a label is called {EVERY!r}, which stands for all of them; rename it")
    return DecisionRule({EVERY if positive_class is None else positive_class: value})


def listed(names: Sequence[str]) -> str:
    """The first names in one line."""
    return ", ".join(names[:MOST_NAMED]) + (f", ... ({len(names)} in all)" if len(names) > MOST_NAMED else "")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
