"""A linear probe: one classifier trained on the pooled features of a frozen encoder."""

import copy
from collections.abc import Collection
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from ..configuration_a2mim import A2MIMConfig
from ..encoders.plan import classifier_parameters
from ..modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel
from .classifier import A2MIMForImageClassification
from .freezing import PartlyFrozen
from .pooled_features import ALL, Layer, layer_features, layer_index, layer_widths


class LinearProbe(PartlyFrozen, A2MIMPreTrainedModel):
    """A frozen encoder and one linear classifier of `config.num_labels` classes on its pooled features.

    The encoder stays in evaluation mode, running statistics included, and builds no graph for gradients. Two fields of
    the configuration, which `from_encoder` sets, say what the classifier reads: `probe_layer` (see `layer_features`;
    `None` without it, "all" for mean and deviation of every stage) and `probe_batch_norm` (False without it), a
    BatchNorm without weights before the classifier, as MoCo v3 and MAE (https://arxiv.org/abs/2111.06377) have it, so
    that features of any scale train alike.

    Raises:
        ValueError: if there are no labels, or the encoder has no such layer.
    """

    is_frozen = True

    def __init__(self, config: A2MIMConfig):
        super().__init__(config)
        if not config.num_labels:
            raise ValueError("num_labels: a classifier needs at least one label")
        self.loss_type = "ForImageClassification"  # transformers goes by the name of the class
        self.num_labels = config.num_labels
        self.a2mim = A2MIMModel(config)
        self.layer = layer_index(self.a2mim, getattr(config, "probe_layer", None), "probe_layers")
        width = sum(layer_widths(self.a2mim, self.layer))
        # The features of frozen weights do not drift: statistics are the mean over all batches so far (momentum=None),
        # in which the first guess of 0 and 1 has no part, however few steps there are.
        batch_norm = getattr(config, "probe_batch_norm", False)
        self.norm = nn.BatchNorm1d(width, eps=1e-6, momentum=None, affine=False) if batch_norm else None
        if batch_norm:
            # See `_normalised` and `batch_norm`.
            self.norm.takes_single_values = True  # type: ignore[assignment]  # torch's stub allows no plain values
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()
        self.train()

    @classmethod
    def from_encoder(
        cls,
        model: A2MIMPreTrainedModel,
        layer: Layer = None,
        batch_norm: bool = True,
        id2label: dict[int, str] | None = None,
    ) -> "LinearProbe":
        """A new probe with a copy of the encoder of a model (its own classifier, if it has one, left out).

        Args:
            model: an A2MIMModel, or a model that holds one as `a2mim`.
            layer: what is read, see `layer_features`.
            batch_norm: whether a BatchNorm comes before the classifier.
            id2label: names of the classes; those of the model, if not given.
        """
        core: Any = getattr(model, "a2mim", model)
        config = copy.deepcopy(model.config)
        config.probe_layer, config.probe_batch_norm = layer, batch_norm
        if id2label is not None:
            config.id2label = dict(id2label)
            config.label2id = {name: index for index, name in config.id2label.items()}
        probe = cls(config)
        _copy_weights(core.encoder, probe.a2mim.encoder, probe.a2mim.plan.names)
        return probe.to(core.device)  # type: ignore[arg-type]  # the stub of transformers' `to` lacks `self`

    def train(self, mode: bool = True) -> Self:
        self.a2mim.requires_grad_(False)  # from_pretrained, which ends with eval(), makes new parameters
        return super().train(mode)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.classifier:
            init.normal_(module.weight, std=0.01)
            init.zeros_(module.bias)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images.
            labels: (batch,) class indices, or (batch, classes) for `problem_type="multi_label_classification"`.

        Returns:
            `logits` (batch, classes), and `loss` where there are labels.

        Raises:
            ValueError: if the images have another number of channels, or are integers.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        with torch.no_grad():
            (features,) = layer_features(self.a2mim, pixel_values, [self.layer], "probe_layers")
        logits = self.classifier(self._normalised(features).to(self.classifier.weight.dtype))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output if return_dict else output.to_tuple()

    def _normalised(self, features: torch.Tensor) -> torch.Tensor:
        if self.norm is None:
            return features
        if self.training and len(features) == 1:  # the last batch of an epoch: no variance, so as in evaluation
            return F.batch_norm(features, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        return self.norm(features)

    @torch.no_grad()
    def to_classifier(self) -> A2MIMForImageClassification:
        """The same function as an ordinary classifier, the BatchNorm folded into timm's own last layer.

        Raises:
            ValueError: if the probe reads feature maps, which timm's classifier does not, or timm's classifier is
                more than one linear layer on the encoder's pooled features.
        """
        if self.layer is not None:
            what = "every stage" if self.layer == ALL else f"the mean of map {self.layer}"
            raise ValueError(f"probe_layers: timm's classifier reads its own pooled features, not {what}")
        config = copy.deepcopy(self.config)
        config.architectures = None
        for name in ("probe_layer", "probe_batch_norm"):
            if hasattr(config, name):
                delattr(config, name)
        model = A2MIMForImageClassification(config)
        encoder, names = model.a2mim.encoder, self.a2mim.plan.names
        head, own = encoder.get_classifier(), classifier_parameters(encoder)
        # Of other heads (a norm, a hidden layer, two outputs) the probe knows nothing.
        linear = isinstance(head, (nn.Linear, nn.Conv2d)) and head.weight.numel() == self.classifier.weight.numel()
        if not linear or head.bias is None or set(encoder.state_dict()) != names | own:
            raise ValueError(
                f"architecture: timm's classifier of {config.architecture} is not one linear layer with a bias on its "
                "pooled features"
            )
        _copy_weights(self.a2mim.encoder, encoder, names)
        weight, bias = self.classifier.weight.double(), self.classifier.bias.double()
        if self.norm is not None:
            weight = weight / (self.norm.running_var.double() + self.norm.eps).sqrt()
            bias = bias - weight @ self.norm.running_mean.double()
        head.weight.copy_(weight.view_as(head.weight))  # some are 1x1 convolutions
        head.bias.copy_(bias)
        model.to(self.device)  # type: ignore[arg-type]  # the stub of transformers' `to` lacks `self`
        return model.eval()


def _copy_weights(source: nn.Module, target: nn.Module, names: Collection[str]) -> None:
    """Copy these weights between two encoders of one configuration. Buffers that are not saved (relative positions of
    a Swin) are the same in both from the start."""
    weights = source.state_dict()
    target.load_state_dict({name: weights[name] for name in names}, strict=False)
