"""The decision threshold of a classifier: which one a run was asked for, what it gives on the images that were
evaluated on, where it is kept, and the curves of all thresholds."""

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...arguments.data import MULTI, REGRESSION, SINGLE
from ...arguments.model import ClassifierArguments
from ...data.splits import NO_VALIDATION
from ...evaluation.class_figures import MOST_LISTED
from ...evaluation.curves import plot_precision_recall_curve, plot_roc_curve, shown_classes
from ...evaluation.decisions import (
    EVERY,
    FIELD,
    DecisionRule,
    check_positive_class,
    given_decision,
    listed,
    parse_threshold,
)
from ...evaluation.metrics import log_odds
from ...evaluation.thresholds import ThresholdFigures, choose_threshold, figures_at, probabilities
from ...export.filenames import PRECISION_RECALL, RECORD_FILE, ROC
from ...export.folder import say_outdated, write_card
from ...export.record import read_record
from ...models.classifier import A2MIMForImageClassification
from ...training.checkpoints import MANIFEST
from ...utils.files import write_json
from .labelled_images import LabelledImages


logger = logging.getLogger("a2mim")

# The figures of `ThresholdFigures` as metrics.
METRICS = {
    "precision": "eval_precision_at_threshold",
    "recall": "eval_recall_at_threshold",
    "f1": "eval_f1_at_threshold",
    "false_alarm_rate": "eval_false_alarm_rate",
}


