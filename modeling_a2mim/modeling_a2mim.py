"""The method: a timm encoder, whole and unchanged, with a mask token at one of its feature maps, and a light decoder.

`A2MIMForPreTraining.forward` is to be read from top to bottom: mask, fill, encode with the token, decode, two losses.
Architecture-Agnostic Masked Image Modeling (Li et al., ICML 2023, https://arxiv.org/abs/2205.13943).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .base_model import A2MIMPreTrainedModel, EncoderModel
from .configuration_a2mim import A2MIMConfig
from .decoders import init_decoder, make_decoder
from .encoders.plan import scale_grid
from .encoders.tracing import run_last_map
from .losses import frequency_loss, spatial_loss
from .mask_site import choose_site
from .masking import MaskToken, as_grid, fill_masked, random_mask
from .targets import cell_statistics, normalise_cells, restore_cells


NORMALISE = (
    "of pixels in [0, 1], subtract image_mean and divide by image_std of the model's config, as its image processor "
    "does"
)


@dataclass
class A2MIMForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, `spatial_loss + config.frequency_loss_weight * frequency_loss`.
        spatial_loss: scalar, the (focal) L1 error of the masked pixels.
        frequency_loss: scalar, the Fourier term before its weight; `None` where its weight is 0.
        reconstruction: (batch, channels, height, width), predicted pixels in the normalised scale of `pixel_values`;
            of a model whose target is normalised cells, with the true mean and deviation of each.
        bool_masked_pos: (batch, rows, columns), the mask that was used, True = 1 = masked.
        hidden_states: the encoder's intermediate feature maps, if `output_hidden_states=True`.
    """

    loss: torch.Tensor | None = None
    spatial_loss: torch.Tensor | None = None
    frequency_loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class A2MIMModel(EncoderModel):
    """A timm encoder, optionally with the mask token. Without a mask its features are timm's, bit for bit.

    Args:
        config: the encoder, the mask and the site that the token enters.
        use_mask_token: whether to make the token, so that `forward` accepts `bool_masked_pos`.
        num_classes: outputs of timm's own classifier; 0 for none.

    Raises:
        ValueError: naming the field of the configuration that the encoder cannot be built with.
    """

    _keys_to_ignore_on_load_unexpected = [r"mask_token\.", r"^decoder\.", r"^a2mim\.mask_token\."]

    def __init__(self, config: A2MIMConfig, use_mask_token: bool = False, num_classes: int = 0):
        super().__init__(config, use_mask_token, num_classes)
        self.site = self.mask_token = None
        if use_mask_token:
            self.site, _ = choose_site(self.encoder, self.plan, config)
            if self.site != self.plan.sites[0]:
                config.mask_site = self.site.module  # what was found out by trying is kept with the checkpoint
            self.mask_token = MaskToken(config, self.site.layout)
            self.encoder.get_submodule(self.site.module).register_forward_hook(self.mask_token.hook)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images.
            bool_masked_pos: (batch, rows, columns) or (batch, cells), 1 = masked; masked pixels are filled and the
                mask token enters the encoder. Without it the encoder sees the whole image.
            output_hidden_states: return the feature maps of timm's `forward_intermediates`, too.

        Returns:
            `last_hidden_state`: timm's `forward_features`, in the encoder's own layout; `pooler_output`: timm's pooled
            features (batch, features); `hidden_states`.

        Raises:
            ValueError: if the images or the mask do not fit the configuration.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        last, hidden_states = self.encode(pixel_values, bool_masked_pos, states)
        output = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=self.encoder.forward_head(last, pre_logits=True),
            hidden_states=hidden_states,
        )
        return output if return_dict else output.to_tuple()

    def mask_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of the mask of these images.

        Raises:
            ValueError: if they are no images of this model.
        """
        check_images(pixel_values, self.config.num_channels)
        (height, width), (cell_height, cell_width) = pixel_values.shape[-2:], self.config.mask_cell_size
        return height // cell_height, width // cell_width

    def encode(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        decoded: bool = False,
    ) -> tuple[Any, tuple[Any, ...] | None]:
        """The encoder without its head: (last_hidden_state, hidden_states or None). Arguments as in `forward`;
        with `decoded`, the first is what `feature_map` reads, also where timm's `forward_features` gives no map."""
        grid, token = self.mask_grid(pixel_values), self.mask_token
        if bool_masked_pos is not None:
            if token is None:
                raise ValueError("bool_masked_pos: this model was made with use_mask_token=False and takes no mask")
            mask = as_grid(bool_masked_pos, pixel_values.shape[0], grid)
            # Images permuted from (height, width, channels) would run a CNN in channels_last, whose BatchNorm on a CPU
            # is 20 times less exact; a model that was moved to channels_last stays in it anyway.
            pixel_values = fill_masked(pixel_values.contiguous(), mask, self.config.mask_fill)
            token.state = mask, scale_grid(self.site.layout, pixel_values.shape[-2:], self.config.input_size)
        pixel_values = pixel_values.to(self.dtype)  # of a model in bfloat16, say, as transformers' models do
        try:
            outputs = self._run_encoder(pixel_values, output_hidden_states, decoded and self.plan.from_intermediates)
            if token is not None and self.gradient_checkpointing:
                token.restore_in_backward(outputs)
        finally:
            if token is not None:
                token.state = None
        return outputs

    def _run_encoder(
        self, pixel_values: torch.Tensor, output_hidden_states: bool, only_map: bool
    ) -> tuple[Any, tuple[Any, ...] | None]:
        if output_hidden_states:
            last, hidden_states = self.encoder.forward_intermediates(pixel_values)
            return (hidden_states[-1] if only_map else last), tuple(hidden_states)
        if only_map:
            return run_last_map(self.encoder, pixel_values), None
        return self.encoder.forward_features(pixel_values), None

    def feature_map(self, last_hidden_state: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """The map that the decoder reads, (batch, channels, rows, columns), for images of `size` (height, width)."""
        if self.plan.head_norm is not None:
            last_hidden_state = self.encoder.get_submodule(self.plan.head_norm)(last_hidden_state)
        grid = scale_grid(self.plan.map_layout, size, self.config.input_size)
        return self.plan.map_layout.to_map(last_hidden_state, grid)


class A2MIMForPreTraining(A2MIMPreTrainedModel):
    """Masked image modelling (Li et al., ICML 2023, https://arxiv.org/abs/2205.13943): fill the masked pixels, encode
    with the mask token, decode (`config.decoder`), compare with the image by a spatial and a Fourier loss.

    Args:
        config: the encoder, the mask, the decoder and the losses.

    Raises:
        ValueError: naming the field of the configuration that does not work with the encoder.
    """

    def __init__(self, config: A2MIMConfig):
        super().__init__(config)
        self.a2mim = A2MIMModel(config, use_mask_token=True)
        self.decoder, self.stride = make_decoder(config, self.a2mim.plan, self.a2mim.encoder)
        self.supports_gradient_checkpointing = self.a2mim.supports_gradient_checkpointing
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if any(module is part for part in self.decoder.modules()):
            init_decoder(self.decoder, module, self.config.initializer_range)
        else:
            super()._init_weights(module)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> A2MIMForPreTrainingOutput | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images; they are also the target.
            bool_masked_pos: (batch, rows, columns) or (batch, cells), 1 = masked. Drawn at random when not given, with
                `config.mask_ratio`, on the device of the images and from its global generator.
            output_hidden_states: return the encoder's intermediate feature maps, too.

        Returns:
            [`A2MIMForPreTrainingOutput`]

        Raises:
            ValueError: if the images or the mask do not fit the configuration.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        states = config.output_hidden_states if output_hidden_states is None else output_hidden_states

        # The mask: True = 1 = masked.
        grid, size = self.a2mim.mask_grid(pixel_values), tuple(pixel_values.shape[-2:])
        if bool_masked_pos is None:
            count = config.masked_cells(grid)
            bool_masked_pos = random_mask(len(pixel_values), grid, count, device=pixel_values.device)
        mask = as_grid(bool_masked_pos, len(pixel_values), grid)

        # Masked pixels are filled, and the token enters where the features of masked cells are.
        stages = getattr(self.decoder, "indices", None)  # that a multiscale decoder reads beside the last map
        last, maps = self.a2mim.encode(pixel_values, mask, states or stages is not None, decoded=True)
        features = self.a2mim.feature_map(last, size)

        reconstruction = self.decode(features if stages is None else [*(maps[i] for i in stages), features], size)

        target, statistics = pixel_values, None
        if config.target == "normalised":
            statistics = cell_statistics(pixel_values, config.mask_cell_size)
            target = normalise_cells(pixel_values, statistics)
        loss = spatial = spatial_loss(reconstruction, target, mask, config.spatial_loss)
        frequency = None
        if config.frequency_loss_weight:
            frequency = frequency_loss(
                reconstruction,
                target,
                mask,
                focal=config.frequency_focal,
                replacement=config.frequency_replacement,
                unmasked_weight=config.frequency_unmasked_weight,
                batch_average=config.frequency_batch_average,
                kind=config.spatial_loss,
            )
            loss = spatial + config.frequency_loss_weight * frequency
        if statistics is not None:
            reconstruction = restore_cells(reconstruction, statistics)
        hidden_states = maps if states else None
        output = A2MIMForPreTrainingOutput(loss, spatial, frequency, reconstruction, mask, hidden_states)
        return output if return_dict else output.to_tuple()

    def decode(self, features: torch.Tensor | Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """The last feature map (batch, channels, rows, columns), or those that a multiscale decoder reads, to images
        (batch, image channels, height, width)."""
        image = F.pixel_shuffle(self.decoder(features), self.stride)
        if image.shape[-2] >= size[0] and image.shape[-1] >= size[1]:
            return image[..., : size[0], : size[1]]
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def check_images(pixel_values: torch.Tensor, channels: int) -> None:
    """
    Raises:
        ValueError: if these are no normalised images of so many channels, as far as type and shape tell.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(f"pixel_values: expected a tensor, got {type(pixel_values).__name__}")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(f"pixel_values: expected (batch, {channels}, height, width), got {tuple(pixel_values.shape)}")
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values: expected normalised images, got {pixel_values.dtype}; {NORMALISE}")


def find_core(model: nn.Module) -> A2MIMModel:
    """The `A2MIMModel` in a model that holds one."""
    return next(module for module in model.modules() if isinstance(module, A2MIMModel))


__all__ = [
    "A2MIMForPreTraining",
    "A2MIMForPreTrainingOutput",
    "A2MIMModel",
    "A2MIMPreTrainedModel",
]
