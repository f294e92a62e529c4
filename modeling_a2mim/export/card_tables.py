"""The tables of a model card: how the model was made, and what its evaluation gave (see `record`)."""

import itertools

from ..evaluation.class_figures import class_figure, class_rows
from ..evaluation.decisions import EVERY
from ..pretrained import MASKED
from ..utils.tables import markdown_table
from .monitor import KINDS


SPELLED = {  # the names of `evaluation.baselines` in words
    "masked_psnr": "PSNR of masked pixels (dB)",
    "masked_l1": "L1 error of masked pixels (of pixels in [0, 1])",
    "mean_fill_psnr": "PSNR of the mean colour in their place (dB)",
    "mean_fill_l1": "L1 error of the mean colour",
    "blur_psnr": "PSNR of a blur of the visible pixels (dB)",
    "blur_l1": "L1 error of that blur",
    "skipped_images": "broken images, which were left out",
    "knn_accuracy": "leave-one-out k-NN accuracy, by cosine",
    "rankme": "RankMe, the effective rank of the features",
    "feature_std": "spread of the features (0: collapsed, 1: in all directions)",
    "feature_cosine": "mean cosine of two images (1: collapsed)",
}


# The same where each cell of the mask is predicted less its mean (`target="normalised"`).
OF_CELLS = {
    "masked_psnr": "PSNR of masked pixels, given the mean and deviation of each cell (dB)",
    "masked_l1": "L1 error of masked pixels, given the mean and deviation of each cell (of pixels in [0, 1])",
    "mean_fill_psnr": "PSNR of the mean colour of each cell in its place (dB)",
    "mean_fill_l1": "L1 error of the mean colour of each cell",
}


def run_facts(record: dict) -> list[tuple[str, object]]:
    """How the model was made, a row for each fact: (name, value), `None` for what is not recorded."""
    if "steps" not in record:
        return [("training", record.get("origin"))]
    schedule = f"{record['learning_rate']:g}, {record['lr_scheduler_type']}"
    if record["warmup_steps"] is not None:
        schedule += f", {record['warmup_steps']} steps of warm-up"
    seeds = f"{record['seed']}, of the data {record['data_seed']}"
    facts = [
        ("task", record.get("task")),
        _start(record),
        ("weights at the start", _loaded(record.get("weights"))),
        *_earlier_facts(record),
        ("changed since", "; ".join(record.get("changed") or ())),
        ("data", record.get("data")),
        ("labels", record.get("labels") or ""),
        ("images seen in a pass", None if record["images"] is None else f"{record['images']:,}"),
        ("steps", f"{record['steps']:,}" + ("" if record["epochs"] is None else f", {record['epochs']} passes")),
        ("batch", f"{record['total_batch_size']:,} images over {record['processes']} process(es)"),
        ("recipe", record.get("recipe") or ""),
        ("augmentation", record.get("augmentation") or ""),
        ("regularisation", ", ".join(f"{k} {v}" for k, v in (record.get("regularisation") or {}).items())),
        ("class weights", ", ".join(f"{name} {w:.4g}" for name, w in (record.get("class_weights") or {}).items())),
        ("exported weights", _best(record.get("best"))),
        ("crops", "" if record["crop_scale"] is None else f"{record['crop_scale']} of the area"),
        ("optimiser", f"{_optimizer(record)}, gradients clipped at {record['max_grad_norm']:g}"),
        ("learning rate", schedule),
        ("resumed with other settings", _resumed(record.get("resumed") or [])),
        ("precision", record["precision"]),
        ("seeds", seeds),
        ("hardware", record["hardware"]),
        ("versions", ", ".join(f"{name} {number}" for name, number in record["versions"].items())),
    ]
    if record["log"]:
        facts.append(("last loss", f"{record['log'][-1]['loss']:.4f} at step {record['log'][-1]['step']:,}"))
    return [(name, value) for name, value in facts if value != ""]


