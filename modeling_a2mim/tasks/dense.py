"""What semantic segmentation and detection share: arguments, the encoder under their heads, and a trainer whose result
is a folder of transformers (config.json, model.safetensors, preprocessor_config.json) with its card and picture."""

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import jinja2
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel, TrainerCallback

from ..arguments.data import DataArguments, helped
from ..arguments.model import ClassifierArguments, EncoderArguments
from ..arguments.training import A2MIMTrainingArguments
from ..configuration_a2mim import A2MIMConfig
from ..data.decoding import MODES
from ..data.loading import find_validation_split
from ..encoders.tracing import NoValues
from ..export.filenames import CURVE, PLACEHOLDER, PREDICTIONS, RECORD_FILE
from ..export.folder import SCRATCH, replace_files
from ..export.loading import folder_or_id, load_into_encoder
from ..export.methods import BIBTEX, made_from, method_tags, names_in, recorded_method
from ..export.model_card import TAGS, TEMPLATE, by_sides, evaluation_lines, run_facts, table_cell
from ..modeling_a2mim import A2MIMModel
from ..models.backbone import A2MIMBackbone, four_stages
from ..models.heads import kept_as_it_is, load_head
from ..models.resizing import resized_weights
from ..pretrained import Pretrained, open_pretrained
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


@dataclass
class DenseModelArguments(EncoderArguments):
    """The encoder under a head: a pre-trained one, or a new one (`architecture`)."""

    architecture: str | None = helped(None, "Train this timm model from scratch: any name of timm.list_models().")
    model_name_or_path: str | None = helped(
        None,
        "An exported folder (of an encoder, a classifier, or a model of this task), its name on the Hub, or any timm "
        "model there.",
    )
    model_revision: str | None = helped(None, "Branch, tag or commit of --model_name_or_path on the Hub.")
    out_indices: list[int] | None = helped(
        None, "Which of timm's feature maps the head sees; default: the last four, or evenly spread ones.", nargs="+"
    )
    drop_path: float | None = helped(None, "Rate of stochastic depth in the encoder.")
    freeze_encoder: bool = helped(False, "Train what is on the encoder, not the encoder.")
    eval_only: bool = helped(False, "Train nothing: evaluate the model of this task in --model_name_or_path.")

    base_model, origin = ClassifierArguments.base_model, ClassifierArguments.origin

    @property
    def task(self) -> str:
        return "fine-tuning" if self.architecture is None else "training from scratch"

    def start(self, token: str | None = None) -> Pretrained | None:
        """What `model_name_or_path` holds; `None` to train from scratch.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        if (self.architecture is None) == (self.model_name_or_path is None):
            raise ValueError("model_name_or_path: give either it or, to train from scratch, --architecture")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}")
        if self.model_name_or_path is None:
            return None
        return open_pretrained(folder_or_id(self.model_name_or_path), revision=self.model_revision, token=token)

    def backbone(self, start: Pretrained | None = None, whole: bool = False) -> A2MIMBackbone:
        """The encoder with its pre-trained weights, if it has any, at the size that is asked for. An isotropic one
        gets a `FeaturePyramid`.

        Args:
            start: where the weights come from; `start()`, if not given.
            whole: whether that is a model of this task, whose feature maps and pyramid are kept.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        known, start = {}, self.start() if start is None else start
        if start is not None:
            known = {f.name: getattr(start.config, f.name) for f in fields(EncoderArguments)}
            if whole and self.out_indices not in (None, start.config.out_indices):
                raise kept_as_it_is("out_indices", start, start.config.out_indices, self.out_indices)
        own = {f.name for f in fields(EncoderArguments)}
        given = {name: value for name, value in self.given().items() if name in own}
        model_args = {**(known.get("model_args") or {}), **given.pop("model_args", {})}
        if self.drop_path is not None:
            model_args["drop_path_rate"] = self.drop_path
        config = A2MIMConfig.for_encoder(**{**known, **given, "model_args": model_args})
        with torch.device("meta"), NoValues():
            probe = A2MIMModel(config)
        config.feature_pyramid = probe.plan.isotropic
        config.out_indices = start.config.out_indices if whole else self.out_indices or four_stages(probe)
        backbone = A2MIMBackbone(config)
        if start is not None:
            weights = resized_weights(start.encoder_weights(), start.config, backbone.a2mim)
            load_into_encoder(backbone, weights, partly=whole and start.is_plain_backbone)
        if whole and backbone.pyramid is not None:
            load_head(backbone.pyramid, start, "backbone.pyramid.")
        return backbone.freeze_encoder() if self.freeze_encoder else backbone


@dataclass
class DenseArguments(DataArguments):
    """Where annotated images come from: one source, with a split for evaluation if it has any."""

    def __post_init__(self):
        super().__post_init__()
        self._given_split = self.validation_split
        if self.train_dir is None and self.dataset_name is None:
            raise ValueError("dataset_name: annotated images are needed; give --dataset_name or --train_dir")
        if len(self.sources) > 1:
            raise ValueError("dataset_name: annotated images come from one source")
        if list(self.crop_scale) != [0.8, 1.0]:
            raise ValueError("crop_scale: is for pre-training and classification; here see --resize_scale")

    @property
    def names_evaluation(self) -> bool:
        """Whether the user named what to evaluate on."""
        return self.validation_dir is not None or self._given_split is not None

    def load(self, train: bool, token: str | None = None):
        if not train and self.validation_dir is None and self.validation_split is None and self.train_dir is None:
            self.validation_split = find_validation_split(self.sources[0], self.dataset_config_name)
        return super().load(train, token)


def start_to_evaluate(
    model_args: DenseModelArguments, data_args: DenseArguments, kinds: Collection[str], token: str | None = None
):
    """What `--eval_only` evaluates, a `Pretrained` of one of these kinds, and the images to evaluate on.

    Raises:
        ValueError: naming the argument, if there is no such model, or no images.
    """
    start = model_args.start(token)
    if start is None or start.kind not in kinds:
        found = "" if start is None else f"; {start.place} holds {start.what}"
        raise ValueError(f"model_name_or_path: --eval_only needs a model of this task ({' or '.join(kinds)}){found}")
    validation = data_args.load(train=False, token=token)
    if validation is None:
        raise ValueError("validation_dir: there are no images to evaluate on; give it or --validation_split")
    return start, validation


@dataclass
class DenseTrainingArguments(A2MIMTrainingArguments):
    """transformers' TrainingArguments for tasks with one answer for each place: evaluation in small pieces after every
    epoch."""

    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images per device and step."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Images per device for evaluation."})
    num_train_epochs: str = field(default="3", metadata={"help": "Passes over the data."})
    base_learning_rate: float | None = field(
        default=1.6e-3, metadata={"help": "Learning rate for a total batch of 256 images."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    batch_eval_metrics: bool = field(
        default=True, metadata={"help": "Add metrics up batch by batch, so that memory stays as it is."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep what the metrics need beside what the model does."}
    )


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
