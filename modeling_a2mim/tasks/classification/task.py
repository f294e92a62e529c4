"""Classification: fine-tune, train from scratch or probe, and evaluate a classifier; with figures of its errors."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from transformers import set_seed

from ...arguments.data import MULTI, REGRESSION, SINGLE, ClassificationArguments
from ...arguments.model import ClassifierArguments
from ...arguments.settings import given_settings
from ...arguments.training import FineTuningArguments, data_seed
from ...configuration_a2mim import A2MIMConfig
from ...data.dataset import ImageSamples
from ...data.splits import NO_VALIDATION, image_samples
from ...evaluation.class_figures import MOST_LISTED, class_figure, log_figures
from ...evaluation.decisions import FIELD, DecisionRule, check_positive_class, given_decision
from ...evaluation.errors import errors_table, plot_confusion_matrix, plot_worst_examples
from ...export.filenames import CONFUSION, ERRORS, RECORD_FILE
from ...export.loading import load_classifier, pretraining_beside
from ...export.provenance import classification_provenance
from ...models.classifier import A2MIMForImageClassification
from ...models.continuing import same_setting
from ...models.linear_probe import LinearProbe
from ...models.pooled_features import ALL
from ...pretrained import folder_or_id, is_weights_file
from ...training.best_model import with_best_model, without_evaluation
from ...training.resuming import flags
from ...utils.labels import label_names
from ..encoder import build_classifier
from ..start import encoder_provenance, open_start, task_of
from ..stored_images import check_evaluated
from .corrupted import chosen_corruptions, try_corruptions
from .data import SUBSET, choose_rows, evaluation_samples, keep_subset, training_transform
from .decision import (
    Decision,
    check_choosable,
    check_request,
    decision_on,
    draw_curves,
    keep_decision,
    say_dropped,
    settle,
)
from .frozen import evaluate_features
from .labelled_images import COUNTS, LabelledImages, images_of_each
from .problem_types import check_problem_type, figures_of, start_at_mean
from .seeds import RESULTS, repeat, report
from .trainer import FineTuningTrainer, make_class_weights


logger = logging.getLogger("a2mim")

MOST_LOGGED = 100  # classes whose figures are in logs and card
EVALUATION = "evaluation_pictures"  # the folder of them in that of a model
ERROR_TABLE = "errors.csv"  # names files, which are nobody's business: it is not among what is uploaded


# The steps of a run


def load(
    model_args: ClassifierArguments, data_args: ClassificationArguments, args: FineTuningArguments
) -> LabelledImages:
    """The labelled images of both splits; unless they are for `compare`, with those chosen that are trained on.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    check_arguments(model_args, data_args, args)
    check_request(model_args, data_args.problem_type or SINGLE, data_args.seeds)
    if data_args.problem_type in (MULTI, REGRESSION):
        check_problem_type(data_args.problem_type, model_args, data_args, args)
    images = LabelledImages.load(data_args, args.hub_token)
    if images.validation is None and (data_args.corruptions or model_args.knn or data_args.seeds):
        raise ValueError(NO_VALIDATION)
    images.check()
    check_choosable(model_args, images)
    return images if model_args.knn or data_args.seeds else choose_images(data_args, args, images)


def check_arguments(model_args: ClassifierArguments, data_args: ClassificationArguments, args: FineTuningArguments):
    """Refuse arguments that do not go together.

    Raises:
        ValueError: naming one of them.
    """
    if model_args.linear_probe and model_args.probe_layers and args.push_to_hub:
        raise ValueError("probe_layers: timm's classifier reads pooled features alone; leave --push_to_hub out")
    if model_args.linear_probe and args.layer_decay is not None:
        raise ValueError("layer_decay: the encoder is frozen in all of a --linear_probe; leave it out")
    if model_args.knn and args.push_to_hub:
        raise ValueError("push_to_hub: --knn makes no model that could be pushed; leave it out")
    if model_args.knn and not args.overwrite_output_dir and Path(args.output_dir, RESULTS).is_file():
        logger.warning("output_dir: %s holds %s of an earlier run, which is replaced", args.output_dir, RESULTS)
    if data_args.seeds and args.data_seed is not None:
        raise ValueError("data_seed: each of --seeds draws its labels and order itself; give one of the two")
    if model_args.add_to_card and not (data_args.seeds or model_args.knn):
        raise ValueError("add_to_card: give --seeds, over which the means are written")
    if data_args.corruptions is not None:
        chosen_corruptions(data_args.corruptions)