@dataclass(frozen=True)
class Decision:
    """A rule to decide by, and what it gives on the images that were evaluated on.

    Args:
        rule: the thresholds.
        figures: by class, of the class with the threshold or of each label of a multi-label problem; none without
            images.
    """

    rule: DecisionRule
    figures: dict[str, ThresholdFigures] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Figures by the names of metrics; of several labels the means over those that have the figure, and the
        threshold only if all have the same."""
        thresholds = {found.threshold for found in self.figures.values()}
        values = {"eval_threshold": thresholds.pop()} if len(thresholds) == 1 else {}
        for name, metric in METRICS.items():
            there = [value for found in self.figures.values() if (value := getattr(found, name)) is not None]
            values |= {metric: float(np.mean(there))} if there else {}
        return values

    def record(self) -> dict:
        """For the training record, from which the card is written."""
        return {**self.rule.to_config(), "figures": {name: found.record() for name, found in self.figures.items()}}

    def log(self):
        """Say which threshold there is, and what it gives."""
        how = f" (chosen by {self.rule.rule} on {self.rule.images:,} images)" if self.rule.rule else ""
        for name, found in list(self.figures.items())[:MOST_LISTED]:
            values = {"precision": found.precision, "recall": found.recall, "F1": found.f1}
            values["false-alarm rate"] = found.false_alarm_rate
            shown = ", ".join(f"{what} {value:.4f}" for what, value in values.items() if value is not None)
            logger.info("threshold of %s: %r%s: %s on %d images", name, found.threshold, how, shown, found.images)
        if len(self.figures) > MOST_LISTED:
            logger.info("thresholds of %d further labels: see config.json", len(self.figures) - MOST_LISTED)
        if not self.figures:
            logger.info("threshold: %s, measured on no images", self.rule.thresholds)


# What was asked for


def check_request(model_args: ClassifierArguments, problem_type: str, seeds: Sequence[int] | None):
    """Refuse a threshold that cannot be read, or that this kind of run has no use for; before the images are read.

    Raises:
        ValueError: naming `threshold` or `positive_class`.
    """
    threshold, positive = model_args.threshold, model_args.positive_class
    if threshold is not None:
        parse_threshold(threshold)
        why = {"--knn": model_args.knn and "which exports no classifier", "--seeds": seeds and "whose models differ"}
        for flag, reason in why.items():
            if reason:
                raise ValueError(f"threshold: is not for {flag}, {reason}; leave it out")
    if threshold is None or problem_type != SINGLE:  # what lacks is said when there are names of classes to list
        check_positive_class(positive, threshold, problem_type)


def check_choosable(model_args: ClassifierArguments, images: LabelledImages):
    """Refuse a threshold that these images do not fit, before anything is trained.

    Raises:
        ValueError: naming `threshold` or `positive_class`.
    """
    threshold, positive, names = model_args.threshold, model_args.positive_class, images.names
    check_positive_class(positive, threshold, images.problem_type, names)
    if threshold is None or isinstance(parse_threshold(threshold), float):
        return
    if images.validation is None:
        raise ValueError(f"threshold: {threshold} is chosen on images with labels; {NO_VALIDATION.partition(': ')[2]}")
    counts, total = images.counts(images.validation), len(images.validation)
    candidates = names if images.problem_type == MULTI else [positive]
    if counts is not None and not any(0 < counts[names.index(name)] < total for name in candidates):
        of = "any label" if positive is None else positive
        raise ValueError(
            f"threshold: {threshold} needs images of the class and images without it to evaluate on; of {total:,}, "
            f"there are not both for {of}"
        )


# What comes of it


def decision_on(
    prediction,
    names: Sequence[str],
    problem_type: str,
    threshold: str | None,
    positive_class: str | None,
    own: DecisionRule | None = None,
) -> Decision | None:
    """The decision that was asked for, chosen on a Trainer's prediction if it is by a rule; `None` if there is none.

    Args:
        prediction: logits and labels of the images that were evaluated on.
        names: of the classes.
        problem_type: what the labels are.
        threshold, positive_class: as given.
        own: of the model, where none is given.

    Raises:
        ValueError: naming `threshold` or `positive_class`, if it does not fit, or nothing can be chosen.
    """
    if problem_type == REGRESSION or (threshold is None and own is None):
        return None
    several = problem_type == MULTI
    scores, truths = probabilities(prediction.predictions, several), truths_of(prediction, problem_type)
    if threshold is None:
        rule = own
    elif isinstance(parse_threshold(threshold), float):
        rule = given_decision(threshold, positive_class, names, problem_type)
    else:
        check_positive_class(positive_class, threshold, problem_type, names)
        rule = _chosen(scores, truths, names, str(parse_threshold(threshold)), positive_class)
    rule.check(names, several)
    values = dict(zip(names, rule.values(names).tolist(), strict=True)) if several else rule.thresholds
    at = {name: names.index(name) for name in values}  # type: ignore[attr-defined]
    return Decision(
        rule, {name: figures_at(scores[:, at[name]], truths[:, at[name]], values[name]) for name in values}
    )


def _chosen(
    scores: np.ndarray, truths: np.ndarray, names: Sequence[str], rule: str, positive_class: str | None
) -> DecisionRule:
    if positive_class is not None:
        place = list(names).index(positive_class)
        found = choose_threshold(scores[:, place], truths[:, place], rule)
        return DecisionRule({positive_class: found.threshold}, rule, len(scores))
    thresholds, without = {}, {}
    for place, name in enumerate(names):
        try:
            thresholds[name] = choose_threshold(scores[:, place], truths[:, place], rule).threshold
        except ValueError as error:
            without[name] = str(error).removeprefix("threshold: ")
    if not thresholds:
        raise ValueError(f"threshold: no label has one by {rule}: {next(iter(without.values()))}")
    for name, why in without.items():
        logger.warning("threshold of %s: stays 0.5: %s", name, why)
    return DecisionRule(thresholds, rule, len(scores))


def truths_of(prediction, problem_type: str) -> np.ndarray:
    """(images, classes) whether each image of a Trainer's prediction is of a class."""
    labels = np.asarray(prediction.label_ids)
    if problem_type == MULTI:
        return labels > 0.5
    return labels[:, None] == np.arange(np.shape(prediction.predictions)[1])


# Where it is kept


