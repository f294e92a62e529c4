"""Configuration of A2MIM models (Li et al., ICML 2023, https://arxiv.org/abs/2205.13943)."""

import difflib
import math
from collections.abc import Sequence
from typing import Any, cast

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .encoders.plan import EncoderPlan, plan_encoder
from .encoders.timm_config import RESERVED_MODEL_ARGS, fields_of_timm, is_timm, without_tag
from .utils.statistics import check_statistics
from .utils.value_range import STORED_FIELDS, ValueRange, checked_fields


CHOICES = {
    "mask_fill": ("mean", "zero", "none"),
    "mask_token_mode": ("add", "replace"),
    "decoder": ("linear", "multiscale"),
    "target": ("pixels", "normalised"),
    "spatial_loss": ("l1", "focal_l1"),
    "frequency_replacement": ("mixed", "prediction", "target", "mean"),
}
LARGEST_CELL = 32  # pixels, of the default size of the mask's cells
FEWEST_CELLS, MOST_CELLS = 6, 48  # in a row, of that size


class A2MIMConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Everything that defines an A2MIM model: the encoder, what is masked, where the mask token goes, and the loss.
    The defaults are the paper's for a ResNet-50; `resnet`, `convnext`, `vit`, `swin` and `simmim` give the settings
    of the official release for each family, and `for_architecture` chooses between them for any other encoder.

    Args:
        architecture (`str`, defaults to `"resnet50"`): a name of `timm.list_models()`.
        model_args (`dict`, *optional*): further keyword arguments of `timm.create_model`.
        image_size (`int` or `(height, width)`, defaults to 224): in pixels.
        num_channels (`int`, defaults to 3)
        image_mean, image_std (`list[float]`, *optional*): one value per channel, for pixels in [0, 1]. ImageNet's
            for 3 channels and 0.5 for any other number when not given.
        value_range (`dict`, *optional*): what the values of stored images become that are not of 8 bits (`low`,
            `high`, `clip` and `of` of `ValueRange`); `None` for images of 8 bits alone.
        channels (`list[int]`, *optional*): which of the stored channels are taken, in this order, from 1; all when not
            given.
        pages (`str`, *optional*): what further pages or frames of a file are: `"channels"`, `"samples"` or `"first"`
            (the others are left out); files with several are refused when not given, but for animations, of which
            the first frame is taken.
        display_channels (`list[int]`, *optional*): which one or three of the `num_channels` figures show, from 1; when
            not given, all of 1 or 3, else the first.
        mask_ratio (`float`, defaults to 0.6): share of the cells that are masked, in (0, 1), rounded up to whole ones.
        mask_patch_size (`int` or `(height, width)`, *optional*): the size of one cell in pixels. When not given it
            follows the image: 32 px (the paper's at 224 px), or less where that leaves fewer than 6 x 6 cells.
        mask_fill (`str`, defaults to `"mean"`): what masked pixels become: `"mean"` (each image's own mean of each
            channel), `"zero"` or `"none"` (they stay as they are, as in SimMIM).
        mask_site (`int` or `str`, *optional*): whose output the mask token enters: a module name of the timm model, or
            an index into its `feature_info` as in timm's `out_indices` (negative ones count from the end). When not
            given: the second-to-last stage of a hierarchical encoder, the patch embedding of an isotropic one.
        mask_token_mode (`str`, defaults to `"add"`): `"add"` (A2MIM) or `"replace"` (SimMIM).
        mask_gamma_init (`float`, *optional*, defaults to 1e-6): initial value of gamma, the learned scale of each
            channel of the masked features before the token is added. `None`: there is no gamma.
        decoder (`str`, defaults to `"linear"`): what predicts the pixels: `"linear"`, one convolution of the last
            feature map (the paper's), or `"multiscale"`, which reads every stage of 4 px a cell and more and learns
            from fewer steps; for hierarchical encoders.
        decoder_kernel_size (`int`, defaults to 1): size of the convolution that predicts the pixels; odd.
        decoder_norm (`bool`, defaults to `True`): give the decoder the feature map after the norm of the encoder's
            head, where the head has one (ConvNeXt and its kin normalise after pooling).
        target (`str`, defaults to `"pixels"`): what is predicted: `"pixels"` (the paper's), or `"normalised"`, each
            cell less its mean, divided by its deviation (MAE's), both of which the reconstruction is given.
        spatial_loss (`str`, defaults to `"focal_l1"`): `"l1"` or `"focal_l1"`.
        frequency_loss_weight (`float`, defaults to 0.5): weight of the Fourier term; 0 turns it off.
        frequency_focal (`bool`, defaults to `True`): the focal frequency loss; else `spatial_loss` of the spectrum.
        frequency_replacement (`str`, defaults to `"mixed"`): what replaces the visible pixels of the prediction in
            the Fourier term, without gradient: `"mixed"` (half prediction, half target), `"prediction"` (the
            paper), `"target"` or `"mean"` (the target's mean of each channel).
        frequency_unmasked_weight (`float`, defaults to 1e-3): share of the visible prediction that takes part with
            its gradient in the Fourier term, in [0, 1].
        frequency_batch_average (`bool`, defaults to `True`): average the residual over the batch before the Fourier
            transform (the release), or transform each image (the paper's equation; independent of the batch size).
        feature_pyramid (`bool`, defaults to `False`): for `A2MIMBackbone`, whether four maps of an isotropic encoder
            become maps of four resolutions.
        crop_pct (`float`, defaults to 0.95): share of a resized image that is seen in evaluation (timm's): images
            are resized so that their shorter side is the image size / crop_pct, and cropped in the middle.
        initializer_range (`float`, defaults to 0.02): standard deviation of token and decoder at the start.
        out_indices, out_features (*optional*): for `A2MIMBackbone`, whose maps to return: indices into timm's
            `feature_info`, or the names of its modules. The last one when not given.

    Raises:
        ValueError: if a value is out of its range or a name is unknown; the message begins with the field.
    """

    model_type = "a2mim"

    architecture: str = "resnet50"
    model_args: dict[str, Any] | None = None
    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    value_range: dict[str, Any] | None = None
    channels: list[int] | None = None
    pages: str | None = None
    display_channels: list[int] | None = None
    mask_ratio: float = 0.6
    mask_patch_size: int | list[int] | tuple[int, int] | None = None
    mask_fill: str = "mean"
    mask_site: int | str | None = None
    mask_token_mode: str = "add"
    mask_gamma_init: float | None = 1e-6
    decoder: str = "linear"
    decoder_kernel_size: int = 1
    decoder_norm: bool = True
    target: str = "pixels"
    spatial_loss: str = "focal_l1"
    frequency_loss_weight: float = 0.5
    frequency_focal: bool = True
    frequency_replacement: str = "mixed"
    frequency_unmasked_weight: float = 1e-3
    frequency_batch_average: bool = True
    feature_pyramid: bool = False
    crop_pct: float = 0.95
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("stage_names", None)  # are the encoder's, see set_stages
        self.stage_names: list[str] | None = None
        self._out_features = self._out_indices = None
        for name in ("out_indices", "out_features"):
            if kwargs.get(name) is not None:
                setattr(self, name, kwargs[name])
            kwargs.pop(name, None)
        self.model_args = {} if self.model_args is None else self.model_args
        self._validate(kwargs)
        for name in ("image_size", "mask_patch_size", "image_mean", "image_std"):  # as JSON gives them back
            if isinstance(getattr(self, name), tuple):
                setattr(self, name, list(getattr(self, name)))
        channels = self.num_channels
        if self.image_mean is None:
            self.image_mean = list(IMAGENET_DEFAULT_MEAN) if channels == 3 else [0.5] * channels
        if self.image_std is None:
            self.image_std = list(IMAGENET_DEFAULT_STD) if channels == 3 else [0.5] * channels
        super().__post_init__(**kwargs)

    # What the paper's official release uses for each family (its configuration files, summarised in the README).

    @classmethod
    def resnet(cls, architecture: str = "resnet50", **kwargs: Any) -> "A2MIMConfig":
        """ResNets: focal L1, Fourier term with weight 0.5, gamma, token after the second-to-last stage."""
        return cls(architecture=architecture, **kwargs)

    @classmethod
    def convnext(cls, architecture: str = "convnext_small", **kwargs: Any) -> "A2MIMConfig":
        """ConvNeXts: focal L1 without Fourier term, gamma, token after the last stage's downsampling."""
        defaults = {"mask_site": "stages.3.downsample", "frequency_loss_weight": 0.0}
        return cls(architecture=architecture, **{**defaults, **kwargs})

    @classmethod
    def vit(cls, architecture: str = "vit_base_patch16_224", **kwargs: Any) -> "A2MIMConfig":
        """ViTs: L1, Fourier term with weight 0.1, no gamma, token after the patch embedding."""
        defaults = {
            "mask_gamma_init": None,
            "spatial_loss": "l1",
            "frequency_loss_weight": 0.1,
            "frequency_unmasked_weight": 0.0,
        }
        return cls(architecture=architecture, **{**defaults, **kwargs})

    @classmethod
    def swin(cls, architecture: str = "swin_tiny_patch4_window7_224", **kwargs: Any) -> "A2MIMConfig":
        """Swins: 192 px with windows of 6, L1, Fourier term with weight 0.5, no gamma, token after patch embedding."""
        defaults = {
            "image_size": 192,
            "mask_site": "patch_embed",
            "mask_gamma_init": None,
            "spatial_loss": "l1",
            "frequency_unmasked_weight": 0.0,
        }
        if kwargs.get("image_size", 192) in (192, [192, 192], (192, 192)):
            kwargs["model_args"] = {"window_size": 6, **(kwargs.get("model_args") or {})}
        return cls(architecture=architecture, **{**defaults, **kwargs})

    @classmethod
    def simmim(cls, architecture: str = "vit_base_patch16_224", **kwargs: Any) -> "A2MIMConfig":
        """SimMIM (https://arxiv.org/abs/2111.09886): the raw image goes in, the token replaces features at the first
        map of the encoder, L1 on masked pixels, no Fourier term."""
        defaults = {
            "mask_fill": "none",
            "mask_site": "stem",
            "mask_token_mode": "replace",
            "mask_gamma_init": None,
            "spatial_loss": "l1",
            "frequency_loss_weight": 0.0,
        }
        return cls(architecture=architecture, **{**defaults, **kwargs})

    @classmethod
    def for_architecture(cls, architecture: str, **kwargs: Any) -> "A2MIMConfig":
        """The settings of the family that any timm encoder resembles: `vit` for isotropic encoders (one resolution
        throughout), `resnet` for hierarchical ones; 224 px, or where the encoder takes no such images its own size."""

        def plan() -> EncoderPlan:
            shape = {k: kwargs[k] for k in ("model_args", "image_size", "num_channels") if k in kwargs}
            return plan_encoder(cls.for_encoder(architecture=architecture, **shape))

        try:
            isotropic = plan().isotropic
        except ValueError as error:
            if "image_size" in kwargs or not str(error).startswith("image_size: "):
                raise
            own = timm.get_pretrained_cfg(architecture)
            if own is None:
                raise
            kwargs["image_size"] = list(own.input_size[1:])
            isotropic = plan().isotropic
        return cls.vit(architecture, **kwargs) if isotropic else cls.resnet(architecture, **kwargs)

    @classmethod
    def preset(cls, name: str, architecture: str, **kwargs: Any) -> "A2MIMConfig":
        """The settings `name` ("resnet", "vit", ...; "auto": those of `for_architecture`) for an encoder."""
        make = cls.for_architecture if name == "auto" else getattr(cls, name)
        return make(architecture, **kwargs)

    @classmethod
    def for_encoder(cls, image_size: int | list[int] = 224, **kwargs: Any) -> "A2MIMConfig":
        """A configuration where the mask plays no part (classification): its cells are as few as the image allows."""
        few = [next((size // d for d in range(2, size + 1) if size % d == 0), 1) for size in _pair(image_size)]
        return cls(image_size=image_size, mask_patch_size=few, **kwargs)

    @property
    def stored_images(self) -> dict[str, Any]:
        """What is taken of stored images, as far as it is given: `STORED_FIELDS`."""
        return {name: value for name in STORED_FIELDS if (value := getattr(self, name)) is not None}

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return _pair(self.image_size)

    @property
    def mask_cell_size(self) -> tuple[int, int]:
        """(height, width) of one cell of the mask in pixels."""
        return _pair(self.mask_patch_size)

    @property
    def mask_grid(self) -> tuple[int, int]:
        """(rows, columns) of cells in the mask of one image."""
        (height, width), (cell_height, cell_width) = self.input_size, self.mask_cell_size
        return height // cell_height, width // cell_width

    @property
    def num_masked(self) -> int:
        """How many cells of each image are masked: ceil(mask_ratio * cells)."""
        return self.masked_cells(self.mask_grid)

    def masked_cells(self, grid: tuple[int, int]) -> int:
        """The same for images of another size, with a mask of (rows, columns) cells.

        Raises:
            ValueError: if that is every cell.
        """
        cells = math.prod(grid)
        masked = math.ceil(self.mask_ratio * cells)
        message = (
            f"{self.mask_ratio} masks all {cells} cells of {self.mask_cell_size} px; use a smaller mask_patch_size"
        )
        _require(masked < cells, "mask_ratio", message)
        return masked

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # transformers sets keyword arguments beside a file after validation; ours are validated with the rest.
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in A2MIMConfig.__annotations__}
        cls._refuse_slips(kwargs)
        if is_timm(config_dict):
            config_dict = A2MIMConfig.for_encoder(**fields_of_timm(config_dict)).to_dict()
        if "architecture" in config_dict:
            config_dict = {**config_dict, "architecture": without_tag(config_dict["architecture"])}
        return super().from_dict({**config_dict, **own}, **kwargs)

    @property
    def out_indices(self) -> list[int] | None:
        """The feature maps that `A2MIMBackbone` returns, as indices into timm's `feature_info`."""
        return self._out_indices

    @out_indices.setter
    def out_indices(self, indices: Sequence[int] | None) -> None:
        self._choose_stages(None, indices)

    @property
    def out_features(self) -> list[str] | None:
        """The same feature maps, by the names of their modules."""
        return self._out_features

    @out_features.setter
    def out_features(self, names: Sequence[str] | None) -> None:
        self._choose_stages(names, None)

    def _choose_stages(self, names: Sequence[str] | None, indices: Sequence[int] | None) -> None:
        # The stages are known once there is an encoder; until then, one of the two is kept as it was given.
        self._out_features = None if names is None else list(names)
        self._out_indices = None if indices is None else list(indices)
        if self.stage_names is not None:
            self.set_output_features_output_indices(self._out_features, self._out_indices)

    def set_stages(self, modules: Sequence[str]) -> None:
        """Tell the configuration of a backbone its stages: the module of each feature map.

        Raises:
            ValueError: if `out_indices` or `out_features` choose a stage that there is not.
        """
        repeated = len(set(modules)) < len(modules)
        self.stage_names = [f"{name}:{i}" if repeated else name for i, name in enumerate(modules)]
        indices = self._out_indices
        try:
            self.set_output_features_output_indices(self._out_features if indices is None else None, indices)
        except (ValueError, IndexError) as error:
            field = "out_features" if indices is None else "out_indices"
            raise ValueError(f"{field}: {self.architecture} has the stages {', '.join(modules)}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output.pop("stage_names", None)
        return output

    @staticmethod
    def _refuse_slips(unknown: dict[str, Any]) -> None:
        for name in unknown:
            # Transformers keeps unknown names as attributes; one that looks like ours is a slip of the pen.
            close = difflib.get_close_matches(name, list(A2MIMConfig.__annotations__), n=1, cutoff=0.85)
            _require(not close, name, f"is no field of A2MIMConfig; did you mean `{close[0] if close else ''}`?")

    def _validate(self, unknown: dict[str, Any]) -> None:
        self._refuse_slips(unknown)
        self._validate_encoder()
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            _require(value in choices, name, f"must be one of {', '.join(choices)}, got {value!r}")
        for name in ("decoder_norm", "frequency_focal", "frequency_batch_average", "feature_pyramid"):
            value = getattr(self, name)
            _require(isinstance(value, bool), name, f"must be True or False, got {value!r}")
        site = self.mask_site
        is_site = site is None or (isinstance(site, (int, str)) and not isinstance(site, bool))
        _require(is_site, "mask_site", f"must be a module name, an integer or None, got {site!r}")
        if self.mask_gamma_init is not None:
            _number(self, "mask_gamma_init", -math.inf, math.inf)
            _require(self.mask_token_mode == "add", "mask_gamma_init", "must be None where mask_token_mode is replace")
        size = self.decoder_kernel_size
        _require(_is_int(size) and size > 0 and size % 2 == 1, "decoder_kernel_size", f"must be odd, got {size!r}")
        _number(self, "frequency_loss_weight", 0, math.inf)
        _number(self, "frequency_unmasked_weight", 0, 1)
        _number(self, "initializer_range", 0, math.inf)
        _number(self, "crop_pct", 0, 1)
        _require(self.crop_pct > 0, "crop_pct", "must be above 0")
        self._validate_mask()

    def _validate_encoder(self) -> None:
        name = self.architecture
        _require(isinstance(name, str), "architecture", f"must be the name of a timm model, got {name!r}")
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3) if isinstance(name, str) else []
            hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
            if isinstance(name, str) and ("/" in name or ":" in name):
                hint = "a folder or repository with weights is named by --model_name_or_path"
            _require(False, "architecture", f"{name!r} is unknown to timm {timm.__version__}; {hint}")
        if "." in name:
            plain = without_tag(name)
            message = (
                f"{name!r} names weights of timm, which a configuration does not hold; it is of {plain} (the scripts "
                "load them by --architecture, Python by open_encoder)"
            )
            _require(False, "architecture", message)
        _require(isinstance(self.model_args, dict), "model_args", f"must be a dict, got {self.model_args!r}")
        for key, field in RESERVED_MODEL_ARGS.items():
            _require(key not in self.model_args, "model_args", f"must not hold {key!r}; use `{field}` instead")
        channels = self.num_channels
        _require(_is_int(channels) and channels > 0, "num_channels", f"must be a positive integer, got {channels!r}")
        known = ValueRange.from_config(self.value_range)
        for field in ("image_mean", "image_std"):
            values = getattr(self, field)
            if values is None:
                continue
            ok = isinstance(values, (list, tuple)) and len(values) == channels and all(map(_is_real, values))
            _require(ok, field, f"must hold one number for each of the {channels} channels, got {values!r}")
            check_statistics(field, values, bounded=known is None or known.clip)
        for field, value in checked_fields(self.stored_images, channels).items():
            setattr(self, field, value)

    def _validate_mask(self) -> None:
        for name in ("image_size", "mask_patch_size"):
            if name == "mask_patch_size" and self.mask_patch_size is None:
                cells = [default_cell(size) for size in self.input_size]
                self.mask_patch_size = cells[0] if isinstance(self.image_size, int) else cells
            value = getattr(self, name)
            sizes = (value, value) if _is_int(value) else value
            ok = isinstance(sizes, (list, tuple)) and len(sizes) == 2 and all(_is_int(s) and s > 0 for s in sizes)
            _require(ok, name, f"must be a positive integer or a pair (height, width) of them, got {value!r}")
        _number(self, "mask_ratio", 0, 1, open_ends=True)
        for size, cell in zip(self.input_size, self.mask_cell_size, strict=True):
            divisors = [d for d in range(2, size // 2 + 1) if size % d == 0]
            hint = f"; sizes that do: {', '.join(map(str, divisors))}" if divisors else ""
            _require(size % cell == 0, "mask_patch_size", f"{cell} does not divide the image_size {size}{hint}")
        self.masked_cells(self.mask_grid)
        if self.target == "normalised" and math.prod(self.mask_cell_size) * self.num_channels == 1:
            raise ValueError(
                "target: a cell of one pixel and one channel is its own mean; set a larger mask_patch_size"
            )


def default_cell(size: int) -> int:
    """The side of a cell of the mask for images of this side, both in pixels: the largest up to 32 that divides it
    into 6 cells or more.

    Raises:
        ValueError: naming `mask_patch_size`, if that would be tiny cells, more than 48 in a row.
    """
    cell = max((d for d in range(1, min(LARGEST_CELL, size // FEWEST_CELLS) + 1) if size % d == 0), default=0)
    fits = cell and size // cell <= MOST_CELLS
    _require(
        bool(fits),
        "mask_patch_size",
        f"no usual size of a cell divides the image_size {size}; give --mask_patch_size, or an image_size that is a "
        "multiple of 16",
    )
    return cell


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else cast(tuple[int, int], tuple(size))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(config: A2MIMConfig, name: str, low: float, high: float, open_ends: bool = False) -> None:
    value = getattr(config, name)
    ok = _is_real(value) and (low < value < high if open_ends else low <= value <= high)
    bounds = f"({low}, {high})" if open_ends else f"[{low}, {high}]"
    _require(ok, name, f"must be a finite number in {bounds}, got {value!r}")


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{field}: {message}")


__all__ = ["A2MIMConfig"]