def choose_images(
    data_args: ClassificationArguments, args: FineTuningArguments, images: LabelledImages
) -> LabelledImages:
    """The images with those chosen that one run trains on, and how much each class counts in its loss.

    Raises:
        ValueError: naming the argument that does not fit the images.
    """
    images = replace(images, rows=choose_rows(data_args, images, data_seed(args)))
    if args.class_weights is None:
        return images
    weights = make_class_weights(args.class_weights, images.counts(images.chosen), images.names)
    return replace(images, class_weights=weights)


def adapt(args: FineTuningArguments, images: LabelledImages) -> FineTuningArguments:
    """The training arguments for these images: whether there is an evaluation, and when one is better.

    Raises:
        ValueError: naming the argument that asks for what no evaluation gives.
    """
    if images.validation is not None:
        return with_best_model(args, images.metrics())
    args = without_evaluation(args)
    if args.metric_for_best_model is not None:
        raise ValueError(f"metric_for_best_model: {NO_VALIDATION.partition(': ')[2]}")
    return args


def build(
    model_args: ClassifierArguments, images: LabelledImages, token: str | None = None
) -> A2MIMForImageClassification | LinearProbe:
    """The classifier, or the probe of a frozen encoder. Raises as `build_classifier`."""
    model: A2MIMForImageClassification | LinearProbe
    model, _ = build_classifier(model_args, images.names, images.problem_type, token)
    if model_args.linear_probe and (model_args.probe_batch_norm or model_args.probe_layers):
        layer = (model_args.probe_layers or [None])[0]
        # The maps of several stages differ in scale.
        model = LinearProbe.from_encoder(model, layer, model_args.probe_batch_norm or layer == ALL)
        if layer is None:
            model.to_classifier()  # which fails now rather than when it is trained
    elif model_args.linear_probe:
        model.freeze_encoder()
    if images.problem_type == REGRESSION:
        start_at_mean(model, cast(Dataset, images.chosen)[images.column][:])  # numbers are not streamed
    return model


def make_trainer(
    model,
    images: LabelledImages,
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
) -> "ClassificationTrainer":
    """A trainer that is ready to `run()`."""
    seed, train, weights = data_seed(args), images.chosen, images.class_weights
    transform = training_transform(model, data_args)
    samples = image_samples(data_args, train, transform, seed, images.column, repeats=data_args.aug_repeats)
    log_start(model, images, args, model_args.linear_probe)
    validation = None if images.validation is None else evaluation_samples(model, data_args, images, seed)
    if images.rows is not None and args.should_save:
        keep_subset(args.output_dir, images.rows, data_args, images, seed)
    elif args.overwrite_output_dir and args.should_save:
        Path(args.output_dir, SUBSET).unlink(missing_ok=True)  # of the earlier run
    example = None if validation is None else validation.first(1)
    start = open_start(model_args, args.hub_token)
    if start is not None and start.data.get(FIELD) is not None:
        say_dropped()
    return ClassificationTrainer(
        model=model,
        args=args,
        train_dataset=samples,
        eval_dataset=validation,
        picture_samples=example,
        pretraining_model=None if start is None else pretraining_beside(start),
        names=images.names,
        corruptions=data_args.corruptions,
        threshold=model_args.threshold,
        positive_class=model_args.positive_class,
        flags=flags(model_args, data_args),
        counts=images.counts(images.validation) if example else None,
        class_weights=weights,
        provenance={
            "task": task_of(model_args),
            **classification_provenance(data_args, images.split, images.seen),
            **encoder_provenance(model_args, args.hub_token, model),
            **images.provenance(),
            "example": images.shown(example[0]["labels"]) if example else None,
            "class_weights": None if weights is None else dict(zip(images.names, weights, strict=True)),
        },
    )


def log_start(model, images: LabelledImages, args: FineTuningArguments, frozen: bool):
    """Log what is trained on what, and warn where an epoch has less than a step."""
    images_in_epoch = len(images.chosen)
    logger.info(
        "%s%s: %s trainable parameters; %s; %s training images",
        model.config.architecture,
        " (frozen encoder)" if frozen else "",
        f"{model.num_parameters(only_trainable=True):,}",
        f"numbers of column {images.column!r}"
        if images.problem_type == REGRESSION
        else f"{len(images.names)} classes",
        f"{images_in_epoch:,}",
    )
    if images.class_weights is not None:
        logger.info("class weights: %s", shown_weights(images.class_weights, images.names))
    if images_in_epoch < args.step_batch_size:
        logger.warning(
            "an epoch has %d images, a step %d: a smaller --%s gives more steps",
            images_in_epoch,
            args.step_batch_size,
            "per_device_train_batch_size" if args.gradient_accumulation_steps == 1 else "gradient_accumulation_steps",
        )