def _optimizer(record: dict) -> str:
    """The optimiser with the betas and the momentum that it has."""
    words = [record["optimizer"]]
    words += [f"betas {record['adam_betas']}"] if record.get("adam_betas") else []
    words += [f"momentum {record['momentum']:g}"] if record.get("momentum") is not None else []
    return ", ".join([*words, f"weight decay {record['weight_decay']:g}"])


def _start(record: dict) -> tuple[str, str]:
    """What the run began with: the model, in words, and its id on the Hub."""
    base = record.get("base_model")
    words = [record.get("start"), f"`{base}`" if base else None]
    name = "continued from" if record.get("task") == MASKED else "started from"
    return name, ", ".join(word for word in words if word) if record.get("start") else ""


def _loaded(weights: dict | None) -> str:
    """What became of the weights that a run began with."""
    if not weights:
        return ""
    lists = {name: ", ".join(f"`{one}`" for one in weights[name]) for name in ("adapted", "new", "left_over")}
    parts = [f"{name.replace('_', ' ')}: {text}" for name, text in lists.items() if text]
    return "; ".join([f"{weights['loaded']:,} of the encoder", *parts])


def _resumed(history: list[dict]) -> str:
    """`step 12: learning_rate 1e-05 instead of 0.001; ...`."""
    return "; ".join(
        f"step {entry['step']:,}: "
        + ", ".join(f"{name} {now} instead of {then}" for name, (then, now) in entry["changed"].items())
        for entry in history
    )


def _best(best: dict | None) -> str:
    return (
        "" if best is None else f"those of step {best['step']:,}, the best in {best['metric']} ({best['value']:.4g})"
    )


def _earlier_facts(record: dict) -> list[tuple[str, str | None]]:
    """A row for each run before this one, and the sums of the tasks that were trained for more than once."""
    earlier = record.get("earlier") or []
    rows = [(f"earlier run {i}" if len(earlier) > 1 else "earlier run", _run(run)) for i, run in enumerate(earlier, 1)]
    runs = [*earlier, record]
    least = "" if all("steps" in run for run in runs) else "at least "
    for task in dict.fromkeys(run.get("task") for run in runs if "steps" in run):
        same = [run for run in runs if run.get("task") == task and "steps" in run]
        if len(same) > 1:
            steps, epochs = sum(run["steps"] for run in same), [run.get("epochs") for run in same]
            passes = "" if None in epochs else f", {round(sum(epochs), 2):,} passes"
            rows.append((f"{task or 'trained'}, in all", f"{least}{steps:,} steps{passes}"))
    return rows


def _run(run: dict) -> str | None:
    if "steps" not in run:
        return run.get("origin")
    form = {
        "task": "{}",
        "method": "method {}",
        "steps": "{:,} steps",
        "epochs": "{:,} passes",
        "images": "{:,} images in a pass",
        "data": "data: {}",
        "total_batch_size": "batch {:,}",
        "learning_rate": "learning rate {:g}",
        "recipe": "recipe {}",
    }
    return ", ".join(text.format(run[name]) for name, text in form.items() if name in run)