def without_decision(config):
    """Take the thresholds of other weights out of a configuration, which is said in the log."""
    if getattr(config, FIELD, None) is not None:
        say_dropped()
        delattr(config, FIELD)


def say_dropped():
    """Say in the log that the thresholds of the model that training starts from are not those of the new one."""
    logger.info(
        "decision: the model that training starts from has thresholds, which are those of its weights and are "
        "dropped; --threshold chooses one for the new weights"
    )


def keep_decision(folder: str | Path, rule: DecisionRule):
    """Write a decision to the config.json of an exported folder, whose other keys stay as they are."""
    path = Path(folder, "config.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**data, FIELD: rule.to_config()}, indent=2)


def settle(decision: Decision, model, source: str, output_dir: str):
    """After an evaluation without training: keep a decision in the model's own folder, if that is `output_dir`, or say
    how to decide by it.

    Args:
        decision: that was asked for.
        model: that was evaluated.
        source: the folder or repository that it is from.
        output_dir: of the evaluation.
    """
    own, output = Path(source), Path(output_dir)
    checkpoint = Path(own, MANIFEST).is_file()
    if own.is_dir() and output.is_dir() and own.samefile(output) and not checkpoint:
        keep_decision(own, decision.rule)
        logger.info("threshold: kept in %s, as its key %s; all else of it is as it was", own / "config.json", FIELD)
        say_outdated(own)
        record = read_record(str(own))
        if record and isinstance(model, A2MIMForImageClassification):
            write_card(model, own, {**record, FIELD: decision.record()}, record.get("repo_id"))
            logger.info("threshold: written into README.md and %s", RECORD_FILE)
        elif (own / "README.md").is_file():
            logger.info("threshold: README.md does not tell of it, as there is no %s to write it from", RECORD_FILE)
        return
    why = ", a checkpoint, whose files have checksums" if checkpoint else ""
    several = model.config.problem_type == MULTI
    thresholds = decision.rule.thresholds
    if several and EVERY not in thresholds:
        logger.info(
            "threshold: not kept in %s%s; a command takes one number, and these labels have one each: %s; a folder "
            "keeps them if it is --output_dir, too",
            source,
            why,
            json.dumps(thresholds, ensure_ascii=False),
        )
        return
    ((name, value),) = thresholds.items()
    command = ["a2mim", "predict", source, "IMAGES", "--out", "predictions.csv", "--threshold", repr(value)]
    command += [] if several else ["--positive_class", name]
    logger.info("threshold: not kept in %s%s; to decide by it: %s", source, why, shlex.join(command))


# Curves


def draw_curves(
    folder: str, prediction, names: Sequence[str], problem_type: str, figures: dict[str, ThresholdFigures]
):
    """Write `roc_curve.png` and `precision_recall_curve.png` for a Trainer's prediction, with the thresholds marked.
    Of two classes only the one with a threshold is drawn, if one has it. Classes without a curve are named in the log.

    Args:
        folder: to write to.
        prediction: logits and labels.
        names: of the classes.
        problem_type: what the labels are.
        figures: of thresholds, by class (`Decision.figures`).
    """
    several = problem_type == MULTI
    logits = np.asarray(prediction.predictions, dtype=np.float64)
    scores, truths, shown = logits if several else log_odds(logits), truths_of(prediction, problem_type), list(names)
    if not several and len(shown) == 2 and figures:
        kept = [i for i, name in enumerate(shown) if name in figures]
        scores, truths, shown = scores[:, kept], truths[:, kept], [shown[i] for i in kept]
    _, without = shown_classes(scores, truths)
    if without:
        logger.info(
            "no ROC and precision-recall curve of %s: no images of both kinds, or scores that are not finite",
            listed([shown[i] for i in without]),
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    for draw, name in ((plot_roc_curve, ROC), (plot_precision_recall_curve, PRECISION_RECALL)):
        draw(scores, truths, shown, Path(folder, name), figures)
