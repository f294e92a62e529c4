"""A pre-trained encoder under the detectors and segmenters of transformers."""

from collections.abc import Sequence
from typing import Self

import torch
from timm.layers import LayerNorm2d
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..configuration_a2mim import A2MIMConfig
from ..modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel, check_images
from .freezing import PartlyFrozen


class A2MIMBackbone(PartlyFrozen, BackboneMixin, A2MIMPreTrainedModel):
    """The encoder as a backbone for the detectors and segmenters of transformers (UperNet, Mask2Former, DETR, ...).

    Its stages are timm's `feature_info`, by the names of its modules; `config.out_indices` or `config.out_features`
    choose some of them, the last one by default. `channels` are those of the chosen ones. With
    `config.feature_pyramid`, four maps of one resolution become maps of four (see `FeaturePyramid`).

    Args:
        config: the encoder and `out_indices` or `out_features`.

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
        self.pyramid = FeaturePyramid(self.channels) if getattr(config, "feature_pyramid", False) else None
        self.supports_gradient_checkpointing = encoder.supports_gradient_checkpointing
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.ConvTranspose2d):
            init.kaiming_uniform_(module.weight, a=5**0.5)  # torch's own
            init.zeros_(module.bias)
        elif isinstance(module, LayerNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def freeze_encoder(self) -> Self:
        """Only what follows trains (pyramid, heads); the encoder keeps its weights and its running statistics."""
        self.a2mim.requires_grad_(False)
        return self.keep_frozen()

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
            output_hidden_states: return the maps of all stages, too, as the encoder gives them.
            output_attentions: cannot be had from timm's encoders.

        Returns:
            `feature_maps`: (batch, channels, rows, columns) of each chosen stage.

        Raises:
            ValueError: if the images have another number of channels or are integers, or attentions are asked for.
        """
        if output_attentions:
            raise ValueError("output_attentions: timm's encoders do not give their attentions")
        return_dict = self.config.return_dict if return_dict is None else return_dict
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        check_images(pixel_values, self.config.num_channels)
        chosen = sorted(index % len(self.stage_names) for index in self.out_indices)
        indices = list(range(len(self.stage_names))) if states else chosen
        maps = self.a2mim.encoder.forward_intermediates(
            pixel_values, indices=indices, output_fmt="NCHW", intermediates_only=True
        )
        maps = dict(zip(indices, maps, strict=True))
        features = tuple(maps[index] for index in chosen)
        if self.pyramid is not None:
            features = self.pyramid(features)
        output = BackboneOutput(feature_maps=features, hidden_states=tuple(maps.values()) if states else None)
        return output if return_dict else output.to_tuple()


class FeaturePyramid(nn.Module):
    """Four maps of an isotropic encoder, such as a ViT, at 4, 2, 1 and 1/2 times their resolution, by transposed
    convolutions and pooling, as heads for hierarchical encoders want them (https://arxiv.org/abs/2106.08254).

    Args:
        channels: of the four maps, which they keep.

    Raises:
        ValueError: naming `out_indices`, if there are not four.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        if len(channels) != 4:
            raise ValueError(f"out_indices: a feature pyramid is made of four maps, not of {len(channels)}")
        first, second, _, _ = channels
        self.levels = nn.ModuleList(
            [
                nn.Sequential(_twice(first), LayerNorm2d(first), nn.GELU(), _twice(first)),
                _twice(second),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Maps (batch, channels, rows, columns), all of one resolution, to maps of four."""
        return tuple(level(features) for level, features in zip(self.levels, maps, strict=True))


def _twice(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)


def four_stages(core: A2MIMModel, distinct: bool = False) -> list[int]:
    """Indices of the four feature maps that a head reads: evenly spread ones of an isotropic encoder, else the last
    ones. All, if there are fewer.

    Args:
        core: the encoder.
        distinct: of a hierarchical encoder, leave out all but the last map of each resolution (a Sequencer has three
            of one): a detector's pyramid needs four strides, while the heads of segmenters enlarge all maps to one.
    """
    stages, isotropic = core.encoder.feature_info, core.plan.isotropic
    if isotropic and len(stages) > 4:
        return [len(stages) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    last = {stage["reduction"] if distinct and not isotropic else i: i for i, stage in enumerate(stages)}
    return sorted(last.values())[-4:]
