"""A2MIM models: a timm encoder, whole and unchanged, with a mask token at one of its feature maps and a light decoder.

Architecture-Agnostic Masked Image Modeling (Li et al., ICML 2023, https://arxiv.org/abs/2205.13943).
"""

import copy
import inspect
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, ModelOutput

from .configuration_a2mim import A2MIMConfig
from .decoders import init_decoder, make_decoder
from .encoders.layout import tensors_in
from .encoders.meta import NoValues
from .encoders.plan import plan_encoder, scale_grid, supports_gradient_checkpointing
from .encoders.tracing import run_last_map
from .losses import frequency_loss, frequency_loss_of_means, mean_weights, spatial_loss
from .mask_site import choose_site
from .masking import MaskToken, as_grid, fill_masked, random_mask, resize_mask
from .pretrained import HUB_KWARGS, Pretrained, other_format, weights_for


@dataclass
class A2MIMForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: scalar, `spatial_loss + config.frequency_loss_weight * frequency_loss`.
        spatial_loss: scalar, the (focal) L1 error of the masked pixels.
        frequency_loss: scalar, the Fourier term before its weight; `None` where its weight is 0.
        reconstruction: (batch, channels, height, width), predicted pixels in the normalised scale of `pixel_values`;
            `None` where `num_masked` made decoding all of them needless.
        bool_masked_pos: (batch, rows, columns), the mask that was used, True = 1 = masked.
        hidden_states: the encoder's intermediate feature maps, if `output_hidden_states=True`.
    """

    loss: torch.FloatTensor | None = None
    spatial_loss: torch.FloatTensor | None = None
    frequency_loss: torch.FloatTensor | None = None
    reconstruction: torch.FloatTensor | None = None
    bool_masked_pos: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


def without_sharing(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with copies of tensors that it has under several names, which safetensors refuses: modules that an
    encoder uses at several places (CoaT) are timm's keys at each of them."""
    seen, result = set(), {}
    for name, tensor in state_dict.items():
        place = (tensor.device, tensor.data_ptr())
        result[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return result


class A2MIMPreTrainedModel(PreTrainedModel):
    config: A2MIMConfig
    config_class = A2MIMConfig
    base_model_prefix = "a2mim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True  # timm's attention layers choose it on their own
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise what is ours; timm initialises the encoder when it builds it."""
        if isinstance(module, MaskToken):
            init.trunc_normal_(module.token, std=self.config.initializer_range)
            if module.gamma is not None:
                init.constant_(module.gamma, module.gamma_init)
        elif isinstance(self, A2MIMForPreTraining) and any(module is part for part in self.decoder.modules()):
            init_decoder(self.decoder, module, self.config.initializer_range)
        elif isinstance(module, A2MIMModel):
            module.restore_encoder()

    def initialize_weights(self):
        super().initialize_weights()
        # Inside a model of transformers, _init_weights gets to the encoder; in ours, where transformers passes over
        # modules without parameters of their own, it does not.
        for module in self.modules():
            if isinstance(module, A2MIMModel):
                module.restore_encoder()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but from safetensors only, unless `use_safetensors=False` asks for a pickle. The root of
        an export, which is a checkpoint of another format (timm's, or a segmenter or detector), gives its weights
        where it has all that this class needs.

        Raises:
            ValueError: if the index of a local folder names shards outside of it, or the root of an export lacks
                weights; it names the subfolder that has more.
        """
        kwargs.setdefault("use_safetensors", True)
        index = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder", ""), SAFE_WEIGHTS_INDEX_NAME)
        if index.is_file():
            shards = set(json.loads(index.read_text())["weight_map"].values())
            if strange := [name for name in shards if Path(name).name != name]:
                raise ValueError(f"{index.name}: names a file in another folder, {strange[0]!r}")
        found = other_format(pretrained_model_name_or_path, cls.config_class.model_type, kwargs)
        if found is not None:
            return cls._from_other_format(found, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _from_other_format(cls, found: Pretrained, *args, config=None, **kwargs):
        for name in (*HUB_KWARGS, "subfolder", "use_safetensors"):
            kwargs.pop(name, None)
        if config is None:
            known = found.config.to_dict()
            if found.names:
                known |= {"id2label": dict(enumerate(found.names))}
            config, kwargs = cls.config_class.from_dict(known, return_unused_kwargs=True, **kwargs)
        own = {name: kwargs[name] for name in inspect.signature(cls.__init__).parameters if name in kwargs}
        with torch.device("meta"), NoValues():
            empty = cls(copy.deepcopy(config), *args, **own)
        place = next(name for name, module in empty.named_modules() if isinstance(module, A2MIMModel))
        weights = weights_for(empty, f"{place}.encoder." if place else "encoder.", found)
        return super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)

    def save_pretrained(self, save_directory, state_dict=None, **kwargs):
        """As in transformers, also for encoders that use a module at several places."""
        weights = without_sharing(self.state_dict() if state_dict is None else state_dict)
        return super().save_pretrained(save_directory, state_dict=weights, **kwargs)

    def _replicate_for_data_parallel(self):
        raise RuntimeError(
            "nn.DataParallel is not supported: its copies of the encoder would lose the mask token. "
            "Start one process for each GPU with torchrun or accelerate launch."
        )

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs):
        """Switch timm's own (non-reentrant) checkpointing; options of transformers' do not apply to it."""
        for module in self.modules():
            if isinstance(module, A2MIMModel):
                module.gradient_checkpointing = enable


