"""Model cards, from the templates in `templates/` and the record of how a model was made (see `record`).

Nothing is filled in that is not known: what was not evaluated says so, and numbers of a paper are marked as such.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..configuration_a2mim import A2MIMConfig
from ..data.decoding import MODES
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel, find_core
from ..models.backbone import four_stages
from ..models.classifier import A2MIMForImageClassification
from ..pretrained import MASKED
from ..utils.labels import label_names
from ..utils.tables import markdown_table
from ..utils.value_range import PERCENTILE, ValueRange
from .card_tables import evaluation_section, monitor_section, run_facts
from .eval_results import IMAGENET
from .filenames import EXAMPLE, PLACEHOLDER
from .methods import BIBTEX, EITHER, linked, made_from, method_of, method_tags, names_in, recorded_method


TEMPLATES = Path(__file__).resolve().parent / "templates"
TAGS = ("timm", "transformers")
MOST_LISTED = 10  # classes in a summary


@dataclass(frozen=True)
class DenseTask:
    """What a model card and the Hub say of a task.

    Args:
        pipeline_tag: of the Hub, which is also the name of transformers' pipeline.
        title: what the model is, after the name of its encoder: "a semantic segmenter".
        metric: the figure that the card's metadata names: "mean_iou".
        model_class: what loads the model, from transformers, or from this package if `own_class`.
        code: how to use `processor` and `model` on a PIL image `image`: Python, as printed in the card.
        limits: sentences on what it is for and what it cannot do.
        own_class: whether `model_class` is one of this package.
        pipeline: whether transformers' pipeline of that name works with such models.
    """

    pipeline_tag: str
    title: str
    metric: str
    model_class: str
    code: str
    limits: tuple[str, ...] = ()
    own_class: bool = False
    pipeline: bool = True


def model_card(
    model: A2MIMModel | A2MIMForPreTraining | A2MIMForImageClassification,
    record: dict | None = None,
    repo_id: str | None = None,
    files: Collection[str] = (),
    pretraining: A2MIMConfig | None = None,
) -> ModelCard:
    """The card of an exported encoder or classifier.

    Args:
        model: what the root of the folder holds.
        record: how the model was made (see `record`), `None` if that is not known.
        repo_id: its name on the Hub; without it the card says `ORG/NAME`, which `hub.push_folder` replaces.
        files: the other files in the folder, which decide what the card shows.
        pretraining: the configuration of the pre-training model beside it, if there is one.
    """
    record, config, repo = record or {}, model.config, repo_id or PLACEHOLDER
    method = method_of(config) if isinstance(model, A2MIMForPreTraining) else recorded_method(record)
    if pretraining is not None and method in (None, EITHER):
        method = method_of(pretraining)
    classifier = isinstance(model, A2MIMForImageClassification)
    core = model if isinstance(model, A2MIMModel) else model.a2mim
    cells = not classifier and (pretraining or config).target == "normalised"
    pipeline_tag = "image-classification" if classifier else "image-feature-extraction"
    data = _metadata(record, method, "timm", pipeline_tag, "accuracy")
    data["widget"] = _widget(config, record, repo, files) if classifier else None
    parameters = f"{sum(p.numel() for p in core.encoder.parameters()):,}"
    return _render(
        "template.md",
        config,
        record,
        method,
        facts=[*_encoder_facts(config, parameters), *_pretraining_facts(model)],
        card_data=data.to_yaml(),
        title=f"{config.architecture}, {_title(config, classifier, method)}",
        summary=_summary(model, record, method),
        repo=repo,
        auto_class="AutoModelForImageClassification" if classifier else "AutoModel",
        pipeline_tag=pipeline_tag,
        classifier=classifier,
        problem_type=config.problem_type,
        num_features=core.encoder.num_features,
        out_indices=four_stages(core),
        files=files,
        evaluation=evaluation_section(record, encoder=not classifier, cells=cells),
        cells=cells,
        monitored=monitor_section(record.get("monitor")),
        limits=_limits(config, classifier, method),
    )


def dense_card(
    model: PreTrainedModel,
    task: DenseTask,
    record: dict,
    repo_id: str | None = None,
    files: Collection[str] = (),
    plain: bool = True,
) -> ModelCard:
    """The card of an exported model for segmentation or detection.

    Args:
        model: that holds an A2MIMModel; its `config.id2label` names the classes.
        task: what the model is for.
        record, repo_id, files: as for `model_card`.
        plain: whether transformers loads it without this package.
    """
    core = find_core(model)
    method, config = recorded_method(record), core.config
    names, made = list(model.config.id2label.values()), made_from(record, method)
    shown = _listed(names) + ("" if len(names) > MOST_LISTED else ".")
    parameters = sum(p.numel() for p in core.encoder.parameters())
    return _render(
        "dense_template.md",
        config,
        record,
        method,
        facts=_encoder_facts(config, f"{model.num_parameters():,}, {parameters:,} of the encoder"),
        card_data=_metadata(record, method, "transformers", task.pipeline_tag, task.metric).to_yaml(),
        title=f"{config.architecture}, {task.title}",
        summary=f"{config.architecture} as {task.title}{made and f', {made}'}, with {len(names)} classes: {shown}",
        repo=repo_id or PLACEHOLDER,
        task=task,
        plain=plain,
        files=files,
        evaluation=evaluation_section(record),
        limits=task.limits,
    )


@functools.cache
def _environment() -> jinja2.Environment:
    """Which keeps what it has compiled: a run writes several cards."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )


