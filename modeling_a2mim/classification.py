"""Classification: fine-tune, train from scratch or probe once, and judge a classifier; with pictures of its errors."""

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import set_seed

from .analysis.corruptions import corruption_picture
from .analysis.errors import confusion_matrix_picture, errors_table, worst_examples_picture
from .arguments import ClassifierArguments, folder_or_id
from .cards import CONFUSION, ERRORS
from .class_figures import BY_CLASS, class_figure
from .configuration_a2mim import A2MIMConfig
from .data import ImageSamples
from .data_arguments import ClassificationArguments
from .encoders import plan_encoder
from .export import load_classifier, pretraining_beside, timm_pretrained_cfg
from .finetuning import FineTuningTrainer
from .json_files import finite
from .labels import log_labels
from .probing import LinearProbe
from .resuming import flags
from .robustness import CORRUPTIONS, check_corruptions, corruption_table, evaluate_corruptions
from .scores import compute_metrics
from .subsets import draw_subset, load_subset, save_subset
from .training_args import FineTuningArguments
from .transforms import FineTuneTransform


logger = logging.getLogger("a2mim")

SUBSET = "subset.json"
RESULTS = "results.json"
TABLE = "results.md"
MOST_LISTED, MOST_LOGGED = 20, 100  # classes whose figures are listed at the end, and are in logs and card at all
ERROR_TABLE = "errors.csv"  # names files, which are nobody's business: it is not among what is uploaded


@dataclass
class LabelledImages:
    """Images to train on and to evaluate on (`None` if there are none), the column of their labels, and the names of
    the classes."""

    train: object
    validation: object | None
    column: str
    names: list[str]

    @classmethod
    def load(cls, data_args: ClassificationArguments, token: str | None) -> "LabelledImages":
        train = data_args.load(train=True, token=token)
        validation = data_args.load(train=False, token=token)
        column, names = data_args.labels(train)
        if validation is not None and data_args.labels(validation)[1] != names:
            raise ValueError(
                f"validation_dir: its classes {data_args.labels(validation)[1]} are not those trained on, {names}"
            )
        log_labels(train, column, names, "training")
        if validation is not None:
            log_labels(validation, data_args.labels(validation)[0], names, "evaluation")
        return cls(train, validation, column, names)

    def counts(self, dataset) -> list[int]:
        """How many images of each class there are in `train` or `validation`."""
        return np.bincount(dataset[self.column], minlength=len(self.names)).tolist()


# Data


def choose_rows(data_args: ClassificationArguments, images: LabelledImages, seed: int) -> list[int] | None:
    """The rows to train on, `None` for all."""
    if data_args.few_labels() is None:
        return None
    labels = images.train[images.column]
    if data_args.label_subset is not None:
        return load_subset(data_args.label_subset, labels)
    return draw_subset(labels, per_class=data_args.labels_per_class, fraction=data_args.label_fraction, seed=seed)


