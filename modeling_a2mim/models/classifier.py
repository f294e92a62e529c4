"""An encoder with timm's own classifier head."""

from typing import Self

import torch
from transformers.modeling_outputs import ImageClassifierOutput

from ..configuration_a2mim import A2MIMConfig
from ..encoders.plan import classifier_parameters
from ..modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel
from .freezing import PartlyFrozen


class A2MIMForImageClassification(PartlyFrozen, A2MIMPreTrainedModel):
    """The encoder with timm's own classifier.

    Args:
        config: the encoder; `num_labels` is the number of classes (or targets), `problem_type` chooses the loss as in
            transformers.

    Raises:
        ValueError: naming `num_labels` if it is 0, or `architecture` if timm's encoder has no classifier.
    """

    def __init__(self, config: A2MIMConfig):
        super().__init__(config)
        if not config.num_labels:
            raise ValueError("num_labels: a classifier needs at least one label")
        self.num_labels = config.num_labels
        self.a2mim = A2MIMModel(config, num_classes=config.num_labels)
        if not hasattr(self.a2mim.encoder, "get_classifier"):
            raise ValueError(f"architecture: timm's {config.architecture} is an encoder without a classifier")
        self.supports_gradient_checkpointing = self.a2mim.supports_gradient_checkpointing
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images.
            labels: (batch,) class indices, or (batch, classes) of 0 and 1 for
                `problem_type="multi_label_classification"`, or (batch,) numbers for `"regression"`.
            output_hidden_states: return the encoder's intermediate feature maps, too.

        Returns:
            `loss`: scalar, if there are labels; `logits`: (batch, num_labels), before softmax; `hidden_states`.

        Raises:
            ValueError: if the images have another number of channels than the model, or are integers.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        last, hidden_states = self.a2mim.encode(pixel_values, output_hidden_states=states)
        logits = self.a2mim.encoder.forward_head(last)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return output if return_dict else output.to_tuple()

    def freeze_encoder(self) -> Self:
        """Linear probe: only the classifier trains; the encoder keeps its weights and its running statistics."""
        classifier = classifier_parameters(self.a2mim.encoder)
        for name, parameter in self.a2mim.encoder.named_parameters():
            parameter.requires_grad_(name in classifier or name not in self.a2mim.plan.names)
        return self.keep_frozen()
