"""A classifier, or a regression, over images: a table with the scores of each image, and what is decided on.

The columns of a classifier are `file`, `class`, `score` (of that class; of several the highest of all), `score_NAME`
for each class, and `error`; of a regression `file`, `value` (`value_NAME`, if there are several) and `error`. No name
of a class can be taken for another column.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ..analysis.comparison import NamedModel, ProcessorTransform, load_model
from ..arguments.data import MULTI, REGRESSION, SINGLE
from ..data.fingerprints import fingerprint_of_images
from ..data.sources import RowSource
from ..evaluation.decisions import EVERY, USUAL, DecisionRule, given_decision, parse_threshold
from ..evaluation.thresholds import probabilities
from .images import InferenceImages
from .models import TrainedModel, unique_names
from .options import RunOptions, ready
from .parts import PartedTable, check_out, rows_in_part
from .running import ERROR, FILE, fingerprint_of_model, process_state, run_over


logger = logging.getLogger("a2mim")

FORMATS = (".csv", ".parquet")
CLASS, SCORE, VALUE = "class", "score", "value"
JOIN = ";"  # between the classes of an image in CSV
METADATA = "a2mim"  # key of parquet's metadata


class Prediction(NamedTuple):
    """What was written.

    Args:
        path: of the table.
        images: how many.
        broken: how many of them could not be read.
        counts: how many images of each class, all classes among them; of regressions nothing.
    """

    path: Path
    images: int
    broken: int
    counts: dict[str, int]


class Decisions:
    """From logits to the columns of the table.

    Args:
        names: of the classes, each once.
        problem_type: of the configuration.
        rule: from which score on a class is decided for; `None` for the class with the highest score.
        lists: whether the classes of an image may be a list, which CSV has none of.
    """

    def __init__(self, names: Sequence[str], problem_type: str, rule: DecisionRule | None, lists: bool = False):
        self.names, self.problem_type, self.rule, self.lists = list(names), problem_type, rule, lists

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of what `of` gives."""
        number = pa.float32()
        if self.problem_type == REGRESSION:
            return dict.fromkeys(self._values, number)
        kind = pa.list_(pa.string()) if self.problem_type == MULTI and self.lists else pa.string()
        return {CLASS: kind, SCORE: number, **{f"{SCORE}_{name}": number for name in self.names}}

    @property
    def _values(self) -> list[str]:
        return [VALUE] if len(self.names) == 1 else [f"{VALUE}_{name}" for name in self.names]

    def of(self, logits: torch.Tensor) -> dict[str, list]:
        """The columns of images.

        Args:
            logits: (images, classes), float32.
        """
        if self.problem_type == REGRESSION:
            return dict(zip(self._values, logits.T.tolist(), strict=True))
        multi = self.problem_type == MULTI
        scores = probabilities(logits.numpy(), multi)
        columns = {f"{SCORE}_{name}": scores[:, i].tolist() for i, name in enumerate(self.names)}
        if multi:
            assert self.rule is not None
            chosen = self.rule.decide(scores, self.names, True)
            return {CLASS: chosen if self.lists else [JOIN.join(c) for c in chosen], SCORE: scores.max(1), **columns}
        best = [self.names[i] for i in scores.argmax(1)] if self.rule is None else None
        classes: Any = best if self.rule is None else self.rule.decide(scores, self.names, False)
        own = [columns[f"{SCORE}_{name}"][i] for i, name in enumerate(classes)]
        return {CLASS: classes, SCORE: own, **columns}


