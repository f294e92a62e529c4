"""One small encoder (under 1M parameters) of each of five families, for tests that should hold for all of them."""

import warnings

from modeling_a2mim import A2MIMConfig


SMALL_SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}
FAMILIES = {
    # timm starts the last BatchNorm of each block at zero, which would hide what the block does.
    "resnet": {"architecture": "test_resnet", "model_args": {"zero_init_last": False}},
    "convnext": {"architecture": "test_convnext"},
    "vit": {"architecture": "test_vit"},
    "swin": {"architecture": "swin_tiny_patch4_window7_224", "model_args": SMALL_SWIN},
    "efficientnet": {"architecture": "test_efficientnet"},
}
HIERARCHICAL = ["resnet", "convnext", "swin", "efficientnet"]


def family_config(family: str, **kwargs) -> A2MIMConfig:
    return A2MIMConfig.for_architecture(**{"image_size": 64, "mask_patch_size": 16, **FAMILIES[family], **kwargs})


def checkpointed(model, enable=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the names until transformers 6
        model.gradient_checkpointing_enable() if enable else model.gradient_checkpointing_disable()
        assert model.is_gradient_checkpointing is enable
    return model
