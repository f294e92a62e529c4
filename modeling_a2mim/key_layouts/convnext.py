"""ConvNeXt (https://arxiv.org/abs/2201.03545), ConvNeXt V2 (https://arxiv.org/abs/2301.00808), and the ConvNeXts of
DINOv3 (https://arxiv.org/abs/2508.10104), which are those of the first paper.

`layer_norm_eps` is that of the last norm alone in the first two; the others have 1e-6, as timm's.
"""

from typing import Any

from transformers import PreTrainedConfig

from .config import activation_args, first_name, image_size, refuse, require
from .layout import KeyLayout


# (blocks of each stage, channels of each stage) -> timm's name of the size
SIZES = {
    ((2, 2, 6, 2), (40, 80, 160, 320)): "atto",
    ((2, 2, 6, 2), (48, 96, 192, 384)): "femto",
    ((2, 2, 6, 2), (64, 128, 256, 512)): "pico",
    ((2, 2, 8, 2), (80, 160, 320, 640)): "nano",
    ((3, 3, 9, 3), (96, 192, 384, 768)): "tiny",
    ((3, 3, 27, 3), (96, 192, 384, 768)): "small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "base",
    ((3, 3, 27, 3), (192, 384, 768, 1536)): "large",
    ((3, 3, 27, 3), (256, 512, 1024, 2048)): "xlarge",
    ((3, 3, 27, 3), (352, 704, 1408, 2816)): "huge",
}
RENAMES = (
    (r"^(?:convnext|convnextv2)\.", ""),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.", "stages."),
    (r"\.downsampling_layer\.", ".downsample."),
    (r"^stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"(blocks\.\d+)\.layernorm\.", r"\1.norm."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^layernorm\.", "head.norm."),
)
DINOV3_RENAMES = (
    (r"^model\.", ""),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"\.downsample_layers\.", ".downsample."),
    (r"^stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
    (r"(blocks\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"^layer_norm\.", "head.norm."),
)
LEFT_OVER = (r"^classifier\.", r"^hidden_states_norms\.")  # the latter are of ...Backbone


def _sized(config: PreTrainedConfig, name: str) -> tuple[str, dict[str, Any]]:
    """The architecture of this size, which begins with `name`, and its arguments."""
    if not len(config.depths) == len(config.hidden_sizes) == 4:
        refuse("depths", list(config.depths), "and timm's ConvNeXt has four stages")
    size = SIZES.get((tuple(config.depths), tuple(config.hidden_sizes)))
    architecture, args = first_name([f"{name}_{size}"]), {}
    if architecture is None:
        architecture = f"{name}_tiny"
        args = {"depths": list(config.depths), "dims": list(config.hidden_sizes)}
    args |= activation_args(config, "gelu")
    if config.drop_path_rate:
        args["drop_path_rate"] = config.drop_path_rate
    return architecture, args


def _convnext(config: PreTrainedConfig) -> dict[str, Any]:
    require(config, patch_size=4, num_stages=4)
    scaled = config.model_type == "convnext" and config.layer_scale_init_value > 0
    architecture, args = _sized(config, "convnext" if scaled else "convnextv2")
    if config.model_type == "convnext" and not scaled:  # timm has no layer scale in the second version alone
        args["use_grn"] = False
    return {"architecture": architecture, "model_args": args, "image_size": image_size(config)}


def _dinov3(config: PreTrainedConfig) -> dict[str, Any]:
    architecture, args = _sized(config, "convnext")
    if config.layer_norm_eps != 1e-6:
        args["norm_eps"] = config.layer_norm_eps
    return {"architecture": architecture, "model_args": args, "image_size": image_size(config)}


LAYOUTS = {
    "convnext": KeyLayout(_convnext, RENAMES, LEFT_OVER, norm_eps=1e-6, has_positions=False),
    "convnextv2": KeyLayout(_convnext, RENAMES, LEFT_OVER, norm_eps=1e-6, has_positions=False),
    "dinov3_convnext": KeyLayout(_dinov3, DINOV3_RENAMES, LEFT_OVER, has_positions=False),
}