class A2MIMModel(A2MIMPreTrainedModel):
    """A timm encoder, optionally with the mask token. Without a mask its features are timm's, bit for bit.

    Args:
        config: the configuration.
        use_mask_token: whether to make the token, so that `bool_masked_pos` can be given.
        num_classes: size of timm's own classifier, 0 for none.

    Raises:
        ValueError: naming the field of the configuration that the encoder cannot be built with.
    """

    _keys_to_ignore_on_load_unexpected = [r"mask_token\.", r"^decoder\.", r"^a2mim\.mask_token\."]

    def __init__(self, config: A2MIMConfig, use_mask_token: bool = False, num_classes: int = 0):
        super().__init__(config)
        self.plan = plan_encoder(config, for_masking=use_mask_token)
        self.num_classes = num_classes
        self.encoder = self.plan.create(num_classes)
        self.supports_gradient_checkpointing = supports_gradient_checkpointing(self.encoder)
        self._gradient_checkpointing = False
        # transformers loads weights into a model made on the meta device; see restore_encoder.
        self._encoder_is_made = not next(self.encoder.parameters()).is_meta
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

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether timm checkpoints the encoder; the models of transformers that hold this one set it, too."""
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool):
        self.encoder.set_grad_checkpointing(enable)
        self._gradient_checkpointing = enable

    def encode(self, pixel_values, bool_masked_pos=None, output_hidden_states=False, decoded=False):
        """The encoder without its head: (last_hidden_state, hidden_states or None). Arguments as in `forward`;
        with `decoded`, the first is what `feature_map` reads, also where timm's `forward_features` gives no map."""
        grid = self.mask_grid(pixel_values)
        if bool_masked_pos is None:
            return self._run(pixel_values, output_hidden_states, decoded, None)
        if self.mask_token is None:
            raise ValueError("bool_masked_pos: this model was made with use_mask_token=False and takes no mask")
        mask = as_grid(bool_masked_pos, pixel_values.shape[0], grid)
        # Images permuted from (height, width, channels) would run a CNN in channels_last, whose BatchNorm on a CPU
        # is 20 times less exact; a model that was moved to channels_last stays in it anyway.
        pixel_values = fill_masked(pixel_values.contiguous(), mask, self.config.mask_fill)
        site_grid = scale_grid(self.site.layout, pixel_values.shape[-2:], self.config.input_size)
        return self._run(pixel_values, output_hidden_states, decoded, (mask, site_grid))

    def mask_grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of the mask of these images.

        Raises:
            ValueError: if they are no images of this model.
        """
        channels = self.config.num_channels
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values: expected (batch, {channels}, height, width), got {tuple(pixel_values.shape)}"
            )
        cells = zip(pixel_values.shape[-2:], self.config.mask_cell_size, strict=True)
        return tuple(size // cell for size, cell in cells)

    def feature_map(self, last_hidden_state: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The map that the decoder reads, (batch, channels, rows, columns), for images of `size` (height, width)."""
        if self.plan.head_norm is not None:
            last_hidden_state = self.encoder.get_submodule(self.plan.head_norm)(last_hidden_state)
        grid = scale_grid(self.plan.map_layout, size, self.config.input_size)
        return self.plan.map_layout.to_map(last_hidden_state, grid)

    def restore_encoder(self):
        """Give the encoder its own first values where `from_pretrained` found none in the checkpoint: transformers
        builds models without values and drops the buffers that are not saved (relative positions of a Swin, ...)."""
        holes = {
            name: tensor
            for name, tensor in [*self.encoder.named_parameters(), *self.encoder.named_buffers()]
            if not getattr(tensor, "_is_hf_initialized", False)
        }
        if self._encoder_is_made or not holes or next(iter(holes.values())).is_meta:
            return
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            fresh = self.plan.create(self.num_classes)
        fresh = dict([*fresh.named_parameters(), *fresh.named_buffers()])
        for name, tensor in holes.items():
            tensor.data.copy_(fresh[name])
            tensor._is_hf_initialized = True

    def _run(self, pixel_values, output_hidden_states, decoded, state):
        token, only_map = self.mask_token, decoded and self.plan.from_intermediates
        if token is not None:
            token.state = state
        try:
            if output_hidden_states:
                last, hidden_states = self.encoder.forward_intermediates(pixel_values)
                hidden_states = tuple(hidden_states)
                last = hidden_states[-1] if only_map else last
            elif only_map:
                last, hidden_states = run_last_map(self.encoder, pixel_values), None
            else:
                last, hidden_states = self.encoder.forward_features(pixel_values), None
        finally:
            if token is not None:
                token.state = None
        if token is not None and self.gradient_checkpointing:
            for _, output in tensors_in((last, hidden_states)):
                if output.requires_grad:
                    output.register_hook(lambda gradient: token.remember(state))
        return last, hidden_states


