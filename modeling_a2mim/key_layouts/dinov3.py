"""The ViTs of DINOv3 (https://arxiv.org/abs/2508.10104), which timm builds as EVA."""

from typing import Any

from transformers import PreTrainedConfig

from .config import first_name, image_size, mlp_ratio, require, require_no_dropout, square_patch
from .layout import KeyLayout
from .names import Weights


# (embed_dim, depth, num_heads, hidden features of the MLP, whether it is gated) -> timm's name
ARCHITECTURES = {
    (192, 12, 3, 768, False): "vit_tiny_patch16_dinov3",
    (384, 12, 6, 1536, False): "vit_small_patch16_dinov3",
    (384, 12, 6, 1536, True): "vit_small_plus_patch16_dinov3",
    (768, 12, 12, 3072, False): "vit_base_patch16_dinov3",
    (1024, 24, 16, 4096, False): "vit_large_patch16_dinov3",
    (1280, 32, 20, 5120, True): "vit_huge_plus_patch16_dinov3",
    (4096, 40, 32, 8192, True): "vit_7b_patch16_dinov3",
}
OTHERS = "vit_base_patch16_dinov3"
RENAMES = (
    (r"^model\.", ""),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
LEFT_OVER = (r"^embeddings\.mask_token$", r"^rope_embeddings\.(?:inv_freq|periods)$")
# Changes of the coordinates at random, which both make in training only.
AUGMENTATION = ("shift", "jitter", "rescale")


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    require(config, key_bias=False, proj_bias=True, mlp_bias=True, value_bias=config.query_bias)
    require(config, hidden_act="silu" if config.use_gated_mlp else "gelu")
    # All blocks have the same rate here; timm's rises from block to block.
    require_no_dropout(config, "attention_dropout", "drop_path_rate")
    architecture, args = _architecture(config)
    if square_patch(config) != 16:
        args["patch_size"] = square_patch(config)
    if config.num_register_tokens != 4:
        args["num_reg_tokens"] = config.num_register_tokens
    if config.rope_theta != 100:
        args["rope_temperature"] = config.rope_theta
    for name in AUGMENTATION:
        if getattr(config, f"pos_embed_{name}") is not None:
            args[f"rope_{name}_coords"] = getattr(config, f"pos_embed_{name}")
    return {"architecture": architecture, "model_args": args, "image_size": image_size(config)}


def _architecture(config: PreTrainedConfig) -> tuple[str, dict[str, Any]]:
    """The name, and what it does not say. Names with `_qkvb` are the same with biases of queries and values."""
    dims = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    plain = ARCHITECTURES.get((*dims, config.use_gated_mlp), "")
    args: dict[str, Any] = {}
    if not first_name([plain, f"{plain}_qkvb"]):
        plain = OTHERS
        args = {"embed_dim": dims[0], "depth": dims[1], "num_heads": dims[2], "mlp_ratio": mlp_ratio(dims[3], dims[0])}
        if config.use_gated_mlp:
            args |= {"swiglu_mlp": True, "swiglu_align_to": 1}  # 0 would be a SwiGLU with one layer for both
    names = [f"{plain}_qkvb", plain] if config.query_bias else [plain, f"{plain}_qkvb"]
    name = first_name(names)
    if name.endswith("_qkvb") != config.query_bias:
        args["qkv_bias"] = config.query_bias
    return name, args


def _finish(weights: Weights) -> Weights:
    """A gated MLP has timm's names of two layers, a plain one that of one; no registers are no weight."""
    gated = any(".mlp.gate_proj." in name for name in weights)
    up = ".mlp.fc1_x." if gated else ".mlp.fc1."
    return {
        name.replace(".mlp.gate_proj.", ".mlp.fc1_g.").replace(".mlp.up_proj.", up): tensor
        for name, tensor in weights.items()
        if name != "reg_token" or tensor.numel()
    }


LAYOUTS = {"dinov3_vit": KeyLayout(_fields, RENAMES, LEFT_OVER, norm_eps=1e-5, separate_biases=True, finish=_finish)}
