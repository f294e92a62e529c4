"""The tab that shows the scores of a classifier, and its decision by the threshold that it keeps or by another one."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..analysis.comparison import NamedModel
from ..arguments.data import MULTI, REGRESSION, SINGLE
from ..evaluation.decisions import EVERY, USUAL, DecisionRule
from ..evaluation.thresholds import probabilities
from ..inference.prediction import problem_type_of
from .uploads import SHOWN_IMAGE, answer, as_seen, note


MOST_SHOWN = 12  # classes as bars
BEST, ALL = "none (highest score)", "all labels"  # choices in place of a class


@torch.inference_mode()
def scores_of(named: NamedModel, pixel_values: torch.Tensor) -> np.ndarray:
    """(classes,) of one image (1, channels, height, width): softmax, or sigmoid of a multi-label problem; of a
    regression the values as they are."""
    logits = named.model(pixel_values).logits.float().cpu().numpy()
    kind = problem_type_of(named.model.config)
    return (logits if kind == REGRESSION else probabilities(logits, kind == MULTI))[0]


def kept_rule(named: NamedModel) -> DecisionRule | None:
    """The decision that a model keeps.

    Raises:
        ValueError: naming `decision` or `threshold`, if its configuration holds one that is not for its classes.
    """
    rule, kind = DecisionRule.from_config(named.model.config), problem_type_of(named.model.config)
    if rule is not None and kind == REGRESSION:
        raise ValueError(f"decision: {named.name} is a regression, which has no threshold")
    if rule is not None:
        rule.check(named.classes, kind == MULTI)
    return rule


def scores_as_html(names: Sequence[str], scores: np.ndarray, kind: str, rule: DecisionRule | None, kept: bool) -> str:
    """Decision, how it was made, and the scores as bars, with a line at each threshold.

    Args:
        names: of the classes.
        scores: (classes,) of `scores_of`.
        kind: the problem type.
        rule: the thresholds; `None` if the highest score decides.
        kept: whether these are those that the model keeps.
    """
    if kind == REGRESSION:
        values = [f"{name}: {value:.4g}" for name, value in zip(names, scores.tolist(), strict=True)]
        lines = [f"{scores[0]:.4g}"] if len(scores) == 1 else values
        return "".join(f'<div class="a2mim-decision">{html.escape(line)}</div>' for line in lines) + note(
            "the predicted value, in the unit of the targets it was trained on"
        )
    chosen: Any  # names
    if kind == MULTI:
        rule = rule or DecisionRule({EVERY: USUAL})
        thresholds = rule.values(names).tolist()
        (chosen,) = rule.decide(scores[None], names, True)
    elif rule is not None:
        thresholds = [rule.thresholds.get(name) for name in names]
        chosen = rule.decide(scores[None], names, False)
    else:
        thresholds, chosen = [None] * len(names), [names[int(scores.argmax())]]
    order = np.argsort(-scores, kind="stable").tolist()
    shown = [i for i in order if names[i] in chosen or (thresholds[i] is not None and kind != MULTI)]
    shown = sorted({*shown[:MOST_SHOWN], *order[:MOST_SHOWN]}, key=order.index)
    bars = "".join(_bar(names[i], float(scores[i]), thresholds[i], names[i] in chosen) for i in shown)
    rest = f"and {len(names) - len(shown)} classes with lower scores" if len(shown) < len(names) else ""
    return (
        f'<div class="a2mim-decision">{html.escape(", ".join(chosen)) or "no label"}</div>'
        + note(explained(names, scores, kind, rule, kept))
        + f'<div class="a2mim-bars">{bars}</div>'
        + (note(rest) if rest else "")
    )


def explained(names: Sequence[str], scores: np.ndarray, kind: str, rule: DecisionRule | None, kept: bool) -> str:
    """How a decision was made, in a sentence."""
    how = "a threshold tried here"
    if kept and rule is not None:
        how = "the threshold that the model keeps"
        if rule.rule is not None:
            how += f", chosen by {rule.rule}" + (f" on {rule.images:,} images" if rule.images else "")
    if kind == MULTI:
        if kept and rule is not None and rule.thresholds == {EVERY: USUAL} and rule.rule is None:
            return f"labels with a score of at least {USUAL}; the model keeps no thresholds"
        which = how.replace("a threshold", "thresholds").replace("the threshold", "the thresholds")
        return f"labels with a score of at least their threshold: {which}"
    if rule is None:
        return "the class with the highest score" + ("; the model keeps no threshold" if kept else "")
    positive, threshold = rule.positive, rule.thresholds[rule.positive]
    score = float(scores[list(names).index(positive)])
    if score >= threshold:
        return f"{positive} has a score of {score:.3f}, at least {threshold:.3f} ({how})"
    return f"{positive} has a score of {score:.3f}, below {threshold:.3f} ({how}); the best of the other classes"


def _bar(name: str, score: float, threshold: float | None, chosen: bool) -> str:
    tick = "" if threshold is None else f'<div class="tick" style="left: {100 * threshold:.2f}%"></div>'
    return (
        f'<div class="name{" chosen" if chosen else ""}">{html.escape(name)}</div>'
        f'<div class="track"><div class="fill" style="width: {100 * score:.2f}%"></div>{tick}</div>'
        f'<div class="{"chosen" if chosen else "other"}">{score:.3f}</div>'
    )


class ClassifyTab:
    """What is shown below "Classify".

    Args:
        models: classifiers by name, the first one chosen.

    Raises:
        ValueError: naming `decision` or `threshold`, if a model keeps a decision that is not for its classes.
    """

    name = "Classify"

    def __init__(self, models: Mapping[str, NamedModel]):
        self.models = models
        self.kept = {name: kept_rule(named) for name, named in models.items()}

    def build(self, upload: Any):
        """As `ReconstructTab.build`."""
        import gradio as gr

        names = list(self.models)
        scores = gr.State()
        tried = gr.State()  # thresholds in place of those that the model keeps; None: these
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                decision = gr.HTML(note("Upload an image."), padding=False)
            with gr.Column(min_width=220):
                model = gr.Dropdown(names, value=names[0], label="model", elem_id="classify-model")
                which = gr.Dropdown(**self.choices(names[0]), label="class with a threshold", interactive=True)
                threshold = gr.Slider(0, 1, step=0.001, label="threshold", **self.threshold(names[0]))
                back = gr.Button("As the model keeps it", visible=which.visible, size="sm")
                seen = gr.Image(label="as the model sees it", **SHOWN_IMAGE)

        def change_model(file: str | None, name: str):
            visible = self.choices(name)["visible"]
            controls = gr.update(**self.choices(name)), gr.update(**self.threshold(name)), gr.update(visible=visible)
            return *controls, None, *self.run(file, name, None)

        def change_class(name: str, label: str, values: Any, thresholds: dict | None):
            if label == BEST:
                thresholds = {}
            elif problem_type_of(self.models[name].model.config) == SINGLE:
                thresholds = {label: self.threshold(name, label)["value"]}
            return (
                gr.update(**self.threshold(name, label, thresholds)),
                thresholds,
                self.decided(name, values, thresholds),
            )

        def change_threshold(name: str, label: str, value: float, values: Any, thresholds: dict | None):
            thresholds = self.with_threshold(name, label, value, thresholds)
            return thresholds, self.decided(name, values, thresholds)

        def reset(name: str, values: Any):
            return (
                gr.update(**self.choices(name)),
                gr.update(**self.threshold(name)),
                None,
                self.decided(name, values, None),
            )

        # One after the other, so that what is shown is of the last change.
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_id": self.name, "concurrency_limit": 1}
        outputs = [scores, seen, decision]
        upload.change(self.run, [upload, model, tried], outputs, **private)
        model.change(change_model, [upload, model], [which, threshold, back, tried, *outputs], **private)
        which.input(change_class, [model, which, scores, tried], [threshold, tried, decision], **private)
        threshold.input(
            change_threshold,
            [model, which, threshold, scores, tried],
            [tried, decision],
            trigger_mode="always_last",
            show_progress="hidden",
            **private,
        )
        back.click(reset, [model, scores], [which, threshold, tried, decision], **private)

    def choices(self, name: str) -> dict[str, Any]:
        """The classes of a model that may have a threshold, as fields of a dropdown."""
        named, kept = self.models[name], self.kept[name]
        kind = problem_type_of(named.model.config)
        choices = [ALL if kind == MULTI else BEST, *named.classes]
        value = kept.positive if kind == SINGLE and kept is not None else choices[0]
        return {"choices": choices, "value": value, "visible": kind != REGRESSION}

    def threshold(self, name: str, label: str | None = None, thresholds: dict | None = None) -> dict[str, Any]:
        """The threshold of a class, as fields of a slider, which is off where there is none.

        Args:
            label: of `choices`; the one chosen first, if not given.
            thresholds: that are tried.
        """
        choices = self.choices(name)
        label, kept = label or choices["value"], self.kept[name]
        values = thresholds if thresholds is not None else {} if kept is None else kept.thresholds
        value = values.get(EVERY if label == ALL else label, values.get(EVERY, USUAL))
        return {"value": value, "interactive": label != BEST, "visible": choices["visible"]}

    def with_threshold(self, name: str, label: str, value: float, thresholds: dict | None) -> dict[str, float]:
        """Thresholds to try when that of one class is moved: beside it, those of the others stay in a multi-label
        problem, and one of all labels replaces them."""
        if problem_type_of(self.models[name].model.config) == SINGLE:
            return {label: value}
        if label == ALL:
            return {EVERY: value}
        kept = self.kept[name]
        before = thresholds if thresholds is not None else {} if kept is None else kept.thresholds
        return {**before, label: value}

    def decided(self, name: str, scores: Sequence[float] | None, thresholds: dict | None) -> str:
        """Decision and scores as HTML, by thresholds that are tried (`{}`: by the highest score) or, without any,
        those that the model keeps."""
        if scores is None:
            return note("Upload an image.")
        named = self.models[name]
        rule = self.kept[name] if thresholds is None else DecisionRule(thresholds) if thresholds else None
        kind = problem_type_of(named.model.config)
        return scores_as_html(named.classes, np.array(scores), kind, rule, thresholds is None)

    def run(self, file: str | None, name: str, thresholds: dict | None) -> list[Any]:
        """Scores, what the model sees, and the decision or what is wrong as HTML."""

        def shown(file: str) -> list[Any]:
            named = self.models[name]
            pixels, image = as_seen(named.model, named.transform, file)
            scores = scores_of(named, pixels).tolist()
            return [scores, image, self.decided(name, scores, thresholds)]

        return answer(file, shown, [None, None])
