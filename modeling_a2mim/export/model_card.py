"""Model cards, from the template in `model_cards/` and the record of how a model was made (see `records`).

Nothing is filled in that is not known: what was not evaluated says so, and numbers of a paper are marked as such.
"""

import itertools
import re
from collections.abc import Collection
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..configuration_a2mim import A2MIMConfig
from ..data.decoding import MODES
from ..evaluation.class_figures import class_figure, class_rows
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel
from ..models.backbone import four_stages
from ..models.classifier import A2MIMForImageClassification
from ..pretrained import MASKED
from .filenames import EXAMPLE, PLACEHOLDER
from .methods import BIBTEX, EITHER, linked, made_from, method_of, method_tags, names_in, recorded_method


TEMPLATE = Path(__file__).resolve().parents[2] / "model_cards" / "template.md"
PAPER = "https://arxiv.org/abs/2205.13943"
IMAGENET = "ILSVRC/imagenet-1k"
HUB_IDS = {"ImageNet-1K": IMAGENET}
NOT_RECORDED = "not recorded"
SPELLED = {  # of `analysis.baselines`
    "masked_psnr": "PSNR of masked pixels (dB)",
    "masked_l1": "L1 error of masked pixels (of pixels in [0, 1])",
    "mean_fill_psnr": "PSNR of the mean colour of each image in their place (dB)",
    "mean_fill_l1": "L1 error of the mean colour",
    "blur_psnr": "PSNR of a blur of the visible pixels (dB)",
    "blur_l1": "L1 error of that blur",
}
TAGS = ("timm", "transformers")


def model_card(
    model: A2MIMModel | A2MIMForPreTraining | A2MIMForImageClassification,
    record: dict | None = None,
    repo_id: str | None = None,
    files: Collection[str] = (),
    pretraining: A2MIMConfig | None = None,
) -> ModelCard:
    """The card of a published folder.

    Args:
        model: what its root holds.
        record: how the model was made (`records`), `None` if that is not known.
        repo_id: its name on the Hub; without it the card says `ORG/NAME`, which `hub.push_folder` replaces.
        files: the other files in the folder, which decide what the card shows.
        pretraining: of the pre-training model beside it, if there is one.
    """
    record, config, repo = record or {}, model.config, repo_id or PLACEHOLDER
    method = method_of(config) if isinstance(model, A2MIMForPreTraining) else recorded_method(record)
    if pretraining is not None and method in (None, EITHER):
        method = method_of(pretraining)
    classifier = isinstance(model, A2MIMForImageClassification)
    core = model if isinstance(model, A2MIMModel) else model.a2mim
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    content = template.render(
        card_data=card_data(model, record, repo, files, method).to_yaml(),
        title=f"{config.architecture}, {_title(config, classifier, method)}",
        summary=_summary(model, record, method),
        repo=repo,
        auto_class="AutoModelForImageClassification" if classifier else "AutoModel",
        pipeline_tag=_pipeline_tag(model),
        classifier=classifier,
        problem_type=config.problem_type,
        num_features=core.encoder.num_features,
        out_indices=four_stages(core),
        channels=config.num_channels,
        mode=MODES.get(config.num_channels),
        files=files,
        facts=[(name, table_cell(value)) for name, value in _facts(model, core, record)],
        evaluation=evaluation_lines(record, classifier),
        limits=_limits(config, classifier, method),
        citations=[BIBTEX[name] for name in names_in(method)],
    )
    return ModelCard(content)


def card_data(model, record: dict, repo: str, files: Collection[str] = (), method: str | None = None) -> ModelCardData:
    """The metadata by which the Hub finds, shows and runs a model. `library_name: timm` with the tag `transformers`
    gives the snippets of both."""
    classifier, config = isinstance(model, A2MIMForImageClassification), model.config
    widget = None
    if classifier and config.num_channels == 3 and EXAMPLE in files:
        source = f"https://huggingface.co/{repo}/resolve/main/{EXAMPLE}"
        widget = [{"src": source, "example_title": record.get("example") or "Example"}]
    elif classifier and IMAGENET in record.get("datasets", ()):
        samples = "https://huggingface.co/datasets/mishig/sample_images/resolve/main"
        widget = [{"src": f"{samples}/{name.lower()}.jpg", "example_title": name} for name in ("Tiger", "Teapot")]
    return ModelCardData(
        license=record.get("license"),
        library_name="timm",
        pipeline_tag=_pipeline_tag(model),
        tags=[_pipeline_tag(model), *TAGS, *method_tags(method), *record.get("tags", ())],
        datasets=record.get("datasets") or None,
        metrics=["accuracy"] if "accuracy" in (record.get("evaluation") or ()) else None,
        base_model=record.get("base_model"),
        widget=widget,
    )