def problem_type_of(config: Any) -> str:
    """Of a configuration, as transformers takes it: one output is a number, several are classes."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)


def find_decision(
    model: TrainedModel, names: Sequence[str], threshold: str | None, positive_class: str | None
) -> tuple[DecisionRule | None, str]:
    """The rule to decide by, and where it is from, in words: what the user gives, else what the configuration holds,
    else the highest score; for multi-label problems 0.5.

    Raises:
        ValueError: naming `threshold` or `positive_class`, if they are none for this model.
    """
    kind = problem_type_of(model.config)
    if threshold is not None and isinstance(parse_threshold(threshold), str):
        raise ValueError(
            f"threshold: {threshold} chooses one on labelled images, of which there are none here: "
            f"`a2mim finetune --eval_only --threshold {threshold}` does, and keeps it with the model; or give a number"
        )
    given = given_decision(threshold, positive_class, names, kind)
    kept = DecisionRule.from_config(model.config)
    if given is not None:
        return given, "as given" + ("" if kept is None else f" (the model's own, {_words(kept)}, is not used)")
    if kept is not None and kind != REGRESSION:
        try:
            kept.check(names, kind == MULTI)
        except ValueError as error:
            raise ValueError(f"decision: that of {model.name} does not fit it: {error}; give --threshold") from error
        how = "" if kept.rule is None else f", chosen by {kept.rule} on {kept.images:,} images"
        return kept, f"the model's own{how}"
    if kind == MULTI:
        return DecisionRule({EVERY: USUAL}), "the usual one, as the model holds none"
    return None, ""


def _words(rule: DecisionRule) -> str:
    return ", ".join(
        f"{'every label' if name == EVERY else name} from {value:.6g} on" for name, value in rule.thresholds.items()
    )


def predict_classes(
    model: TrainedModel,
    source: RowSource,
    out: Path,
    options: RunOptions,
    threshold: str | None = None,
    positive_class: str | None = None,
    about: dict | None = None,
) -> Prediction | None:
    """Write the table of a classifier or a regression, as at the top of this module. What an earlier run that was
    killed has written is kept.

    Args:
        model: the classifier.
        source: the images.
        out: `.csv`, or `.parquet`, where the classes of a multi-label problem are lists and the metadata (`a2mim`,
            JSON) holds the model's name, its classes and the decision.
        options: how to run it.
        threshold, positive_class: as users give them.
        about: what tells this run from another beside model and images.

    Returns:
        What was written; `None` in all processes but the main one.

    Raises:
        ValueError: naming the argument.
    """
    check_out(out, FORMATS, options.overwrite)
    kind, names = problem_type_of(model.config), unique_names(model.config)
    rule, origin = find_decision(model, names, threshold, positive_class)
    decisions = Decisions(names, kind, rule, lists=out.suffix == ".parquet")
    if kind == REGRESSION:
        shown = "none: a regression" + ("" if model.config.problem_type else ", as the model has one output")
    else:
        shown = "the class with the highest score" if rule is None else f"{_words(rule)} ({origin})"
    logger.info("decision: %s", shown)
    if kind == MULTI and not decisions.lists and (odd := [name for name in names if JOIN in name]):
        logger.warning("class: %r holds the %s that stands between classes in CSV; parquet has lists", odd[0], JOIN)
    given: dict[str, Any] = {"value_range": model.value_range, "pages": model.pages, **model.hub_kwargs}
    named = load_model(model.source, kind="classifier", **given)
    network = ready(named.model, options)
    images = InferenceImages(source, named.transform)
    kept = {"decision": None if rule is None else rule.to_config(), "classes": names, "problem_type": kind}
    identity = {
        "model": fingerprint_of_model(network),
        "transform": describe_transform(named),
        "images": fingerprint_of_images(source, times=True),
        "dtype": options.dtype,
        **kept,
        **(about or {}),
    }
    with process_state(options.device).main_process_first():
        table = PartedTable(out, len(images), identity, rows_in_part(len(images)), options.overwrite, FORMATS)

    def run(pixels: torch.Tensor, rows: Sequence[int]) -> dict[str, Any]:
        with options.running():
            logits = network(pixel_values=pixels.to(options.place)).logits.float().cpu()
        check_finite(logits, options, [images.name(row) for row in rows])
        return decisions.of(logits)

    metadata = {METADATA: json.dumps({"model": model.name, "dtype": options.dtype, **kept})}
    if not run_over(images, table, run, decisions.columns, options.batch_size, options.workers, metadata):
        return None
    counts, broken = Counter(dict.fromkeys([] if kind == REGRESSION else names, 0)), 0
    for part in table:
        broken += len(part) - part[ERROR].null_count
        if kind != REGRESSION:
            counts.update(_classes(part, decisions))
    return Prediction(table.finish(), len(images), broken, dict(counts))


def _classes(part: pa.Table, decisions: Decisions) -> list[str]:
    """All classes that were decided on."""
    values = part[CLASS].to_pylist()
    if decisions.problem_type != MULTI:
        return [value for value in values if value is not None]
    if decisions.lists:
        return [name for value in values if value is not None for name in value]
    thresholds = decisions.rule.values(decisions.names)
    scores = np.array([part[f"{SCORE}_{name}"].to_pylist() for name in decisions.names], dtype=np.float64)
    chosen = (scores >= thresholds[:, None]).sum(1)  # NaN, of a broken image, is not
    return [name for name, count in zip(decisions.names, chosen, strict=True) for _ in range(count)]


def check_finite(values: torch.Tensor, options: RunOptions, names: Sequence[str]):
    """Refuse NaN and infinities.

    Args:
        values: (images, ...).
        options: which say what the model was run in.
        names: of the images.

    Raises:
        ValueError: naming `dtype` and the first image.
    """
    bad = ~values.isfinite().flatten(1).all(1)
    if bad.any():
        hint = "float16 overflows where bfloat16 does not" if options.dtype == "float16" else "its weights are broken"
        raise ValueError(
            f"dtype: the model gives no numbers (NaN or infinity) for {names[int(bad.nonzero()[0])]} in "
            f"{options.dtype}; {hint}"
        )


def describe_transform(named: NamedModel) -> str:
    """What tells one preparation of images from another."""
    transform: Any = named.transform
    if isinstance(transform, ProcessorTransform):
        return f"{transform.spec} " + json.dumps(transform.processor.to_dict(), sort_keys=True, default=str)
    return " ".join(f"{transform.spec} {transform.transform}".split())


__all__ = ["FILE", "Decisions", "Prediction", "find_decision", "predict_classes", "problem_type_of"]
