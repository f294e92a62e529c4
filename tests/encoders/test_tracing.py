"""One run of an encoder on the meta device."""

import pytest

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.encoders.layout import BATCH, FeatureLayout
from modeling_a2mim.encoders.tracing import EncoderSpec, describe_shapes, encoder_shapes, trace_encoder


def spec(architecture, **kwargs):
    return EncoderSpec.from_config(A2MIMConfig.for_encoder(architecture=architecture, **kwargs))


def test_what_an_encoder_is_built_from():
    made = spec("test_vit", image_size=[64, 32], num_channels=1, model_args={"depth": 2})
    args = {"model_name": "test_vit", "depth": 2, "in_chans": 1}
    assert made.create_args() == args
    assert made.create_args(sized=True) == {**args, "img_size": [64, 32]}


def test_a_run_shows_the_last_map():
    trace, args = trace_encoder(spec("resnet18", image_size=64))
    assert args == {"model_name": "resnet18"}
    assert trace.strides == [2, 4, 8, 16, 32]
    assert trace.final == FeatureLayout("NCHW", 512, (2, 2))
    assert not trace.from_intermediates
    assert trace.layout("layer3", [16]) == FeatureLayout("NCHW", 256, (4, 4))
    assert trace.layout("layer3", [8]) is None
    assert trace.layout("fc", [32]) is None  # is not called
    assert {"layer1", "layer4"} <= set(trace.usable())


def test_a_vit_is_built_for_its_size():
    trace, args = trace_encoder(spec("vit_tiny_patch16_224", image_size=64, model_args={"depth": 2}))
    assert args["img_size"] == [64, 64]
    assert trace.layout("blocks.1", [16]) == FeatureLayout("NLC", 192, (4, 4), 1)
    assert trace.layout("blocks.1", [16], channels=32) is None


def test_shapes_for_another_size():
    config = A2MIMConfig(architecture="test_vit", image_size=64, mask_patch_size=16)
    own, other = encoder_shapes(config, (64, 64)), encoder_shapes(config, (32, 64))
    assert [name for name in own if own[name] != other[name]] == ["pos_embed"]
    assert (own["pos_embed"][1], other["pos_embed"][1]) == (17, 9)


def test_sizes_that_timm_refuses():
    with pytest.raises(ValueError, match=r"^image_size: .* cannot take images of 2 x 2 px with 3 channel"):
        trace_encoder(spec("swin_tiny_patch4_window7_224", image_size=2))


def test_shapes_in_words():
    assert describe_shapes([(BATCH, 3, 4)]) == "a tensor (batch, 3, 4)"
    assert describe_shapes([(BATCH, 3), (5,), ()]) == "tensors (batch, 3), (5)"
    assert describe_shapes([]) == "tensors of no dimensions"
