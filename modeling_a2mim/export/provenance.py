"""What a training record says of the data of a run, in words and without paths."""

from ..arguments.data import ClassificationArguments, DataArguments, PreTrainingDataArguments, sources_of
from ..data.augmentation import finetuning_augmentation, pretraining_augmentation
from .record import hub_id


BUNDLED = "zalando-datasets/fashion_mnist"  # what the bundled sample is a part of


def data_provenance(args: DataArguments, split: str | None, seen: bool) -> dict:
    """What a model card says of the data: ids of datasets on the Hub, or what kind of images.

    Args:
        args: what names the data.
        split: that the model is evaluated on, if it is one of the source.
        seen: whether it is trained on images that it is evaluated on (`data.overlap.evaluates_on_training`).
    """
    sources = sources_of(args)
    ids = [BUNDLED if source is None else hub_id(source) for source in sources]
    known = [name for name in dict.fromkeys(ids) if name is not None]
    words = ["the bundled sample of Fashion-MNIST" if source is None else hub_id(source) for source in sources]
    result = {"datasets": known, "data": ", ".join(dict.fromkeys(w or "images of the author" for w in words))}
    note = []
    if args.validation_dir is None and len(ids) == 1 and ids[0] is not None:
        result["evaluated_on"] = ids[0]
        note += ["a sample of the test split"] if sources == [None] else [f"split {split}"]
        note += ["which it was trained on"] if seen else []
    else:
        result["evaluation_data"] = "the author's, " + ("which it was trained on" if seen else "held out")
    if args.max_eval_samples is not None:
        note.append(f"at most {args.max_eval_samples:,} of them")
    return {**result, "evaluation_note": ", ".join(note) or None}


def pretraining_provenance(args: PreTrainingDataArguments, seen: bool) -> dict:
    """`data_provenance`, and the augmentation beside crops."""
    used = {name: value for name, value in pretraining_augmentation(args).items() if value}
    words = [name if value is True else f"{name} {value:g}" for name, value in used.items()]
    return {**data_provenance(args, args.validation_split, seen), "augmentation": ", ".join(words) or "none"}


def monitor_data(args: PreTrainingDataArguments, evaluated: str | None) -> str:
    """What the encoder is measured on while it learns, in words.

    Args:
        evaluated: what the model is evaluated on, of `splits.load_pretraining_splits`.
    """
    if args.monitor_dir is None and args.monitor_dataset is None:
        return evaluated or "the images that it was evaluated on"
    name = hub_id(args.monitor_dataset)
    split = f", split {args.monitor_split}" if args.monitor_split else ""
    return "the author's" if name is None else f"{name}{split}"


def classification_provenance(args: ClassificationArguments, split: str | None, seen: bool) -> dict:
    """`data_provenance`, how few labels there were, and the augmentation beside crops."""
    result = data_provenance(args, split, seen)
    if few_labels(args) or args.max_train_samples is not None:
        note = [result["evaluation_note"], f"trained with {labels_used(args)}"]
        result["evaluation_note"] = ", ".join(filter(None, note))
    words = [f"{name} {value}" for name, value in finetuning_augmentation(args).items()]
    return {**result, "augmentation": ", ".join(words) or None}


def labels_used(args: ClassificationArguments) -> str:
    """How many labels are trained with, in words."""
    few = few_labels(args)
    if args.max_train_samples is None:
        return few or "all labels"
    return f"{f'{few}, of ' if few else ''}at most {args.max_train_samples:,} images"


def few_labels(args: ClassificationArguments) -> str | None:
    """How few labels are trained with, in words; `None` for all."""
    if args.labels_per_class is not None:
        return f"{args.labels_per_class} labels of each class"
    if args.label_fraction is not None:
        return f"{args.label_fraction:.3g} of the labels of each class"
    return None if args.label_subset is None else "a saved subset of the labels"
