"""The augmentation beside crops, as the arguments say it and as the transforms take it."""

from typing import Any

from ..arguments.data import ClassificationArguments, PreTrainingDataArguments


def pretraining_augmentation(args: PreTrainingDataArguments) -> dict[str, Any]:
    """Keyword arguments of `PreTrainTransform`."""
    names = ("hflip", "vflip", "rotate90", "color_jitter", "grayscale", "crop_pixels", "min_content")
    return {name: getattr(args, name) for name in names}


def finetuning_augmentation(args: ClassificationArguments) -> dict[str, Any]:
    """Keyword arguments of `FineTuneTransform`; what was not given is left out."""
    values: dict[str, Any] = {"hflip": args.hflip, "vflip": args.vflip, "color_jitter": args.color_jitter}
    values |= {"auto_augment": args.auto_augment, "re_prob": args.reprob or None}
    if args.reprob:
        values["re_mode"] = args.remode
    return {name: value for name, value in values.items() if value is not None}
