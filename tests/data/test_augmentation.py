"""The augmentation that the arguments say, as keyword arguments of the transforms."""

import inspect

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.data.augmentation import finetuning_augmentation, pretraining_augmentation
from modeling_a2mim.data.transforms import FineTuneTransform, PreTrainTransform


CFG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 0.9,
}


def test_pretraining_takes_every_augmentation_of_its_transform():
    said = {"hflip": 0.1, "vflip": 0.2, "rotate90": True, "color_jitter": 0.3, "grayscale": 0.4}
    said |= {"crop_pixels": 64, "min_content": 0.5}
    assert pretraining_augmentation(PreTrainingDataArguments(**said)) == said
    parameters = inspect.signature(PreTrainTransform).parameters.values()
    assert said.keys() == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_fine_tuning_leaves_out_what_was_not_given():
    assert finetuning_augmentation(ClassificationArguments()) == {"hflip": 0.5, "vflip": 0.0}


def test_erasing_is_off_at_a_share_of_zero():
    assert not {"re_prob", "re_mode"} & finetuning_augmentation(ClassificationArguments(remode="pixel")).keys()
    erased = finetuning_augmentation(ClassificationArguments(reprob=0.25, remode="pixel"))
    assert (erased["re_prob"], erased["re_mode"]) == (0.25, "pixel")


@pytest.mark.parametrize(
    ("said", "step"),
    [
        ({"auto_augment": "rand-m6-mstd0.5-inc1"}, "RandAugment"),
        ({"color_jitter": 0.4}, "ColorJitter"),
        ({"vflip": 0.5}, "RandomVerticalFlip"),
        ({"reprob": 0.25}, "RandomErasing"),
    ],
)
def test_timm_takes_what_is_given(said, step):
    plain = FineTuneTransform(CFG, **finetuning_augmentation(ClassificationArguments()))
    asked = FineTuneTransform(CFG, **finetuning_augmentation(ClassificationArguments(**said)))
    assert step not in [type(t).__name__ for t in plain.transform.transforms]
    assert step in [type(t).__name__ for t in asked.transform.transforms]
