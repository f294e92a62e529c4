"""A2MIM for Hugging Face: masked image modelling for any timm encoder."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
)

from .backbone import A2MIMBackbone
from .configuration_a2mim import A2MIMConfig
from .modeling_a2mim import (
    A2MIMForImageClassification,
    A2MIMForPreTraining,
    A2MIMForPreTrainingOutput,
    A2MIMModel,
    A2MIMPreTrainedModel,
)
from .modeling_detection import A2MIMDetectorConfig, A2MIMForObjectDetection, A2MIMObjectDetectionOutput


AutoConfig.register(A2MIMConfig.model_type, A2MIMConfig)
AutoConfig.register(A2MIMDetectorConfig.model_type, A2MIMDetectorConfig)
AutoBackbone.register(A2MIMConfig, A2MIMBackbone)
AutoModel.register(A2MIMConfig, A2MIMModel)
AutoModelForPreTraining.register(A2MIMConfig, A2MIMForPreTraining)
AutoModelForMaskedImageModeling.register(A2MIMConfig, A2MIMForPreTraining)
AutoModelForImageClassification.register(A2MIMConfig, A2MIMForImageClassification)
AutoModelForObjectDetection.register(A2MIMDetectorConfig, A2MIMForObjectDetection)

__version__ = "0.1.0"

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
]
