"""What all models have in common, as models of transformers: a timm encoder, first values, loading and saving."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from .configuration_a2mim import A2MIMConfig
from .encoders.meta import NoValues, TimmEncoder, fill_holes
from .encoders.plan import plan_encoder, supports_gradient_checkpointing
from .masking import MaskToken
from .pretrained import HUB_KWARGS, Pretrained, other_format, weights_for
from .utils.weights import without_sharing


class A2MIMPreTrainedModel(PreTrainedModel):
    """Base class of all models here: loading and saving, weight initialization, gradient checkpointing.

    The encoder is a timm model under `encoder`; its parameter names stay timm's. timm initializes it; this class
    initializes the mask token and the decoder. Checkpoints are read from safetensors only.
    """

    config: A2MIMConfig
    config_class = A2MIMConfig
    base_model_prefix = "a2mim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple in the models of transformers, too
    _supports_sdpa = True  # timm's attention layers choose it on their own
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what is ours; timm initialises the encoder when it builds it."""
        if isinstance(module, MaskToken):
            init.trunc_normal_(module.token, std=self.config.initializer_range)
            if module.gamma is not None:
                init.constant_(module.gamma, module.gamma_init)
        elif isinstance(module, EncoderModel):
            module.restore_encoder()

    def initialize_weights(self) -> None:
        super().initialize_weights()
        # Inside a model of transformers, _init_weights gets to the encoder; in ours it does not, where transformers
        # skips modules without parameters of their own.
        for module in self.modules():
            if isinstance(module, EncoderModel):
                module.restore_encoder()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
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
    def _from_other_format(cls, found: Pretrained, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        for name in (*HUB_KWARGS, "subfolder", "use_safetensors"):
            kwargs.pop(name, None)
        for name in ("dtype", "torch_dtype"):
            if kwargs.get(name) == "auto":  # the default, which as a field of the config would be taken for a dtype
                del kwargs[name]
        if config is None:
            known = found.config.to_dict()
            if found.names:
                known |= {"id2label": dict(enumerate(found.names))}
            config, kwargs = cls.config_class.from_dict(known, return_unused_kwargs=True, **kwargs)
        own = {name: kwargs[name] for name in inspect.signature(cls.__init__).parameters if name in kwargs}
        with torch.device("meta"), NoValues():
            empty = cls(copy.deepcopy(config), *args, **own)
        prefix = next(name for name, module in empty.named_modules() if isinstance(module, EncoderModel))
        resized = kwargs.get("ignore_mismatched_sizes", False)
        weights = weights_for(empty, f"{prefix}.encoder." if prefix else "encoder.", found, resized)
        return super().from_pretrained(None, *args, config=config, state_dict=weights, **kwargs)

    def save_pretrained(self, save_directory, state_dict=None, **kwargs):
        """As in transformers, also for encoders that use a module at several places."""
        weights = without_sharing(self.state_dict() if state_dict is None else state_dict)
        return super().save_pretrained(save_directory, state_dict=weights, **kwargs)

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError(
            "nn.DataParallel is not supported: its copies of the encoder would lose the mask token. "
            "Start one process for each GPU with torchrun or accelerate launch."
        )

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Switch timm's own (non-reentrant) checkpointing; options of transformers' do not apply to it."""
        for module in self.modules():
            if isinstance(module, EncoderModel):
                module.gradient_checkpointing = enable


class EncoderModel(A2MIMPreTrainedModel):
    """A timm encoder as a model of transformers.

    Args:
        config: the configuration.
        for_masking: whether its images will be masked.
        num_classes: size of timm's own classifier, 0 for none.

    Raises:
        ValueError: naming the field of the configuration that the encoder cannot be built with.
    """

    loaded: Any = None  # what became of the weights that the encoder started from, a `models.start.LoadedWeights`

    def __init__(self, config: A2MIMConfig, for_masking: bool, num_classes: int):
        super().__init__(config)
        self.plan = plan_encoder(config, for_masking)
        self.num_classes = num_classes
        self.encoder: TimmEncoder = self.plan.create(num_classes)
        self.supports_gradient_checkpointing = supports_gradient_checkpointing(self.encoder)
        self._gradient_checkpointing = False
        # transformers loads weights into a model made on the meta device; see restore_encoder.
        self._encoder_is_made = not next(self.encoder.parameters()).is_meta

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether timm checkpoints the encoder; the models of transformers that hold this one set it, too."""
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.encoder.set_grad_checkpointing(enable)
        self._gradient_checkpointing = enable

    def restore_encoder(self) -> None:
        """Give the encoder its own first values where `from_pretrained` found none in the checkpoint."""
        if not self._encoder_is_made:
            fill_holes(self.encoder, lambda: self.plan.create(self.num_classes))
