"""A2MIM for Hugging Face: masked image modelling for any timm encoder."""

import importlib
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
)

from a2mim import __version__ as __version__

from .configuration_a2mim import A2MIMConfig
from .modeling_a2mim import A2MIMForPreTraining, A2MIMForPreTrainingOutput, A2MIMModel, A2MIMPreTrainedModel
from .models.backbone import A2MIMBackbone
from .models.classifier import A2MIMForImageClassification
from .models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection, A2MIMObjectDetectionOutput
from .models.start import pretraining_model_from
from .pretrained import open_encoder


AutoConfig.register(A2MIMConfig.model_type, A2MIMConfig)
AutoConfig.register(A2MIMDetectorConfig.model_type, A2MIMDetectorConfig)
AutoBackbone.register(A2MIMConfig, A2MIMBackbone)
AutoModel.register(A2MIMConfig, A2MIMModel)
AutoModelForPreTraining.register(A2MIMConfig, A2MIMForPreTraining)
AutoModelForMaskedImageModeling.register(A2MIMConfig, A2MIMForPreTraining)
AutoModelForImageClassification.register(A2MIMConfig, A2MIMForImageClassification)
AutoModelForObjectDetection.register(A2MIMDetectorConfig, A2MIMForObjectDetection)

# Imported when they are asked for: what only runs a model needs neither `datasets` nor what trains.
TRAINING = {
    "A2MIMTrainer": "training.trainer",
    "A2MIMTrainingArguments": "arguments.training",
    "FineTuningArguments": "arguments.training",
    "FineTuningTrainer": "tasks.classification.trainer",
    "embed": "api",
    "finetune": "api",
    "pretrain": "api",
}


def __getattr__(name: str) -> Any:
    if name in TRAINING:
        return getattr(importlib.import_module(f".{TRAINING[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *TRAINING})


__all__ = [
    "A2MIMBackbone",
    "A2MIMConfig",
    "A2MIMDetectorConfig",
    "A2MIMForImageClassification",
    "A2MIMForObjectDetection",
    "A2MIMForPreTraining",
    "A2MIMForPreTrainingOutput",
    "A2MIMModel",
    "A2MIMObjectDetectionOutput",
    "A2MIMPreTrainedModel",
    "A2MIMTrainer",
    "A2MIMTrainingArguments",
    "FineTuningArguments",
    "FineTuningTrainer",
    "embed",
    "finetune",
    "open_encoder",
    "pretrain",
    "pretraining_model_from",
]
