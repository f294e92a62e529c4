"""What a run starts from: models of folders and repositories, and their weights."""

from .exports import other_format, weights_for
from .hub_files import HUB_KWARGS, find_file, find_optional_file, folder_or_id
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
from .opening import open_encoder, plain_source
from .weight_files import SAFE_FILES
from .without_config import is_weights_file, open_registered


__all__ = [
    "CLASSIFIERS",
    "DETECTORS",
    "HUB_KWARGS",
    "MASKED",
    "PRETRAINED",
    "PRETRAINING_CONFIG",
    "PRETRAINING_FOLDER",
    "SAFE_FILES",
    "Pretrained",
    "backbone_names",
    "find_file",
    "find_optional_file",
    "folder_or_id",
    "is_weights_file",
    "open_encoder",
    "open_pretrained",
    "open_registered",
    "other_format",
    "plain_source",
    "weights_for",
]