class A2MIMForPreTraining(A2MIMPreTrainedModel):
    """Masked image modelling: encode a masked image, decode it (`config.decoder`), compare with the image.

    Raises:
        ValueError: naming the field of the configuration that does not work with the encoder.
    """

    def __init__(self, config: A2MIMConfig):
        super().__init__(config)
        self.a2mim = A2MIMModel(config, use_mask_token=True)
        self.decoder, self.stride = make_decoder(config, self.a2mim.plan, self.a2mim.encoder)
        self.supports_gradient_checkpointing = self.a2mim.supports_gradient_checkpointing
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_masked: int | None = None,
    ) -> A2MIMForPreTrainingOutput | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images; they are also the target.
            bool_masked_pos: (batch, rows, columns) or (batch, cells), 1 = masked. Drawn at random when not given, with
                `config.mask_ratio`, on the device of the images and from its global generator.
            output_hidden_states: return the encoder's intermediate feature maps, too.
            num_masked: for training, the number of masked cells of each image (or more): then only what the losses
                need is decoded and, where that is less than everything, there is no `reconstruction`.

        Returns:
            [`A2MIMForPreTrainingOutput`]

        Raises:
            ValueError: if the images or the mask do not fit the configuration, or (on a CPU, where looking costs
                nothing) more cells are masked than `num_masked`.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        grid, size = self.a2mim.mask_grid(pixel_values), tuple(pixel_values.shape[-2:])
        if bool_masked_pos is None:
            count = config.masked_cells(grid)
            bool_masked_pos = random_mask(len(pixel_values), grid, count, device=pixel_values.device)
        mask = as_grid(bool_masked_pos, len(pixel_values), grid)
        stages = getattr(self.decoder, "indices", None)
        last, maps = self.a2mim.encode(pixel_values, mask, states or stages is not None, decoded=True)
        features, hidden_states = self.a2mim.feature_map(last, size), maps if states else None

        reconstruction = None
        if num_masked is not None and self._decodes_cell_by_cell(features, mask, grid, size):
            spatial, frequency = self._losses_of_masked_cells(features, pixel_values, mask, num_masked)
        else:
            decoded = features if stages is None else [*(maps[index] for index in stages), features]
            reconstruction = self.decode(decoded, size)
            spatial = spatial_loss(reconstruction, pixel_values, mask, config.spatial_loss)
            frequency = self._frequency_loss(reconstruction, pixel_values, mask)
        loss = spatial if frequency is None else spatial + config.frequency_loss_weight * frequency
        output = A2MIMForPreTrainingOutput(loss, spatial, frequency, reconstruction, mask, hidden_states)
        return output if return_dict else output.to_tuple()

    def _frequency_loss(self, reconstruction, pixel_values, mask):
        config = self.config
        if not config.frequency_loss_weight:
            return None
        return frequency_loss(
            reconstruction,
            pixel_values,
            mask,
            focal=config.frequency_focal,
            replacement=config.frequency_replacement,
            unmasked_weight=config.frequency_unmasked_weight,
            batch_average=config.frequency_batch_average,
            kind=config.spatial_loss,
        )

    def _decodes_cell_by_cell(self, features, mask, grid, size) -> bool:
        """Whether each cell of the feature map is decoded on its own, to pixels that are masked all or none, and the
        Fourier term sees no more of the images than their weighted mean."""
        config, cells = self.config, tuple(features.shape[-2:])
        if config.decoder != "linear":
            return False
        whole = all(c * self.a2mim.plan.stride == s and c % g == 0 for c, s, g in zip(cells, size, grid, strict=True))
        linear = not config.frequency_loss_weight or (config.frequency_focal and config.frequency_batch_average)
        return whole and linear and config.decoder_kernel_size == 1 and tuple(mask.shape[1:]) == grid

    def _losses_of_masked_cells(self, features, pixel_values, mask, num_masked):
        """Both losses (or `None` for the Fourier one) without decoding what no loss needs, equal to those of the whole
        reconstruction up to rounding.

        The spatial term needs the masked cells. The Fourier term needs the mean residual of the batch; the decoder is
        linear, so that the mean of its outputs is its output of the mean feature map.
        """
        config, stride = self.config, self.a2mim.plan.stride
        cells = resize_mask(mask, tuple(features.shape[-2:]))
        count = min(num_masked, mask[0].numel()) * (cells[0].numel() // mask[0].numel())
        masked, chosen = cells.flatten(1).long().topk(count, dim=1)
        if not torch.compiler.is_compiling() and mask.device.type == "cpu" and masked.sum() < cells.sum():
            raise ValueError(f"num_masked: bool_masked_pos masks more than {num_masked} cells of an image")

        (batch, channels, rows, columns), patch = features.shape, (config.num_channels, stride, stride)
        number = torch.arange(batch, device=chosen.device)[:, None]
        tokens = features.permute(0, 2, 3, 1).reshape(-1, channels)
        tokens = tokens.index_select(0, (chosen + number * rows * columns).flatten())
        weights, wide = [], torch.promote_types(features.dtype, torch.float32)
        if config.frequency_loss_weight:
            weights = mean_weights(cells, config.frequency_replacement, config.frequency_unmasked_weight, wide)
            means = torch.stack([(features * weight).mean(0) for weight in weights])
            tokens = torch.cat([tokens, means.permute(0, 2, 3, 1).reshape(-1, channels).to(tokens)])
        # One convolution for all, since each reads and writes the whole weight (25 MB for a ResNet-50).
        decoded = F.conv2d(tokens.T[None, :, :, None], self.decoder.weight)[0, :, :, 0].T
        decoded, means = decoded.split([chosen.numel(), len(tokens) - chosen.numel()])

        pixels = pixel_values.unflatten(3, (columns, stride)).unflatten(2, (rows, stride)).permute(0, 2, 4, 1, 3, 5)
        target = pixels[number, chosen // columns, chosen % columns].flatten(0, 1)  # images of one cell
        prediction = (decoded + self.decoder.bias).view(-1, *patch)
        spatial = spatial_loss(prediction, target, masked.view(-1, 1, 1), config.spatial_loss)
        if not weights:
            return spatial, None
        means = means.to(wide).view(len(weights), rows, columns, -1)
        means = means + torch.stack([weight.mean(0) for weight in weights]).permute(0, 2, 3, 1) * self.decoder.bias
        means = F.pixel_shuffle(means.permute(0, 3, 1, 2), stride)
        frequency = frequency_loss_of_means(means, pixel_values, weights, config.frequency_replacement)
        return spatial, frequency

    def decode(self, features: torch.Tensor | list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """The last feature map (batch, channels, rows, columns), or those that a multiscale decoder reads, to images
        (batch, image channels, height, width)."""
        image = F.pixel_shuffle(self.decoder(features), self.stride)
        if image.shape[-2] >= size[0] and image.shape[-1] >= size[1]:
            return image[..., : size[0], : size[1]]
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


__all__ = [
    "A2MIMForPreTraining",
    "A2MIMForPreTrainingOutput",
    "A2MIMModel",
    "A2MIMPreTrainedModel",
]
