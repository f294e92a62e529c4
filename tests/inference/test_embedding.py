"""Vectors of images by models of every kind: those of timm and of transformers; a named error where there are none."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.inference.embedding import embedder, layer_names
from modeling_a2mim.models.pooled_features import layer_features, stage_indices, unit_maps

from ..families import FAMILIES
from ..small_models import make, make_images, timm_encoder


pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"intermediate_size": 32}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder of each family."""
    folder = tmp_path_factory.mktemp("exports")
    return {family: export_model(make(family), folder / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_features_are_those_of_timm(exports, family):
    found = embedder(str(exports[family]))
    encoder = timm_encoder(family).eval()
    encoder.load_state_dict(make(family).a2mim.encoder.state_dict())
    images = make_images(3)
    with torch.no_grad():
        expected = encoder(images)
    vectors = found.embed(images)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, found.dim)
    np.testing.assert_allclose(vectors, expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.embed(images[1:2])[0], vectors[1], rtol=1e-4, atol=1e-5)  # of any batch
    assert found.description["architecture"] == FAMILIES[family]["architecture"]
    assert found.description["model"] == family


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers(exports, family):
    core, images = make(family).a2mim.eval(), make_images()
    count = len(core.encoder.feature_info)
    for layer, wanted in (
        ("last", [-1]),
        (-2, [-2]),
        ([0, "-1", "pooled"], [0, -1, None]),
        ("all", range(count)),
        ("stages", ["all"]),
    ):
        found = embedder(str(exports[family]), layer)
        expected = torch.cat(layer_features(core, images, list(wanted)), dim=1)
        np.testing.assert_allclose(found.embed(images), expected.numpy(), rtol=1e-5, atol=1e-5)
        assert layer_names(found.description["layer"]) == layer_names(layer)
    found, unit = (embedder(str(exports[family]), "stages", normalize=value) for value in (False, True))
    maps, stages = found.description["maps"], core.encoder.feature_info
    assert [each["index"] for each in maps] == stage_indices(core)
    assert [each["module"] for each in maps] == [stages[index]["module"] for index in stage_indices(core)]
    widths = [2 * each["channels"] for each in maps]
    assert sum(widths) == found.dim
    assert "maps" not in embedder(str(exports[family]), "last").description
    expected = unit_maps(torch.from_numpy(found.embed(images)), widths)
    np.testing.assert_allclose(unit.embed(images), expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=f"^layer: .* has {count} feature maps, there is no index {count}"):
        embedder(str(exports[family]), count)


def test_class_token(exports):
    images = make_images()
    encoder = make("vit").a2mim.encoder.eval()
    with torch.no_grad():
        tokens = encoder.forward_features(images)
    np.testing.assert_allclose(embedder(str(exports["vit"]), "cls").embed(images), tokens[:, 0], rtol=1e-5, atol=1e-5)
    both = embedder(str(exports["vit"]), "cls last").embed(images)
    np.testing.assert_allclose(both, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1), rtol=1e-5, atol=1e-5)
    for family in ("resnet", "convnext", "swin", "efficientnet"):
        with pytest.raises(ValueError, match="^layer: .* has no class token; pooled are timm's own"):
            embedder(str(exports[family]), "cls")


def test_names_of_layers():
    assert layer_names("0 -1 pooled") == layer_names([0, "-1", "pooled"]) == [0, -1, "pooled"]
    for wrong in ("first", "1.5", [], "all 1"):
        with pytest.raises(ValueError, match="^layer: expected pooled, cls, last, all, stages, or indices"):
            layer_names(wrong)


def test_length_and_precision(exports):
    images, source = make_images(8), str(exports["convnext"])
    exact = embedder(source).embed(images)
    unit = embedder(source, normalize=True).embed(images)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit, exact / np.linalg.norm(exact, axis=1, keepdims=True), atol=1e-6)
    for dtype, bits in (("bfloat16", 8), ("float16", 11)):
        rough = embedder(source, dtype=dtype).embed(images)
        assert rough.dtype == np.float32
        # The errors of some twenty roundings, of values as large as the largest.
        assert 0 < np.abs(rough - exact).max() < 20 * 2.0**-bits * np.abs(exact).max()
    with pytest.raises(ValueError, match="^dtype: expected float32, bfloat16, float16, got int8"):
        embedder(source, dtype="int8")