def _render(
    template: str, config: A2MIMConfig, record: dict, method: str | None, facts: list[tuple[str, object]], **parts
) -> ModelCard:
    """The card with what every kind has: its channels, the table of facts, and the papers to cite."""
    facts = [*facts, *run_facts(record), ("licence of the weights", record.get("license") or "not stated")]
    content = (
        _environment()
        .get_template(template)
        .render(
            channels=config.num_channels,
            mode=None if stored_text(config) else MODES.get(config.num_channels),
            stored=stored_text(config),
            stored_code=stored_code(config),
            facts=markdown_table(("", ""), facts),
            citations=[BIBTEX[name] for name in names_in(method)],
            **parts,
        )
    )
    return ModelCard(content)


def _metadata(record: dict, method: str | None, library: str, pipeline_tag: str, metric: str) -> ModelCardData:
    """The metadata by which the Hub finds, shows and runs a model. The library `timm` with the tag `transformers`
    gives the snippets of both."""
    return ModelCardData(
        license=record.get("license"),
        library_name=library,
        pipeline_tag=pipeline_tag,
        tags=[pipeline_tag, *TAGS, *method_tags(method), *record.get("tags", ())],
        datasets=record.get("datasets") or None,
        metrics=[metric] if metric in (record.get("evaluation") or ()) else None,
        base_model=record.get("base_model"),
    )


def _widget(config: A2MIMConfig, record: dict, repo: str, files: Collection[str]) -> list[dict] | None:
    """Images that the page of a classifier offers to try: its own example, or two of ImageNet."""
    if config.num_channels == 3 and not stored_text(config) and EXAMPLE in files:
        source = f"https://huggingface.co/{repo}/resolve/main/{EXAMPLE}"
        return [{"src": source, "example_title": record.get("example") or "Example"}]
    if IMAGENET in record.get("datasets", ()) and not stored_text(config):
        samples = "https://huggingface.co/datasets/mishig/sample_images/resolve/main"
        return [{"src": f"{samples}/{name.lower()}.jpg", "example_title": name} for name in ("Tiger", "Teapot")]
    return None


def _by_sides(values) -> str:
    return " x ".join(map(str, values))


def _listed(names: Sequence[str]) -> str:
    """The first names in one line."""
    return " ".join(", ".join(names[:MOST_LISTED]).split()) + (", ..." if len(names) > MOST_LISTED else "")


def _title(config, classifier: bool, method: str | None) -> str:
    if classifier:
        return _kind(config)
    return f"pre-trained with {method}" if method else "an image encoder"


def _summary(model, record: dict, method: str | None) -> str:
    config = model.config
    images = f"images of {_by_sides(config.input_size)} px with {config.num_channels} channel(s)"
    if not isinstance(model, A2MIMForImageClassification):
        made = (
            f"pre-trained by {MASKED} ({linked(method)})" if method else "of which it is not known how it was trained"
        )
        return f"{config.architecture} for {images}, {made}: an encoder, without a classifier."
    names = label_names(config)
    shown, made = _listed(names), made_from(record, method)
    made = made and f", {made}"
    if config.problem_type == "regression":
        return f"{config.architecture} for {images}{made}. It predicts a number: {shown}."
    several = ", of which an image may have several" if config.problem_type == "multi_label_classification" else ""
    return f"{config.architecture} for {images}{made}, with {len(names)} classes{several}: {shown}."


def _kind(config) -> str:
    kinds = {"multi_label_classification": "a multi-label image classifier", "regression": "an image regression model"}
    return kinds.get(config.problem_type, "an image classifier")


def _encoder_facts(config: A2MIMConfig, parameters: str) -> list[tuple[str, object]]:
    return [
        ("encoder", f"timm's `{config.architecture}`" + (f" with `{config.model_args}`" if config.model_args else "")),
        ("parameters", parameters),
        ("images", f"{_by_sides(config.input_size)} px, mean {config.image_mean}, std {config.image_std}"),
        *([("stored images", stored_text(config))] if stored_text(config) else []),
    ]


def stored_text(config: A2MIMConfig) -> str:
    """What is taken of stored images, in words; nothing for photographs of 8 bits."""
    known = ValueRange.from_config(config.value_range)
    parts = [] if known is None else [f"values {known}, become 0 to 1"]
    if config.channels is not None:
        parts.append(f"channels {', '.join(map(str, config.channels))}, from 1, in this order")
    if config.pages is not None:
        kinds = {"channels": "pages are channels", "samples": "each page is an image", "first": "the first page alone"}
        parts.append(kinds[config.pages])
    return "; ".join(parts)


