"""BEiT (https://arxiv.org/abs/2106.08254) and data2vec for images (https://arxiv.org/abs/2202.03555), which has BEiT's
network."""

from collections.abc import Collection
from typing import Any

from transformers import PreTrainedConfig

from .config import image_size, require, require_no_dropout, require_square_images
from .layout import KeyLayout
from .vit import VIT_LEFT_OVER, VIT_RENAMES, vit_args


BASE = "beit_base_patch16_224"
NAMES = ("beit_{size}_patch{patch}_{image}", "beit_{size}_patch{patch}_224")
TABLE = "relative_position_bias_table"
RENAMES = (
    *VIT_RENAMES,
    (rf"^(?:encoder\.relative_position_bias|shared_position_bias)\.{TABLE}$", f"rel_pos_bias.{TABLE}"),
    (rf"(blocks\.\d+)\.(?:attention\.attention\.)?relative_position_bias\.{TABLE}$", rf"\1.attn.{TABLE}"),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
LEFT_OVER = (
    *VIT_LEFT_OVER,
    r"^lm_head\.",
    r"\.relative_position_index$",  # which earlier releases of transformers stored
    r"^(?:decode_head|auxiliary_head|fpn\d?)\.",  # ...ForSemanticSegmentation
)


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    require_square_images(config)
    require(config, hidden_act="gelu")
    require_no_dropout(config, "hidden_dropout_prob", "attention_probs_dropout_prob")
    architecture, args = vit_args(config, NAMES, BASE, patch=16)
    if not config.use_relative_position_bias:
        args["use_rel_pos_bias"] = False
    if config.use_shared_relative_position_bias:
        args["use_shared_rel_pos_bias"] = True
    if config.use_absolute_position_embeddings:
        args["use_abs_pos_emb"] = True
    if config.layer_scale_init_value <= 0:
        args["init_values"] = 0  # timm makes no layer scale then; None would not reach it
    if config.drop_path_rate:
        args["drop_path_rate"] = config.drop_path_rate
    if not _norm_after_pooling(config):
        args["global_pool"] = "token"  # with which timm normalises the tokens
    return {"architecture": architecture, "model_args": args, "image_size": image_size(config)}


def _norm_after_pooling(config: PreTrainedConfig) -> bool:
    """Whether the last norm follows the mean over the patches. The model that predicts visual tokens has one of its
    own, of the tokens, where the encoder has none of them."""
    return config.use_mean_pooling and "BeitForMaskedImageModeling" not in (config.architectures or ())


def _unused(config: PreTrainedConfig, names: Collection[str]) -> set[str]:
    """The norm of the model that predicts visual tokens, where it comes after the encoder's."""
    if "beit.layernorm.weight" not in names:
        return set()
    return {"layernorm.weight", "layernorm.bias"} & set(names)


LAYOUTS = {
    name: KeyLayout(_fields, RENAMES, LEFT_OVER, norm_eps=1e-6, unused=_unused, separate_biases=True)
    for name in ("beit", "data2vec-vision")
}