def eval_results(record: dict | None) -> dict[str, str]:
    """What goes to `.eval_results/`, {file name: YAML}, and is shown on the model's page: the accuracy in percent, if
    it was measured on a dataset that has a name on the Hub, or is the paper's one number for this classifier."""
    record = record or {}
    evaluation, dataset = record.get("evaluation") or {}, record.get("evaluated_on")
    published = [row for row in record.get("published", ()) if record.get("classifier") and row["dataset"] in HUB_IDS]
    if dataset is not None and "accuracy" in evaluation:
        notes = f"accuracy in percent on {evaluation['images']:,} images"
        notes = ", ".join(filter(None, [notes, record.get("evaluation_note")]))
        value, source = round(100 * evaluation["accuracy"], 2), {}
    elif len(published) == 1 and re.fullmatch(r"[\d.]+", published[0]["value"]):
        dataset, value = HUB_IDS[published[0]["dataset"]], float(published[0]["value"])
        notes = f"the paper's number in percent, not measured by the uploader; {published[0]['protocol']}"
        source = {"source_url": PAPER, "source_name": "A2MIM (Li et al., ICML 2023)"}
    else:
        return {}
    entry = EvalResultEntry(dataset_id=dataset, task_id="default", value=value, notes=notes, **source)
    name = re.sub(r"[^\w.-]+", "-", dataset)
    return {f"{name}.yaml": yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)}


def _pipeline_tag(model) -> str:
    return "image-classification" if isinstance(model, A2MIMForImageClassification) else "image-feature-extraction"


