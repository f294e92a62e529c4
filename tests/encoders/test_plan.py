"""How the encoders of timm are read: for which size they are built, and where their feature maps are."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.encoders.layout import FeatureLayout, Site
from modeling_a2mim.encoders.plan import plan_encoder


def plan(architecture, **kwargs):
    return plan_encoder(A2MIMConfig(architecture=architecture, **kwargs))


def test_plan_resnet():
    result = plan("resnet18")
    assert result.sites[0].module.startswith("layer3.")
    assert result.sites[0].layout == FeatureLayout("NCHW", 256, (14, 14))
    assert result.map_layout == FeatureLayout("NCHW", 512, (7, 7))
    assert (result.stride, result.head_norm) == (32, None)


def test_plan_convnext():
    result = plan("convnext_tiny", mask_site="stages.3.downsample")
    assert result.sites[0].module.startswith("stages.3.downsample")
    assert result.sites[0].layout == result.map_layout == FeatureLayout("NCHW", 768, (7, 7))
    assert (result.stride, result.head_norm) == (32, "head.norm")
    default = plan("convnext_tiny", decoder_norm=False)
    assert default.sites[0].module.startswith("stages.2")
    assert default.sites[0].layout == FeatureLayout("NCHW", 384, (14, 14))
    assert default.head_norm is None


def test_plan_vit():
    result = plan("vit_tiny_patch16_224")
    assert (result.sites[0].module, result.stride, result.head_norm) == ("patch_embed", 16, None)
    assert result.sites[0].layout == FeatureLayout("NLC", 192, (14, 14))
    assert result.map_layout == FeatureLayout("NLC", 192, (14, 14), 1)
    block = plan("vit_tiny_patch16_224", mask_site=6)
    assert block.sites == (Site("blocks.6", FeatureLayout("NLC", 192, (14, 14), 1)),)
    registers = plan("vit_tiny_patch16_224", mask_site=6, model_args={"reg_tokens": 4})
    assert registers.sites[0].layout == registers.map_layout == FeatureLayout("NLC", 192, (14, 14), 5)


def test_plan_swin():
    result = plan("swin_tiny_patch4_window7_224")
    assert result.sites[0].module.startswith("layers.2")
    assert result.sites[0].layout == FeatureLayout("NHWC", 384, (14, 14))
    assert result.map_layout == FeatureLayout("NHWC", 768, (7, 7))
    first = plan("swin_tiny_patch4_window7_224", mask_site="patch_embed")
    assert first.sites[0].module.startswith("patch_embed")
    assert first.sites[0].layout == FeatureLayout("NHWC", 96, (56, 56))


def test_plan_of_another_size():
    assert plan("resnet18", image_size=(64, 96)).map_layout.grid == (2, 3)
    # A ViT of a fixed size must be built for it.
    vit = plan("vit_tiny_patch16_224", image_size=(64, 96))
    assert (vit.map_layout.grid, vit.create_args["img_size"]) == ((4, 6), [64, 96])
    assert vit.create().forward_features(torch.randn(1, 3, 64, 96)).shape == (1, 25, 192)


def test_plans_are_kept_by_values():
    config = A2MIMConfig(architecture="test_vit", model_args={"depth": 3, "init_values": 0.1})
    first = plan_encoder(config)
    assert plan_encoder(A2MIMConfig(architecture="test_vit", model_args={"init_values": 0.1, "depth": 3})) is first
    config.model_args["depth"] = 2  # what was planned does not change with the configuration
    assert (first.create_args["depth"], plan_encoder(config).create_args["depth"]) == (3, 2)


def test_plan_draws_no_random_numbers():
    before = torch.get_rng_state()
    plan("test_vit")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("architecture", "isotropic"), [("test_vit", True), ("resnet18", False), ("swin_tiny_patch4_window7_224", False)]
)
def test_is_isotropic(architecture, isotropic):
    assert plan(architecture).isotropic is isotropic


@pytest.mark.parametrize(
    ("architecture", "kwargs", "message"),
    [
        ("resnet18", {"mask_site": "layer33"}, "mask_site: resnet18 has no module 'layer33'; .*layer3"),
        ("test_vit", {"mask_site": "xyz"}, r"mask_site: .*no module 'xyz'; for example blocks\.0"),
        ("resnet18", {"mask_site": 5}, "mask_site: .*5 feature maps.* 5$"),
        ("resnet18", {"mask_site": -6}, "mask_site: .*5 feature maps.* -6$"),
        (
            "resnet18",
            {"mask_site": "global_pool"},
            "mask_site: .*'global_pool'.* no feature map.*never called.*layer1",
        ),
        ("test_vit", {"mask_site": "blocks.1.mlp.fc1.weight"}, "mask_site: .*no module"),
        ("resnet18", {"mask_site": ""}, "mask_site: "),
        ("test_vit", {"image_size": 100, "mask_patch_size": 20}, "image_size: .*100 x 100"),
        ("swin_tiny_patch4_window7_224", {"image_size": 2, "mask_patch_size": 1}, "image_size: .*2 x 2"),
        ("resnet18", {"model_args": {"depht": 3}}, "model_args: .*depht"),
        ("test_vit", {"model_args": {"depht": 3}}, "model_args: .*depht"),
    ],
)
def test_errors_name_the_field(architecture, kwargs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        plan(architecture, **kwargs)


def test_patches_that_do_not_fill_the_image():
    """6 patches of 16 px see 96 of 100 px; stretched to 100, they are compared with other pixels than their own."""
    with pytest.raises(ValueError, match="^image_size: "):
        plan("vit_tiny_patch16_224", image_size=100, mask_patch_size=20)


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_values_are_computed_on_the_meta_device():
    """Where transformers' `from_pretrained` makes models first; timm's truncated normal takes long there."""
    found = plan("test_convnext", image_size=32)
    with Operators() as drawn:
        found.create()
    assert {"erfinv_", "clamp_"} <= drawn.names
    with torch.device("meta"), Operators() as on_meta:
        assert next(found.create().parameters()).is_meta
    assert not on_meta.names & {"erfinv_", "clamp_"}