def keep_subset(folder: str, rows: list[int], data_args: ClassificationArguments, images: LabelledImages, seed: int):
    """Write `subset.json`, with which a later run trains on the same images."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn = {} if data_args.label_subset else {"seed": seed}
    drawn |= {"per_class": data_args.labels_per_class, "fraction": data_args.label_fraction}
    save_subset(Path(folder, SUBSET), rows, images.train[images.column], **drawn)


def evaluation_samples(model, data_args: ClassificationArguments, images: LabelledImages, seed: int) -> ImageSamples:
    transform = FineTuneTransform(timm_pretrained_cfg(model.a2mim), train=False, max_pixels=data_args.max_image_pixels)
    return data_args.samples(images.validation, transform, seed, images.column)


def training_transform(model, data_args: ClassificationArguments) -> FineTuneTransform:
    """timm's augmentation, at another size if `train_image_size` says so.

    Raises:
        ValueError: naming `train_image_size`, if the encoder was built for one size of images.
    """
    cfg, size = timm_pretrained_cfg(model.a2mim), data_args.train_image_size
    if size is not None:
        size = list(size) * (3 - len(size))
        config = copy.deepcopy(model.config)
        config.image_size = size
        if plan_encoder(config, for_masking=False).create_args != model.a2mim.plan.create_args:
            own = " x ".join(map(str, model.config.input_size))
            raise ValueError(f"train_image_size: {config.architecture} takes images of {own} px and no others")
        cfg["input_size"] = [config.num_channels, *size]
    options = {"scale": tuple(data_args.crop_scale), **data_args.augmentation()}
    return FineTuneTransform(cfg, max_pixels=data_args.max_image_pixels, **options)


# Training


def fine_tune(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> "ClassificationTrainer":
    """A trainer that is ready to `run()`."""
    seed = args.seed if args.data_seed is None else args.data_seed
    rows = choose_rows(data_args, images, seed)
    train = images.train if rows is None else images.train.select(rows)
    set_seed(args.seed)
    model, start = model_args.build(images.names, token=args.hub_token)
    if model_args.linear_probe and (model_args.probe_batch_norm or model_args.probe_layers):
        layer = (model_args.probe_layers or [None])[0]
        model = LinearProbe.from_encoder(model, layer, model_args.probe_batch_norm)
        if layer is None:
            model.to_classifier()  # which fails now rather than when it is trained
    elif model_args.linear_probe:
        model.freeze_encoder()
    samples = data_args.samples(train, training_transform(model, data_args), seed, images.column)
    samples.repeats = data_args.aug_repeats
    logger.info(
        "%s%s: %s trainable parameters; %d classes; %s training images",
        model.config.architecture,
        " (frozen encoder)" if model_args.linear_probe else "",
        f"{model.num_parameters(only_trainable=True):,}",
        len(images.names),
        f"{len(train):,}",
    )
    if len(train) < args.step_batch_size:
        logger.warning(
            "a pass has %d images, a step %d: for a smaller step give --batch_scaling learning_rate",
            len(train),
            args.step_batch_size,
        )
    validation = None
    if images.validation is not None:
        validation = evaluation_samples(model, data_args, images, seed)
    else:
        args.without_evaluation()
    if rows is not None and args.should_save:
        keep_subset(args.output_dir, rows, data_args, images, seed)
    elif args.overwrite_output_dir and args.should_save:
        Path(args.output_dir, SUBSET).unlink(missing_ok=True)  # of the earlier run
    example = None if validation is None else validation.first(1)
    return ClassificationTrainer(
        model=model,
        args=args,
        train_dataset=samples,
        eval_dataset=validation,
        picture_samples=example,
        pretraining_model=None if start is None else pretraining_beside(start),
        names=images.names,
        corruptions=data_args.corruptions,
        flags=flags(model_args, data_args),
        provenance={
            "task": model_args.task,
            **data_args.provenance(),
            **model_args.origin(args.hub_token),
            "example": images.names[int(example[0]["labels"])] if example else None,
            "evaluation_counts": dict(zip(images.names, images.counts(images.validation), strict=True))
            if example
            else None,
        },
    )


class ClassificationTrainer(FineTuningTrainer):
    """Draws the confusion matrix and the worst errors of the last evaluation, and tries corrupted images."""

    def __init__(self, *args, names: list[str], corruptions: list[str] | None = None, **kwargs):
        super().__init__(*args, compute_metrics=self._metrics, **kwargs)
        self.names, self.corruptions, self._prediction = names, corruptions, None

    def _metrics(self, prediction) -> dict[str, float]:
        self._prediction = prediction
        self._figures = compute_metrics(prediction, self.names)
        return self._figures

    def log(self, logs, start_time=None):
        if len(self.names) > MOST_LOGGED:  # eval_results.json has them
            logs = {name: value for name, value in logs.items() if class_figure(name) is None}
        super().log(logs, start_time)

    def conclude(self):
        log_figures(self._figures, self.names, np.bincount(self._prediction.label_ids, minlength=len(self.names)))
        metrics = {}
        if self.corruptions is not None:
            with self.averaged(), self.accelerator.autocast():
                metrics, rows = try_corruptions(self._unwrapped(), self.eval_dataset, self.args, self.corruptions)
            self.provenance |= {"measured": rows, "measured_on": "on corrupted images, accuracy"}
        if self.args.should_save:
            draw_errors(self.args.output_dir, self._prediction, self.eval_dataset, self.model.config, self.names)
        return metrics

    # A probe is published as the classifier that it is equal to, where there is one.

    def _published(self):
        model = super()._published()
        return model.to_classifier() if isinstance(model, LinearProbe) else model

    @property
    def _inner_probe(self) -> bool:
        return getattr(self.model, "layer", None) is not None

    def export(self, folder):
        if not self._inner_probe:
            return super().export(folder)
        self._unwrapped().save_pretrained(folder)
        logger.warning(
            "probe_layers: timm knows no classifier on an inner layer; %s is read by LinearProbe.from_pretrained",
            folder,
        )

    def describe(self, folder):
        if not self._inner_probe:
            super().describe(folder)


def log_figures(figures: dict[str, float], names: list[str], images: Sequence[int]):
    """Log figures of an evaluation (`scores.compute_metrics`), and those of up to `MOST_LISTED` classes.

    Args:
        images: that were evaluated on, of each class.
    """
    shown = ", ".join(f"{name.replace('_', ' ')} {v:.4f}" for name, v in figures.items() if not class_figure(name))
    logger.info("%s on %d images", shown, sum(images))
    there = [(name, count) for name, count in zip(names, images, strict=True) if count]
    for name, count in there[:MOST_LISTED]:
        found = [(figure, figures.get(f"{figure}_{name}")) for figure in BY_CLASS]
        shown = ", ".join(f"{figure.replace('_', ' ')} {value:.4f}" for figure, value in found if value is not None)
        logger.info("class %s: %s on %d images", name, shown, count)
    if len(there) > MOST_LISTED:
        logger.info("%d further classes: see eval_results.json", len(there) - MOST_LISTED)


def try_corruptions(
    model, samples: ImageSamples, args: FineTuningArguments, corruptions: list[str]
) -> tuple[dict[str, float], list[dict]]:
    """Accuracies of a classifier on corrupted images, as metrics and as rows of a table; writes `corruptions.json`,
    `corruptions.md` and what they look like, `corruptions.png`, to `args.output_dir`."""
    result = evaluate_corruptions(
        model,
        samples,
        timm_pretrained_cfg(model.a2mim),
        chosen_corruptions(corruptions),
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    table = corruption_table(result)
    if args.should_save:
        print(f"\n{table}\n")
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "corruptions.json").write_text(json.dumps(finite(result), indent=1) + "\n")
        (folder / "corruptions.md").write_text(table + "\n")
        example = samples.first(1)[0]["pixel_values"]
        picture = corruption_picture(
            example, model.config.image_mean, model.config.image_std, list(result["corruptions"])
        )
        picture.save(folder / "corruptions.png")
    names = ("clean_accuracy", "mean_corruption_accuracy", "relative_robustness")
    rows = [
        {"corruption": name.replace("_", " ")}
        | {f"severity {s}": f"{v:.3f}" for s, v in zip(result["severities"], found["accuracy"], strict=True)}
        | {"mean": f"{found['mean']:.3f}"}
        for name, found in result["corruptions"].items()
    ]
    return {f"eval_{name}": result[name] for name in names if result[name] is not None}, rows


def chosen_corruptions(given: list[str]) -> list[str]:
    """The types that `--corruptions` names; `all` stands for every one.

    Raises:
        ValueError: naming `corruptions`, if there is no such type.
    """
    chosen = list(CORRUPTIONS) if given == ["all"] else given
    check_corruptions(chosen)
    return chosen


def draw_errors(folder: str, prediction, samples: ImageSamples, config: A2MIMConfig, names: list[str]):
    """Write confusion_matrix.png, errors.csv and worst_examples.png for a Trainer's prediction on `samples`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    logits, labels = prediction.predictions, prediction.label_ids
    confusion_matrix_picture(labels, logits.argmax(-1), names, Path(folder, CONFUSION))
    errors_table(logits, labels, names, Path(folder, ERROR_TABLE), samples.name)
    looks = {"mean": config.image_mean, "std": config.image_std}
    worst_examples_picture(samples, logits, labels, names, **looks, path=Path(folder, ERRORS), name_of=samples.name)


# Without training


def judge_classifier(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> dict:
    """Evaluate the classifier in `model_name_or_path`, its classes told apart by their names.

    Raises:
        ValueError: naming `model_name_or_path`, if it holds none, or one of other classes.
    """
    if model_args.model_name_or_path is None:
        raise ValueError("model_name_or_path: --eval_only needs a classifier")
    source = folder_or_id(model_args.model_name_or_path)
    model = load_classifier(source, revision=model_args.model_revision, token=args.hub_token)
    own = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if own != images.names:
        raise ValueError(
            f"model_name_or_path: its classes {own[:5]}... are not those of the images, {images.names[:5]}..."
        )
    samples = evaluation_samples(model, data_args, images, args.seed)
    trainer = ClassificationTrainer(
        model=model, args=args, eval_dataset=samples, names=images.names, corruptions=data_args.corruptions
    )
    metrics = trainer.evaluate()
    metrics |= trainer.conclude()
    if args.should_save:
        trainer.save_metrics("eval", metrics)
    return metrics
