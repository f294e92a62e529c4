"""What semantic segmentation and detection share: a trainer whose result is a folder of transformers (config.json,
model.safetensors, preprocessor_config.json) with its card and picture."""

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel, TrainerCallback

from ..arguments.dense import DenseTrainingArguments
from ..configuration_a2mim import A2MIMConfig
from ..data.decoding import MODES
from ..export.filenames import CURVE, PLACEHOLDER, PREDICTIONS, RECORD_FILE
from ..export.folder import SCRATCH, replace_files
from ..export.methods import BIBTEX, made_from, method_tags, names_in, recorded_method
from ..export.model_card import TAGS, TEMPLATE, by_sides, evaluation_lines, run_facts, table_cell
from ..modeling_a2mim import A2MIMModel
from ..training.encoder_trainer import EncoderTrainer
from ..utils.plotting import loss_curve


DENSE_TEMPLATE = TEMPLATE.with_name("dense_template.md")
OURS = f'"model_type": "{A2MIMConfig.model_type}'  # in the config.json of what transformers alone cannot load


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


class DenseTrainer(EncoderTrainer):
    """Train a model of transformers that holds an `A2MIMBackbone`; checkpoints, resuming and pushing are
    `EncoderTrainer`'s. `output_dir` ends up as a folder of transformers, with a card, a record and a figure.

    Args:
        task: what the card says of it.
        processing_class: the image processor that is written beside the model.
        draw: makes `predictions.png` from the trained model, which is in evaluation mode.
        shown: the names of the images in it, from the top.
    """

    arguments_class = DenseTrainingArguments

    def __init__(
        self,
        *args,
        task: DenseTask,
        processing_class: BaseImageProcessor,
        draw: Callable[[PreTrainedModel], Image.Image] | None = None,
        shown: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(*args, processing_class=processing_class, **kwargs)
        # transformers takes any forward with **kwargs for one that divides its loss by the accumulated batch.
        self.model_accepts_loss_kwargs = False
        self.task = task
        if draw is not None:
            self.add_callback(PredictionsCallback(draw, shown))

    def export(self, folder: str):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
            scratch = Path(scratch)
            self.model_to_export().save_pretrained(scratch)
            self.processing_class.save_pretrained(scratch)
            self._describe(scratch, folder)
            for weights in scratch.glob("*.safetensors"):  # which safetensors makes readable for the owner only
                weights.chmod((scratch / "config.json").stat().st_mode)
            replace_files(folder, scratch)

    def write_card(self, folder: str):
        folder = Path(folder)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
            self._describe(Path(scratch), folder)
            replace_files(folder, Path(scratch))

    def _describe(self, scratch: Path, folder: Path):
        """Write record, curve and card to `scratch`, for the model in there or, if there is none, in `folder`."""
        record = self.record()
        (scratch / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
        if record["log"]:
            loss_curve(record["log"], scratch / CURVE)
        files = {path.name for place in (scratch, folder) for path in place.iterdir()}
        config = next(place / "config.json" for place in (scratch, folder) if (place / "config.json").is_file())
        plain = OURS not in config.read_text()
        dense_card(self.unwrapped(), self.task, record, self.hub_model_id, files, plain).save(scratch / "README.md")


class PredictionsCallback(TrainerCallback):
    """Writes a figure of predictions when training ends, and the names of its images to a file of their own, as the
    figure may be published."""

    def __init__(self, draw: Callable[[PreTrainedModel], Image.Image], shown: Sequence[str] = ()):
        self.draw, self.shown = draw, shown

    def on_train_end(self, args, state, control, model=None, **kwargs):
        training = model.training
        with torch.no_grad():  # on every process, for sharded models
            figure = self.draw(model.eval())
        model.train(training)
        if state.is_world_process_zero:
            path = Path(args.output_dir) / PREDICTIONS
            figure.save(path)
            path.with_suffix(".txt").write_text("".join(f"{name}\n" for name in self.shown), encoding="utf-8")


def dense_card(
    model: PreTrainedModel,
    task: DenseTask,
    record: dict,
    repo_id: str | None = None,
    files: Collection[str] = (),
    plain: bool = True,
) -> ModelCard:
    """The card of a published folder.

    Args:
        model: that holds an A2MIMModel; its `config.id2label` names the classes.
        task: what the model is for.
        record: how it was made (`records.describe_run`).
        repo_id: its name on the Hub; without it the card says `ORG/NAME`, which `hub.push_folder` replaces.
        files: the names of the files in the folder, which decide what the card shows.
        plain: whether transformers loads it without this package.
    """
    core = next(module for module in model.modules() if isinstance(module, A2MIMModel))
    method = recorded_method(record)
    config, names, repo = core.config, list(model.config.id2label.values()), repo_id or PLACEHOLDER
    data = ModelCardData(
        license=record.get("license"),
        library_name="transformers",
        pipeline_tag=task.pipeline_tag,
        tags=[task.pipeline_tag, *TAGS, *method_tags(method), *record.get("tags", ())],
        datasets=record.get("datasets") or None,
        metrics=[task.metric] if task.metric in (record.get("evaluation") or ()) else None,
        base_model=record.get("base_model"),
    )
    shown = " ".join(", ".join(names[:10]).split()) + (", ..." if len(names) > 10 else ".")
    made = made_from(record, method)
    images = f"{by_sides(config.input_size)} px, mean {config.image_mean}, std {config.image_std}"
    args = f" with `{config.model_args}`" if config.model_args else ""
    facts = [
        ("encoder", f"timm's `{config.architecture}`{args}"),
        (
            "parameters",
            f"{model.num_parameters():,}, {sum(p.numel() for p in core.encoder.parameters()):,} of the encoder",
        ),
        ("images", images),
        *run_facts(record),
        ("licence of the weights", record.get("license") or "not stated"),
    ]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    content = environment.from_string(DENSE_TEMPLATE.read_text(encoding="utf-8")).render(
        card_data=data.to_yaml(),
        title=f"{config.architecture}, {task.title}",
        summary=f"{config.architecture} as {task.title}{made and f', {made}'}, with {len(names)} classes: {shown}",
        repo=repo,
        task=task,
        plain=plain,
        channels=config.num_channels,
        mode=MODES.get(config.num_channels),
        files=files,
        facts=[(name, table_cell(value)) for name, value in facts],
        evaluation=evaluation_lines(record, True),
        limits=task.limits,
        citations=[BIBTEX[name] for name in names_in(method)],
    )
    return ModelCard(content)