def fine_tune(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> "ClassificationTrainer":
    """One of several runs on the same images: a trainer that is ready to `run()`."""
    args = adapt(args, images)
    images = choose_images(data_args, args, images)
    set_seed(args.seed)
    return make_trainer(build(model_args, images, args.hub_token), images, model_args, data_args, args)


def compare(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> dict:
    """k-NN and logistic regression on frozen features, or a run with each seed: writes a table of results, and
    returns the means."""
    if model_args.knn:
        rows = evaluate_features(model_args, data_args, args, images)
    else:
        rows = repeat(fine_tune, model_args, data_args, args, images)
    return report(rows, model_args, data_args, args, images)


class ClassificationTrainer(FineTuningTrainer):
    """Draws the confusion matrix, the worst errors and the curves of the last evaluation, chooses the threshold by
    which the exported model decides, and tries corrupted images.

    Args:
        names: of the classes.
        counts: images to evaluate on of each class, if that is known.
        corruptions: types of corruptions to try.
        threshold, positive_class: which threshold is chosen after the last evaluation, and of which class
            (`ClassifierArguments`).
    """

    def __init__(
        self,
        *args,
        names: list[str],
        counts: Sequence[int] | None = None,
        corruptions: list[str] | None = None,
        threshold: str | None = None,
        positive_class: str | None = None,
        **kwargs,
    ):
        super().__init__(*args, compute_metrics=self._metrics, **kwargs)
        self.names, self.counts, self.corruptions, self._prediction = names, counts, corruptions, None
        self.problem_type: str = self.model.config.problem_type or SINGLE
        self.threshold, self.positive_class = threshold, positive_class
        self.decision: Decision | None = None

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        if self.eval_dataset is None and self.threshold is not None:  # a number, as there is nothing to choose on
            self._decide(Decision(given_decision(self.threshold, self.positive_class, self.names, self.problem_type)))
        return output

    def _decide(self, decision: Decision):
        """What is trained decides by this rule from now on."""
        self.decision = decision
        self.model.config.decision = decision.rule.to_config()
        self.provenance[FIELD] = decision.record()

    def _metrics(self, prediction) -> dict[str, float]:
        self._prediction = prediction
        self._figures = figures_of(prediction, self.problem_type, self.names)
        return self._figures

    def log(self, logs, start_time=None):
        if len(self.names) > MOST_LOGGED:  # eval_results.json has them
            logs = {name: value for name, value in logs.items() if class_figure(name) is None}
        super().log(logs, start_time)

    def after_evaluation(self, metrics):
        labels = self._prediction.label_ids
        if self.counts is not None and getattr(self.eval_dataset, "left_out", 0):
            self.counts = images_of_each(labels, len(self.names))
            self.provenance[COUNTS] = dict(zip(self.names, self.counts, strict=True))
        log_figures(self._figures, self.names, self.counts, len(labels))
        further = self._decision_metrics()
        if self.corruptions is not None:
            with self.averaged(), self.accelerator.autocast():
                found, rows = try_corruptions(self.unwrapped(), self.eval_dataset, self.args, self.corruptions)
            further |= found
            self.provenance |= {"measured": rows, "measured_on": "on corrupted images, accuracy"}
        folder = self._place_of_pictures()
        if self.args.should_save and self.problem_type == SINGLE:
            draw_errors(folder, self._prediction, self.eval_dataset, self.model.config, self.names)
        if self.args.should_save and self.problem_type != REGRESSION:
            figures = {} if self.decision is None else self.decision.figures
            draw_curves(folder, self._prediction, self.names, self.problem_type, figures)
        return further

    def _place_of_pictures(self) -> str:
        """The output folder; for an evaluation without training in that of a model, whose card shows the pictures of
        its own, another one in it."""
        folder = Path(self.args.output_dir)
        if self.train_dataset is not None or not (folder / RECORD_FILE).is_file() or self.problem_type == REGRESSION:
            return str(folder)
        if self.args.should_save:
            logger.info("pictures of this evaluation are in %s; those of the model's card stay", folder / EVALUATION)
        return str(folder / EVALUATION)

    def _decision_metrics(self) -> dict[str, float]:
        """Choose the threshold, if one was asked for, and measure it, or the one that the model has."""
        own = DecisionRule.from_config(self.model.config)
        request = self.threshold, self.positive_class
        trained = self.train_dataset is not None
        try:
            decision = decision_on(self._prediction, self.names, self.problem_type, *request, own)
        except ValueError as error:
            if not trained:
                raise
            logger.warning("%s; the model is exported without a threshold", error)
            return {}
        if decision is None:
            return {}
        decision.log()
        self.decision = decision
        if trained:
            self._decide(decision)
            if self.args.should_save:
                keep_decision(self.args.output_dir, decision.rule)
        return decision.metrics()

    def model_to_export(self):
        """A probe becomes the classifier that it is equal to, where there is one."""
        model = super().model_to_export()
        return model.to_classifier() if isinstance(model, LinearProbe) else model

    @property
    def _inner_probe(self) -> bool:
        return getattr(self.model, "layer", None) is not None

    def export(self, folder):
        if not self._inner_probe:
            return super().export(folder)
        self.unwrapped().save_pretrained(folder)
        logger.warning(
            "probe_layers: timm's classifier reads pooled features alone; %s is read by a2mim predict and export, and "
            "by modeling_a2mim.models.linear_probe.LinearProbe.from_pretrained",
            folder,
        )

    def write_card(self, folder):
        if not self._inner_probe:
            super().write_card(folder)


def shown_weights(weights: Sequence[float], names: Sequence[str]) -> str:
    """The weights of the first classes in words."""
    shown = [f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True)]
    return ", ".join(shown[:MOST_LISTED]) + (", ..." if len(shown) > MOST_LISTED else "")


def draw_errors(folder: str, prediction, samples: ImageSamples, config: A2MIMConfig, names: list[str]):
    """Write confusion_matrix.png, errors.csv and worst_examples.png for a Trainer's prediction on `samples`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    logits, labels = prediction.predictions, prediction.label_ids
    plot_confusion_matrix(labels, logits.argmax(-1), names, Path(folder, CONFUSION))
    errors_table(logits, labels, names, Path(folder, ERROR_TABLE), samples.name)
    looks: dict[str, Any] = {"mean": config.image_mean, "std": config.image_std}
    looks |= {"channels": config.display_channels, "stretch": config.value_range is not None}
    plot_worst_examples(samples, logits, labels, names, **looks, path=Path(folder, ERRORS), name_of=samples.name)


# Without training


def evaluate(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
) -> dict:
    """Evaluate the classifier in `model_name_or_path`, its classes told apart by their names.

    Raises:
        ValueError: naming `model_name_or_path`, if it holds none, or the images, if there are some of other classes.
    """
    check_arguments(model_args, data_args, args)
    if model_args.model_name_or_path is None:
        raise ValueError("model_name_or_path: --eval_only needs a classifier")
    if args.class_weights is not None:
        raise ValueError("class_weights: --eval_only trains nothing; leave it out")
    if is_weights_file(model_args.model_name_or_path):
        raise ValueError("model_name_or_path: --eval_only needs a classifier; a file of weights is an encoder's")
    source = folder_or_id(model_args.model_name_or_path)
    model = load_classifier(source, revision=model_args.model_revision, token=args.hub_token)
    for name, value in given_settings(model_args).items():
        value = {**model.config.model_args, **value} if name == "model_args" else value
        if not same_setting(model.config, name, value):
            raise ValueError(
                f"{name}: the classifier in {source} has {getattr(model.config, name)}, not {value}, and --eval_only "
                f"evaluates it as it is; leave --{name} out"
            )
    own = DecisionRule.from_config(model.config)
    check_request(model_args, model.config.problem_type or SINGLE, data_args.seeds)
    check_positive_class(
        model_args.positive_class, model_args.threshold, model.config.problem_type, label_names(model.config)
    )
    try:
        images = LabelledImages.for_evaluation(data_args, model.config, args.hub_token)
    except ValueError as error:
        if data_args.validation_dir is not None or data_args.dataset_name is not None:
            raise
        raise ValueError(
            f"validation_dir: name images; those that are bundled do not fit the model ({error})"
        ) from error
    if images.problem_type != SINGLE:
        check_problem_type(images.problem_type, model_args, data_args, args)
    images.check()
    check_choosable(model_args, images)
    if own is not None and model_args.threshold is None:
        own.check(images.names, images.problem_type == MULTI)
    samples = check_evaluated(evaluation_samples(model, data_args, images, args.seed))
    trainer = ClassificationTrainer(
        model=model,
        args=args,
        eval_dataset=samples,
        names=images.names,
        counts=images.counts(images.validation),
        corruptions=data_args.corruptions,
        threshold=model_args.threshold,
        positive_class=model_args.positive_class,
    )
    metrics = trainer.evaluate()
    metrics |= trainer.after_evaluation(metrics)
    if args.should_save:
        trainer.save_metrics("eval", metrics)
        if model_args.threshold is not None:
            settle(trainer.decision, model, source, args.output_dir)
    return metrics
