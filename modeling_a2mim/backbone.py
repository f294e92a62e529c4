"""A pre-trained encoder under the detectors and segmenters of transformers."""

import torch
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from .configuration_a2mim import A2MIMConfig
from .modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel


class A2MIMBackbone(BackboneMixin, A2MIMPreTrainedModel):
    """The encoder as a backbone for the detectors and segmenters of transformers (UperNet, Mask2Former, DETR, ...).

    Its stages are timm's `feature_info`, by the names of its modules; `config.out_indices` or `config.out_features`
    choose some of them, the last one by default. `channels` are those of the chosen ones.

    Raises:
        ValueError: naming the field of the configuration that the encoder cannot be built with.
    """

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = A2MIMModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: A2MIMConfig):
        encoder = A2MIMModel(config)
        stages = encoder.encoder.feature_info
        config.set_stages([stage["module"] for stage in stages])
        super().__init__(config)
        self.a2mim = encoder
        self.num_features = [stage["num_chs"] for stage in stages]
        self.supports_gradient_checkpointing = encoder.supports_gradient_checkpointing
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images.
            output_hidden_states: return the maps of all stages, too.
            output_attentions: cannot be had from timm's encoders.

        Returns:
            `feature_maps`: (batch, channels, rows, columns) of each chosen stage.

        Raises:
            ValueError: if the images have another number of channels, or attentions are asked for.
        """
        if output_attentions:
            raise ValueError("output_attentions: timm's encoders do not give their attentions")
        return_dict = self.config.return_dict if return_dict is None else return_dict
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            shape = f"(batch, {self.config.num_channels}, height, width)"
            raise ValueError(f"pixel_values: expected {shape}, got {tuple(pixel_values.shape)}")
        chosen = sorted(index % len(self.stage_names) for index in self.out_indices)
        indices = list(range(len(self.stage_names))) if states else chosen
        maps = self.a2mim.encoder.forward_intermediates(
            pixel_values, indices=indices, output_fmt="NCHW", intermediates_only=True
        )
        maps = dict(zip(indices, maps, strict=True))
        output = BackboneOutput(
            feature_maps=tuple(maps[index] for index in chosen), hidden_states=tuple(maps.values()) if states else None
        )
        return output if return_dict else output.to_tuple()
