"""What a run starts from: models of folders and repositories, and their weights."""

from .exports import other_format, weights_for
from .hub_files import HUB_KWARGS, find_file
from .models import (
    CLASSIFIERS,
    DETECTORS,
    MASKED,
    PRETRAINED,
    PRETRAINING_CONFIG,
    PRETRAINING_FOLDER,
    Pretrained,
    backbone_names,
    open_pretrained,
)
from .weight_files import WEIGHTS_FILES


__all__ = [
    "CLASSIFIERS",
    "DETECTORS",
    "HUB_KWARGS",
    "MASKED",
    "PRETRAINED",
    "PRETRAINING_CONFIG",
    "PRETRAINING_FOLDER",
    "WEIGHTS_FILES",
    "Pretrained",
    "backbone_names",
    "find_file",
    "open_pretrained",
    "other_format",
    "weights_for",
]