def test_what_is_not_finite_is_an_error(exports):
    found = embedder(str(exports["resnet"]), dtype="float16")
    with pytest.raises(ValueError, match="^dtype: features are not finite, with autocast to torch.float16"):
        found.embed(make_images() * 1e6)
    with pytest.raises(ValueError, match="^pixel_values: expected"):
        found.embed(make_images(channels=1))


def test_one_encoder_in_models_of_all_kinds(tmp_path):
    """The same weights are known as such, and read with the same transform, whatever they are part of."""
    model = make("vit")
    export_model(model, tmp_path / "export")
    model.save_pretrained(tmp_path / "checkpoint")
    classifier = make("vit", A2MIMForImageClassification)
    classifier.a2mim.encoder.load_state_dict(model.a2mim.encoder.state_dict(), strict=False)
    export_model(classifier, tmp_path / "classifier")
    sources = [str(tmp_path / name) for name in ("export", "checkpoint", "classifier")]
    sources += [load_model(sources[0], kind="pretraining"), load_model(sources[2], kind="classifier")]
    assert isinstance(sources[3].model, A2MIMForPreTraining)
    found = [embedder(source) for source in sources]
    images = make_images()
    for other in found[1:]:
        np.testing.assert_allclose(other.embed(images), found[0].embed(images), rtol=1e-5, atol=1e-6)
        assert other.description | {"model": ""} == found[0].description | {"model": ""}
        assert set(other.transform(Image.new("RGB", (70, 90)))) == {"pixel_values"}
    with torch.no_grad():
        next(model.a2mim.encoder.parameters()).view(-1)[0] += 1e-5
    export_model(model, tmp_path / "other")
    assert embedder(str(tmp_path / "other")).description["weights"] != found[0].description["weights"]


def save(model, folder):
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["vit", "convnext", "registers"])
@torch.no_grad()
def test_models_of_transformers(kind, tmp_path):
    torch.manual_seed(0)
    registers = Dinov2WithRegistersConfig(**TINY, num_register_tokens=3)
    model = {
        "vit": lambda: ViTModel(ViTConfig(**TINY)),
        "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1])),
        "registers": lambda: Dinov2WithRegistersModel(registers),
    }[kind]()
    source = save(model, tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(source)(image, return_tensors="pt")["pixel_values"]
    output = AutoModel.from_pretrained(source).eval()(pixels)
    found = embedder(source)
    assert torch.equal(found.transform(image)["pixel_values"][None], pixels)
    np.testing.assert_allclose(found.embed(pixels), output.pooler_output.flatten(1), rtol=1e-5, atol=1e-6)
    last = output.last_hidden_state
    mean = last.mean((2, 3)) if kind == "convnext" else last[:, 4 if kind == "registers" else 1 :].mean(1)
    np.testing.assert_allclose(embedder(source, "last").embed(pixels), mean, rtol=1e-5, atol=1e-6)
    if kind == "convnext":
        with pytest.raises(ValueError, match=r"^layer: .*\(ConvNextModel\), has no class token"):
            embedder(source, "cls")
    else:
        np.testing.assert_allclose(embedder(source, "cls").embed(pixels), last[:, 0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="^layer: .* has pooled, cls and last, got -1"):
        embedder(source, -1)


@torch.no_grad()
def test_a_pooler_that_has_no_weights_is_not_used(tmp_path):
    """A ViT that was trained without one: transformers makes a new one each time it is loaded."""
    model = ViTForImageClassification(ViTConfig(**TINY)).eval()
    source = save(model, tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    one, other = embedder(source), embedder(source)
    tokens = model.vit(pixels).last_hidden_state
    np.testing.assert_allclose(one.embed(pixels), tokens[:, 0], rtol=1e-5, atol=1e-6)
    assert one.description == other.description


@torch.no_grad()
def test_a_model_of_images_and_texts(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = CLIPModel(CLIPConfig(text_config={**text, "vocab_size": 99}, vision_config=TINY, projection_dim=24)).eval()
    source = save(model, tmp_path)
    pixels = torch.randn(2, 3, 32, 32)
    expected = model.get_image_features(pixel_values=pixels).pooler_output
    found = embedder(source)
    assert found.dim == 24
    np.testing.assert_allclose(found.embed(pixels), expected, rtol=1e-5, atol=1e-6)
