"""Where the mask token can enter an encoder, and its layers by depth."""

import pytest
import timm

from modeling_a2mim.encoders.layout import FeatureLayout
from modeling_a2mim.encoders.sites import block_layouts

from .test_plan import plan


@pytest.mark.parametrize("site", range(-5, 5))
def test_integer_sites(site):
    """timm's feature_info of a ResNet-18: the stem and four stages."""
    channels, stride, name = [
        (64, 2, "act1"),
        (64, 4, "layer1."),
        (128, 8, "layer2."),
        (256, 16, "layer3."),
        (512, 32, "layer4."),
    ][site]
    result = plan("resnet18", mask_site=site, image_size=64, mask_patch_size=16)
    assert result.sites[0].module.startswith(name)
    assert result.sites[0].layout == FeatureLayout("NCHW", channels, (64 // stride, 64 // stride))


def test_a_site_that_is_called_but_gives_no_map():
    """The queries of a ViT are (batch, heads, tokens, width)."""
    kwargs = {"image_size": 32, "mask_patch_size": 16, "model_args": {"qk_norm": True}}
    with pytest.raises(ValueError, match=r"^mask_site: .*'blocks\.0\.attn\.q_norm'.*\(batch, 2, 5, 32\)"):
        plan("test_vit", mask_site="blocks.0.attn.q_norm", **kwargs)


def test_layers_of_a_vit_by_depth():
    """Of each layer its last module: the norm at the end counts to the last block."""
    encoder = timm.create_model("test_vit", img_size=64, num_classes=0)
    layouts = block_layouts(encoder, (64, 64))
    assert list(layouts) == ["patch_embed", *(f"blocks.{i}" for i in range(5)), "norm"]
    assert {layouts[name] for name in layouts if name != "patch_embed"} == {FeatureLayout("NLC", 64, (4, 4), 1)}
    assert not any(parameter.is_meta for parameter in encoder.parameters())


def test_layers_for_images_that_do_not_fit():
    encoder = timm.create_model("test_vit", img_size=64, dynamic_img_size=False)
    with pytest.raises(ValueError, match="^image_size: VisionTransformer cannot take images of 32 x 64 px"):
        block_layouts(encoder, (32, 64))