def table_cell(value) -> str:
    """Text that stays in its cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(NOT_RECORDED if value is None else value)).replace("|", "\\|")


def by_sides(values) -> str:
    return " x ".join(map(str, values))


def _title(config, classifier: bool, method: str | None) -> str:
    if classifier:
        return _kind(config)
    return f"pre-trained with {method}" if method else "an image encoder"


def _summary(model, record: dict, method: str | None) -> str:
    config = model.config
    images = f"images of {by_sides(config.input_size)} px with {config.num_channels} channel(s)"
    if not isinstance(model, A2MIMForImageClassification):
        made = (
            f"pre-trained by {MASKED} ({linked(method)})" if method else "of which it is not known how it was trained"
        )
        return f"{config.architecture} for {images}, {made}: an encoder, without a classifier."
    names = [config.id2label[i] for i in range(config.num_labels)]
    shown = " ".join(", ".join(names[:10]).split()) + (", ..." if len(names) > 10 else "")
    made = made_from(record, method)
    made = made and f", {made}"
    if config.problem_type == "regression":
        return f"{config.architecture} for {images}{made}. It predicts a number: {shown}."
    several = ", of which an image may have several" if config.problem_type == "multi_label_classification" else ""
    return f"{config.architecture} for {images}{made}, with {len(names)} classes{several}: {shown}."


def _kind(config) -> str:
    kinds = {"multi_label_classification": "a multi-label image classifier", "regression": "an image regression model"}
    return kinds.get(config.problem_type, "an image classifier")


def _facts(model, core: A2MIMModel, record: dict) -> list[tuple[str, object]]:
    licence = ("licence of the weights", record.get("license") or "not stated")
    return [*_model_facts(model, core), *run_facts(record), licence]


def _model_facts(model, core: A2MIMModel) -> list[tuple[str, object]]:
    config = model.config
    facts = [
        ("encoder", f"timm's `{config.architecture}`" + (f" with `{config.model_args}`" if config.model_args else "")),
        ("parameters", f"{sum(p.numel() for p in core.encoder.parameters()):,}"),
        ("images", f"{by_sides(config.input_size)} px, mean {config.image_mean}, std {config.image_std}"),
    ]
    if isinstance(model, A2MIMForPreTraining):
        loss = {"l1": "L1", "focal_l1": "focal L1"}[config.spatial_loss]
        if config.frequency_loss_weight:
            loss += f" + {config.frequency_loss_weight:g} x Fourier"
        rows, columns = config.mask_grid
        cell = by_sides(pixels // count for pixels, count in zip(config.input_size, config.mask_grid, strict=True))
        facts += [
            ("mask", f"{config.num_masked} of {rows * columns} cells of {cell} px, filled with: {config.mask_fill}"),
            ("mask token", f"{config.mask_token_mode} at `{core.site.module}`"),
            ("decoder", _decoder(model)),
            ("loss", loss),
        ]
    return facts


def _decoder(model: A2MIMForPreTraining) -> str:
    config, size = model.config, by_sides([model.config.decoder_kernel_size] * 2).replace(" ", "")
    parameters = f"{sum(p.numel() for p in model.decoder.parameters()):,} parameters"
    if config.decoder == "linear":
        return f"one {size} convolution of the last feature map, {parameters}"
    stages = model.a2mim.encoder.feature_info
    strides = [stages[index]["reduction"] for index in model.decoder.indices]
    read = f"the feature maps of {', '.join(map(str, strides))} and {model.a2mim.plan.stride} px a cell"
    return f"multiscale, of {read}, predicts with a {size} convolution, {parameters}"


def run_facts(record: dict) -> list[tuple[str, object]]:
    if "steps" not in record:
        return [("training", record.get("origin"))]
    optimizer = f"{record['optimizer']}, betas {record['adam_betas']}, weight decay {record['weight_decay']:g}"
    schedule = f"{record['learning_rate']:g}, {record['lr_scheduler_type']}, {record['warmup_steps']} steps of warm-up"
    seeds = f"{record['seed']}, of the data {record['data_seed']}"
    facts = [
        ("task", record.get("task")),
        ("started from", record.get("start") or ""),
        *_earlier_facts(record),
        ("changed since", "; ".join(record.get("changed") or ())),
        ("data", record.get("data")),
        ("labels", record.get("labels") or ""),
        ("images seen in a pass", None if record["images"] is None else f"{record['images']:,}"),
        ("steps", f"{record['steps']:,}, {record['epochs']} passes"),
        ("batch", f"{record['total_batch_size']:,} images over {record['processes']} process(es)"),
        ("recipe", record.get("recipe") or ""),
        ("augmentation", record.get("augmentation") or ""),
        ("regularisation", ", ".join(f"{k} {v}" for k, v in (record.get("regularisation") or {}).items())),
        ("class weights", ", ".join(f"{name} {w:.4g}" for name, w in (record.get("class_weights") or {}).items())),
        ("exported weights", _best(record.get("best"))),
        ("crops", "" if record["crop_scale"] is None else f"{record['crop_scale']} of the area"),
        ("optimiser", f"{optimizer}, gradients clipped at {record['max_grad_norm']:g}"),
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
            steps, passes = sum(run["steps"] for run in same), sum(run.get("epochs") or 0 for run in same)
            rows.append((f"{task}, in all", f"{least}{steps:,} steps, {round(passes, 2):,} passes"))
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


def evaluation_lines(record: dict, classifier: bool) -> list[str]:
    lines, evaluation = [], record.get("evaluation")
    if evaluation:
        metrics = {name: value for name, value in evaluation.items() if name not in ("step", "images")}
        metrics = {name: value for name, value in metrics.items() if value is not None}
        by_class = class_rows(metrics, record.get("evaluation_counts") or {})
        metrics = {name: value for name, value in metrics.items() if not (by_class and class_figure(name))}
        where = record.get("evaluated_on") or record.get("evaluation_data") or "images that were not trained on"
        where = f"{evaluation['images']:,} images of {where}" if evaluation["images"] else where
        lines += [f"Measured on {where}, at step {evaluation['step']:,}:", "", "| | |", "|---|---|"]
        lines += [f"| {table_cell(SPELLED.get(name, name))} | {_figure(value)} |" for name, value in metrics.items()]
        if by_class:
            lines += ["", *_table(by_class, tuple(by_class[0]))]
        if record.get("evaluation_note"):
            lines += ["", record["evaluation_note"]]
    if record.get("measured"):
        lines += [*([""] if lines else []), f"Measured {record['measured_on']}:"]
        for columns, rows in itertools.groupby(record["measured"], key=tuple):
            lines += ["", *_table(list(rows), columns)]
    if record.get("published"):
        lines += [
            *([""] if lines else ["Not evaluated here.", ""]),
            "These numbers are the paper's, not measured here:",
        ]
        columns = ("method", "architecture", "dataset", "metric", "value", "protocol")
        lines += ["", *_table(record["published"], columns)]
    if not lines:
        lines = ["Not evaluated."]
    if not classifier and not record.get("measured"):
        lines += ["", "How well the features serve a task after fine-tuning or probing was not evaluated here."]
    return lines


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def _table(rows: list[dict], columns: tuple[str, ...]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return head + ["| " + " | ".join(table_cell(row[name]) for name in columns) + " |" for row in rows]


def _limits(config, classifier: bool, method: str | None) -> list[str]:
    height, width = config.input_size
    images = (
        f"It saw images of {height} x {width} px with {config.num_channels} channel(s); the processor resizes them."
    )
    bias = "What its training images lack, or show too often, shows in it; nobody tested it for that."
    if classifier and config.problem_type == "regression":
        return [
            f"For predicting {config.id2label[0]} of images like those it was trained on.",
            "It gives every image a number, also images of other things, and does not say how sure it is.",
            images,
            bias + " Do not let it decide about people.",
        ]
    if classifier and config.problem_type == "multi_label_classification":
        return [
            f"For telling which of its {config.num_labels} classes images like those it was trained on have.",
            "Its figures were measured with what has a probability (sigmoid) above 1/2; scores are not calibrated.",
            images,
            bias + " Do not let it decide about people.",
        ]
    if classifier:
        return [
            f"For telling its {config.num_labels} classes apart in images like those it was trained on.",
            "It gives every image one of its classes, also images of none of them, and its scores are not calibrated.",
            images,
            bias + " Do not let it decide about people.",
        ]
    return [
        "For fine-tuning, linear probing, retrieval, or under a detection or segmentation head, best on images like "
        "those it was trained on. It names no classes.",
        images,
        *(["Features of masked image modelling are meant for fine-tuning; try them frozen first."] if method else []),
        bias,
    ]