def evaluation_section(record: dict, encoder: bool = False, cells: bool = False) -> str:
    """What was measured of a model, here or by the paper, as Markdown; what was not measured is said.

    Args:
        record: how the model was made.
        encoder: whether it is an encoder, whose features only a task can evaluate.
        cells: whether what it predicts of masked pixels is normalised in each cell of the mask.
    """
    parts, evaluation = [], record.get("evaluation")
    if evaluation:
        metrics = {name: value for name, value in evaluation.items() if name not in ("step", "images", "other_images")}
        metrics = {name: value for name, value in metrics.items() if value is not None}
        other = evaluation.get("other_images")
        by_class = class_rows(metrics, {} if other else record.get("evaluation_counts") or {})
        metrics = {name: value for name, value in metrics.items() if not (by_class and class_figure(name))}
        where = record.get("evaluated_on") or record.get("evaluation_data") or "images that were not trained on"
        if other:
            where = "other data than the run's own for evaluation"
        where = f"{evaluation['images']:,} images of {where}" if evaluation["images"] else where
        spelled = SPELLED | (OF_CELLS if cells else {})
        rows = [(spelled.get(name, name), _figure(value)) for name, value in metrics.items()]
        parts += [f"Measured on {where}, at step {evaluation['step']:,}:", markdown_table(("", ""), rows)]
        if by_class:
            parts.append(markdown_table(list(by_class[0]), (row.values() for row in by_class)))
        if record.get("evaluation_note"):
            parts.append(record["evaluation_note"])
    if record.get("decision"):
        parts.append(decision_section(record["decision"]))
    if record.get("measured"):
        parts.append(f"Measured {record['measured_on']}:")
        for columns, measured in itertools.groupby(record["measured"], key=tuple):
            parts.append(markdown_table(columns, (row.values() for row in measured)))
    if record.get("published"):
        columns = ("method", "architecture", "dataset", "metric", "value", "protocol")
        published = ([row[name] for name in columns] for row in record["published"])
        parts += [] if parts else ["Not evaluated here."]
        parts += ["These numbers are the paper's, not measured here:", markdown_table(columns, published)]
    parts = parts or ["Not evaluated."]
    if encoder and not record.get("measured"):
        parts.append("How well the features serve a task after fine-tuning or probing was not evaluated here.")
    return "\n\n".join(parts)


def decision_section(decision: dict) -> str:
    """By which threshold the model decides, and what that gives, as Markdown.

    Args:
        decision: `DecisionRule.to_config()`, with the `figures` of each class as `ThresholdFigures.record()`.
    """
    thresholds, rule, figures = decision["thresholds"], decision["rule"], decision.get("figures") or {}
    named = [((name == EVERY and "every label") or f"`{name}`", value) for name, value in thresholds.items()]
    shown = ", ".join(f"{name} from a score of {value:.4g} on" for name, value in named)
    how = f"chosen by the rule `{rule}` on {decision['images']:,} images" if rule else "given, not chosen on images"
    text = f"It decides for {shown} ({how}); `a2mim predict` does so, while transformers' `pipeline` does not."
    if rule:
        text += " The figures are of the images that it was chosen on, and so a little too good."
    columns = {"threshold": "threshold", "precision": "precision", "recall": "recall", "f1": "F1"}
    columns |= {"false_alarm_rate": "false-alarm rate", "positives": "images of it", "images": "images"}
    rows = [[name, *(_count_or_figure(found[key]) for key in columns)] for name, found in figures.items()]
    return "\n\n".join([text, *([markdown_table(("class", *columns.values()), rows)] if rows else [])])


def _count_or_figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else _figure(value)


def monitor_section(monitor: dict | None) -> str:
    """What was measured of the encoder while it learned, as Markdown; empty without it.

    Args:
        monitor: of the record (`monitor.monitor_record`).
    """
    if not monitor or not monitor["summary"]:
        return ""
    labels = f"{monitor['classes']:,} classes" if monitor["classes"] else "without labels"
    images = f"{monitor['images']:,} of {monitor['of']:,} images ({monitor['data'] or 'not recorded which'}; {labels})"
    rows = [
        (
            SPELLED.get(name, name),
            *(f"{_figure(points[kind]['value'])} (step {points[kind]['step']:,})" for kind in KINDS),
        )
        for name, points in monitor["summary"].items()
    ]
    table = markdown_table(("while it learned", *KINDS), rows)
    # Older records do not say what was measured, which was the last map.
    of = ", mean and deviation of every stage," if monitor.get("probe_layers") == "all" else ""
    return f"Measured of the frozen encoder{of} on {images}, {len(monitor['log'])} times:\n\n{table}"


def _figure(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