def stored_code(config: A2MIMConfig) -> str:
    """The lines that make numbers in [0, 1] of stored `values` (channels, height, width)."""
    known, lines = ValueRange.from_config(config.value_range), []
    if config.channels is not None:
        lines.append(f"values = values[{[channel - 1 for channel in config.channels]}]")
    if known is None:
        return "\n".join([*lines, "values = values / 255"])
    if known.of == PERCENTILE:
        lines += _percentile_lines(known)
    elif known.of is not None:
        lines.append("low, high = ...  # the edges of the window in the header of the file")
    elif len(known.low) == 1:
        lines.append(f"low, high = {known.low[0]!r}, {known.high[0]!r}")
    else:
        lines.append(f"low, high = np.array([{list(known.low)}, {list(known.high)}])[..., None, None]")
    lines.append("values = (values.astype(np.float64) - low) / (high - low)")
    lines += ["values = values.clip(0, 1)"] if known.clip else []
    return "\n".join([*lines, "values[~np.isfinite(values)] = 0"])


def _percentile_lines(known: ValueRange) -> list[str]:
    """Of each channel; where ranges differ, each by its own."""
    if len(known.low) == 1:
        ends = f"{known.low[0]:g}, {known.high[0]:g}"
        return [f"low, high = np.nanpercentile(values, [{ends}], axis=(1, 2))[..., None, None]"]
    ends = ", ".join(f"[{low:g}, {high:g}]" for low, high in zip(known.low, known.high, strict=True))
    return [
        f"ends = [{ends}]",
        "found = [np.nanpercentile(channel, end) for channel, end in zip(values, ends)]",
        "low, high = np.array(found).T[..., None, None]",
    ]


def _pretraining_facts(model) -> list[tuple[str, object]]:
    """What masked image modelling was set to; nothing for other models."""
    if not isinstance(model, A2MIMForPreTraining):
        return []
    config = model.config
    loss = {"l1": "L1", "focal_l1": "focal L1"}[config.spatial_loss]
    if config.frequency_loss_weight:
        loss += f" + {config.frequency_loss_weight:g} x Fourier"
    rows, columns = config.mask_grid
    cell = _by_sides(pixels // count for pixels, count in zip(config.input_size, config.mask_grid, strict=True))
    target = "pixels" if config.target == "pixels" else "pixels, normalised in each cell of the mask"
    return [
        ("mask", f"{config.num_masked} of {rows * columns} cells of {cell} px, filled with: {config.mask_fill}"),
        ("mask token", f"{config.mask_token_mode} at `{model.a2mim.site.module}`"),
        ("decoder", _decoder(model)),
        ("target", target),
        ("loss", loss),
    ]


def _decoder(model: A2MIMForPreTraining) -> str:
    config, size = model.config, _by_sides([model.config.decoder_kernel_size] * 2).replace(" ", "")
    parameters = f"{sum(p.numel() for p in model.decoder.parameters()):,} parameters"
    if config.decoder == "linear":
        return f"one {size} convolution of the last feature map, {parameters}"
    encoder: Any = model.a2mim.encoder
    decoder: Any = model.decoder  # a MultiscaleDecoder
    strides = [encoder.feature_info[index]["reduction"] for index in decoder.indices]
    read = f"the feature maps of {', '.join(map(str, strides))} and {model.a2mim.plan.stride} px a cell"
    return f"multiscale, of {read}, predicts with a {size} convolution, {parameters}"


def _limits(config, classifier: bool, method: str | None) -> list[str]:
    height, width = config.input_size
    images = (
        f"It saw images of {height} x {width} px with {config.num_channels} channel(s); the processor resizes them."
    )
    bias = "What its training images lack, or show too often, shows in it; nobody tested it for that."
    if not classifier:
        frozen = "Features of masked image modelling are meant for fine-tuning; try them frozen first."
        return [
            "For fine-tuning, linear probing, retrieval, or under a detection or segmentation head, best on images "
            "like those it was trained on. It names no classes.",
            images,
            *([frozen] if method else []),
            bias,
        ]
    if config.problem_type == "regression":
        use = f"For predicting {config.id2label[0]} of images like those it was trained on."
        limit = "It gives every image a number, also images of other things, and does not say how sure it is."
    elif config.problem_type == "multi_label_classification":
        use = f"For telling which of its {config.num_labels} classes images like those it was trained on have."
        limit = "Its figures were measured with what has a probability (sigmoid) above 1/2; scores are not calibrated."
    else:
        use = f"For telling its {config.num_labels} classes apart in images like those it was trained on."
        limit = (
            "It gives every image one of its classes, also images of none of them, and its scores are not calibrated."
        )
    return [use, limit, images, f"{bias} Do not let it decide about people."]
