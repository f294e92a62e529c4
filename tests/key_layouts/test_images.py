"""The preprocessor_config.json: means, crops and sizes in each of its forms, against what transformers does."""

import numpy as np
import pytest
from PIL import Image
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_STANDARD_MEAN, OPENAI_CLIP_MEAN

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.key_layouts import encoder_fields
from modeling_a2mim.key_layouts.images import _processor


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
STATISTICS = {"image_mean": MEAN, "image_std": STD}
SQUARE = {"height": 224, "width": 224}
DINOV2 = {"image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": SQUARE}


@pytest.mark.parametrize(
    ("model_type", "processor", "crop_pct"),
    [
        # As published: of transformers before 4.26 (sizes are numbers), and after it.
        ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, 1.0),
        ("vit_mae", {"image_processor_type": "ViTFeatureExtractor", "size": 224}, 1.0),
        ("swin", {"image_processor_type": "ViTImageProcessor", "size": SQUARE}, 1.0),
        ("deit", {"size": 256, "crop_size": 224, "do_center_crop": True}, 0.875),
        ("beit", {"size": 256, "crop_size": 224, "do_center_crop": True}, 0.875),
        ("beit", {"size": 224, "crop_size": 224, "do_center_crop": False}, 1.0),
        ("dinov2", DINOV2 | {"size": {"shortest_edge": 256}}, 0.875),
        ("dinov2_with_registers", DINOV2 | {"size": {"shortest_edge": 256}}, 0.875),
        ("dinov3_vit", {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE}, 1.0),
        ("dinov3_convnext", {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE}, 1.0),
        ("resnet", {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.9}, 0.9),
        ("convnext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 0.875),
        ("convnext", {"size": {"shortest_edge": 224}}, 0.875),
        ("convnextv2", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 1.0),
        ("regnet", {"size": 224, "crop_pct": 0.875}, 0.875),
        ("vit", {}, None),
        ("vit", {"size": 224, "do_resize": False}, None),
    ],
)
def test_crops(model_type, processor, crop_pct):
    fields = encoder_fields({"model_type": model_type} | groups(model_type), processor | STATISTICS)
    assert fields.get("crop_pct") == crop_pct
    assert (fields["image_mean"], fields["image_std"]) == (MEAN, STD)
    A2MIMConfig.for_encoder(**fields)


def groups(model_type: str) -> dict:
    return {"hidden_sizes": [128, 192, 512, 1088], "groups_width": 64} if model_type == "regnet" else {}


@pytest.mark.parametrize(
    ("model_type", "processor", "share"),
    [
        ("dinov2", DINOV2 | {"size": {"shortest_edge": 256}}, 0.875),
        ("convnext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 0.875),
        ("vit", {"size": 224}, 1.0),
    ],
)
def test_transformers_sees_that_share(model_type, processor, share):
    """Of an image whose rows are their numbers: the first and the last row that are seen."""
    rows = np.linspace(0, 255, 512).round().astype(np.uint8)
    image = Image.fromarray(np.repeat(rows[:, None, None], 512, axis=1).repeat(3, axis=2))
    made = _processor({"model_type": model_type}, processor | {"do_normalize": False})
    seen = made(image, return_tensors="pt").pixel_values[0, 0, :, 100]
    assert len(seen) == 224
    assert seen[0].item() == pytest.approx((1 - share) / 2, abs=0.01)
    assert seen[-1].item() == pytest.approx((1 + share) / 2, abs=0.01)
    assert encoder_fields({"model_type": model_type}, processor)["crop_pct"] == share


@pytest.mark.parametrize(
    ("model_type", "mean"),
    [
        ("vit", IMAGENET_STANDARD_MEAN),
        ("convnext", IMAGENET_STANDARD_MEAN),
        ("dinov2", OPENAI_CLIP_MEAN),
        ("dinov3_vit", IMAGENET_DEFAULT_MEAN),
        ("dinov2_with_registers", None),  # transformers knows no processor of the type
    ],
)
def test_without_a_file_the_statistics_are_those_of_the_processor(model_type, mean):
    fields = encoder_fields({"model_type": model_type}, None)
    assert fields.get("image_mean") == (None if mean is None else list(mean))
    assert "crop_pct" not in fields
    assert A2MIMConfig.for_encoder(**fields).image_mean == list(mean or IMAGENET_DEFAULT_MEAN)


def test_other_numbers_of_channels():
    """Have no defaults; what the file says of them holds."""
    data = {"model_type": "vit", "num_channels": 2}
    assert "image_mean" not in encoder_fields(data, {"size": 224})
    fields = encoder_fields(data, {"size": 224, "image_mean": [0.1, 0.2], "image_std": [0.3, 0.4]})
    assert A2MIMConfig.for_encoder(**fields).image_mean == [0.1, 0.2]
    with pytest.raises(ValueError, match=r"^image_mean: must hold one number for each of the 2 channels"):
        A2MIMConfig.for_encoder(**encoder_fields(data, STATISTICS))


def test_images_that_are_not_normalised():
    fields = encoder_fields({"model_type": "vit", "num_channels": 2}, {"do_normalize": False})
    assert (fields["image_mean"], fields["image_std"]) == ([0.0, 0.0], [1.0, 1.0])
    A2MIMConfig.for_encoder(**fields)


def test_sizes():
    """Of encoders that take images of any size, what is seen; of others, what their positions are of."""
    small = {"size": {"shortest_edge": 192}, "crop_size": {"height": 128, "width": 160}, "do_center_crop": True}
    small["image_processor_type"] = "BitImageProcessor"
    assert encoder_fields({"model_type": "resnet"}, small)["image_size"] == [128, 160]
    assert encoder_fields({"model_type": "resnet"})["image_size"] == 224
    assert encoder_fields({"model_type": "convnext", "image_size": 384})["image_size"] == 384
    assert encoder_fields({"model_type": "vit", "image_size": 384}, small)["image_size"] == 384
    assert encoder_fields({"model_type": "vit", "image_size": [224, 448]})["image_size"] == [224, 448]


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_processor_type": "OwnProcessor"}, r"transformers cannot read its preprocessor_config\.json: "),
        ({"do_rescale": False}, "rescale_factor is 1 in its preprocessor_config"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078.* in its preprocessor_config"),
        (DINOV2 | {"size": {"shortest_edge": 200}}, "crop_size is 224 x 224 .* larger than the 200 px"),
    ],
)
def test_what_is_not_done_to_images_here(processor, message):
    with pytest.raises(ValueError, match=f"^model_name_or_path: {message}"):
        encoder_fields({"model_type": "vit"}, processor)


def test_code_beside_the_file_is_not_run():
    processor = {"auto_map": {"AutoImageProcessor": "evil.Processor"}, "size": 224}
    assert encoder_fields({"model_type": "vit"}, processor)["crop_pct"] == 1.0
