"""What all models have in common: saving and loading, first values, gradient checkpointing."""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
)

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel

from .families import FAMILIES, HIERARCHICAL, checkpointed
from .small_models import (
    CLASSES,
    MASKS,
    assert_equal,
    assert_gradients_close,
    check_new_classifier,
    check_own_weights,
    classifier,
    gradients,
    make,
    make_config,
    make_images,
    run,
    tensors,
    timm_encoder,
    values,
)


pytestmark = pytest.mark.usefixtures("one_thread")
# Sites inside what gradient checkpointing runs again
INSIDE = {
    "resnet": None,
    "convnext": "stages.2.blocks.0",
    "vit": 2,
    "efficientnet": None,
    "swin": "layers.2.blocks.0",
}
AUTO = [
    (A2MIMModel, AutoModel),
    (A2MIMForPreTraining, AutoModel),  # its encoder
    (A2MIMForPreTraining, AutoModelForPreTraining),
    (A2MIMForPreTraining, AutoModelForMaskedImageModeling),
    (A2MIMForImageClassification, AutoModelForImageClassification),
    (A2MIMForPreTraining, AutoModelForImageClassification),  # its encoder and a new classifier
]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# Saving and loading


def load(cls, path, **kwargs):
    """The loaded model, and a dict of what was missing, unexpected or mismatched. The model is copied: safetensors
    puts weights at any address, and at some of them a convolution chooses another algorithm, 1e-9 off."""
    model, info = cls.from_pretrained(path, output_loading_info=True, **kwargs)
    assert not model.training
    return copy.deepcopy(model), info


@pytest.mark.parametrize("cls", CLASSES)
def test_save_and_load(family, cls, tmp_path):
    model, images = make(family, cls), make_images()
    run(model.train(), images)  # so that the statistics of BatchNorm are not those of a new model
    model.eval().save_pretrained(tmp_path)
    again, info = load(cls, tmp_path)
    assert not any(info.values())
    assert_equal(tensors(again), tensors(model))
    assert_equal(values(run(again, images)), values(run(model, images)))


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_save_and_load_with_token(name, tmp_path):
    model, images = make(name, A2MIMModel, use_mask_token=True).eval(), make_images()
    model.save_pretrained(tmp_path)
    again, info = load(A2MIMModel, tmp_path, use_mask_token=True)
    assert not any(info.values())
    assert_equal(tensors(again), tensors(model))
    assert_equal(*(values(run(m, images, bool_masked_pos=MASKS[:2])) for m in (again, model)))


@pytest.mark.parametrize(("cls", "auto"), AUTO)
def test_auto_classes(cls, auto, tmp_path):
    model = make("resnet", cls).eval()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is A2MIMConfig
    again, info = load(auto, tmp_path)
    assert not info["unexpected_keys"]
    assert config.architecture == again.config.architecture == "test_resnet"
    assert type(again) is {AutoModel: A2MIMModel, AutoModelForImageClassification: A2MIMForImageClassification}.get(
        auto, cls
    )
    encoders = [getattr(m, "a2mim", m) for m in (again, model)]
    assert_equal(*(values(run(m, make_images())) for m in encoders))


def test_load_encoder_of_a_pretraining_checkpoint(family, tmp_path):
    model = make(family).eval()
    model.save_pretrained(tmp_path)
    again, info = load(A2MIMModel, tmp_path)
    assert not any(info.values())
    assert_equal(tensors(again), {f"encoder.{name}": x for name, x in tensors(model.a2mim.encoder).items()})
    assert_equal(values(run(again, make_images())), values(run(model.a2mim, make_images())))


def test_load_classifier_of_a_pretraining_checkpoint(family, tmp_path):
    model = make(family).eval()
    model.save_pretrained(tmp_path)
    again, info = load(A2MIMForImageClassification, tmp_path)
    fresh = {f"a2mim.encoder.{name}" for name in classifier(again)}
    assert info["missing_keys"] == fresh
    assert not info["unexpected_keys"]
    loaded = {name: x for name, x in tensors(again).items() if name not in fresh}
    assert_equal(loaded, {f"a2mim.encoder.{name}": x for name, x in tensors(model.a2mim.encoder).items()})
    assert_equal(values(run(again.a2mim, make_images())), values(run(model.a2mim, make_images())))
    check_new_classifier(again, 3)


def test_load_pretraining_model_of_a_classification_checkpoint(family, tmp_path):
    model = make(family, A2MIMForImageClassification)
    model.save_pretrained(tmp_path)
    again, info = load(A2MIMForPreTraining, tmp_path)
    assert info["unexpected_keys"] == {f"a2mim.encoder.{name}" for name in classifier(model)}
    encoder = {name: x for name, x in tensors(model.a2mim.encoder).items() if name not in classifier(model)}
    assert_equal(tensors(again.a2mim.encoder), encoder)
    check_own_weights(again)


def test_load_with_another_number_of_labels(family, tmp_path):
    model = make(family, A2MIMForImageClassification).eval()
    model.save_pretrained(tmp_path)
    again, _ = load(A2MIMForImageClassification, tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert_equal(values(run(again.a2mim, make_images())), values(run(model.a2mim, make_images())))
    check_new_classifier(again, 5)


def test_load_in_half_precision(family, tmp_path):
    model = make(family).eval()
    model.save_pretrained(tmp_path)
    again, _ = load(A2MIMForPreTraining, tmp_path, dtype=torch.bfloat16)
    expected = {n: x.bfloat16() if x.is_floating_point() else x for n, x in model.named_parameters()}
    assert_equal(dict(again.named_parameters()), expected)
    assert run(again, make_images().bfloat16()).loss.isfinite()


# First values


def test_first_values(family):
    """Nothing draws before the encoder and nothing of ours changes it, so that its weights are timm's."""
    torch.manual_seed(5)
    model = A2MIMForPreTraining(make_config(family))
    state = torch.get_rng_state()
    torch.manual_seed(5)
    encoder = timm_encoder(family)
    assert not torch.equal(torch.get_rng_state(), state)  # token and decoder are drawn after it
    assert_equal(tensors(model.a2mim.encoder), tensors(encoder))
    check_own_weights(model)


def test_first_values_of_the_classifier(family):
    torch.manual_seed(5)
    model = A2MIMForImageClassification(make_config(family))
    torch.manual_seed(5)
    assert_equal(tensors(model.a2mim.encoder), tensors(timm_encoder(family, num_classes=3)))


def test_first_values_follow_the_configuration():
    model = make("convnext", initializer_range=0.5, mask_gamma_init=0.25)
    token, gamma = model.a2mim.mask_token.token, model.a2mim.mask_token.gamma
    assert token.std().item() == pytest.approx(0.5, abs=0.2)  # four standard errors of 48 draws
    assert torch.equal(gamma, torch.full_like(gamma, 0.25))
    assert model.decoder.weight.std().item() == pytest.approx(0.5, abs=0.0065)
    assert make("convnext", mask_gamma_init=None).a2mim.mask_token.gamma is None


# Gradient checkpointing


def test_gradient_checkpointing(family):
    model, images = make(family, mask_site=INSIDE[family]).train(), make_images(4)
    plain = copy.deepcopy(model)
    torch.manual_seed(2)  # stochastic depth
    expected = plain(images, MASKS)
    calls = []
    model.a2mim.encoder.get_submodule(model.a2mim.site.module).register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(2)
    actual = checkpointed(model)(images, MASKS)
    assert torch.equal(actual.loss, expected.loss)
    gradient = gradients(model, actual.loss)
    assert len(calls) == 2  # it did run again
    assert_gradients_close(gradient, gradients(plain, expected.loss))
    assert gradient["a2mim.mask_token.token"].all()
    assert gradient["a2mim.mask_token.gamma"].all()


def test_gradient_checkpointing_of_the_classifier(family):
    model, images, labels = make(family, A2MIMForImageClassification), make_images(4), torch.tensor([0, 1, 2, 0])
    plain = copy.deepcopy(model)
    torch.manual_seed(2)
    expected = plain.train()(images, labels)
    torch.manual_seed(2)
    actual = checkpointed(model).train()(images, labels)
    assert torch.equal(actual.loss, expected.loss)
    assert_gradients_close(gradients(model, actual.loss), gradients(plain, expected.loss))


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("family", "decoder"), [*((name, "linear") for name in FAMILIES), *((name, "multiscale") for name in HIERARCHICAL)]
)
def test_gradient_checkpointing_of_two_masks(family, decoder):
    """Each segment runs again with the mask of its own forward; afterwards there is none."""
    model, images = make(family, mask_site=INSIDE[family], decoder=decoder).eval(), make_images(4)
    plain = copy.deepcopy(model)
    checkpointed(model)
    with torch.no_grad():
        clean = model.a2mim.encoder(images)

    def loss(m):
        unmasked = m.a2mim(images).last_hidden_state.square().mean()
        return m(images, MASKS).loss + unmasked + 2 * m(images.flip(0), MASKS.roll(1, 0)).loss

    assert_gradients_close(gradients(model, loss(model)), gradients(plain, loss(plain)))
    with torch.no_grad():
        assert torch.equal(model.a2mim.encoder(images), clean)
    # ... and an unmasked forward between a masked one and its backward keeps to itself, too.
    masked = model(images, MASKS).loss
    with torch.no_grad():
        assert torch.equal(model.a2mim.encoder(images), clean)
    assert_gradients_close(gradients(model, masked), gradients(plain, plain(images, MASKS).loss))


def test_gradient_checkpointing_can_be_turned_off(family):
    model = make(family)
    for enable in (True, False):
        checkpointed(model, enable)
        assert any(getattr(module, "grad_checkpointing", False) for module in model.a2mim.encoder.modules()) is enable


def test_gradient_checkpointing_of_two_sizes():
    model = make("vit", mask_site=2).eval()
    plain = copy.deepcopy(model)
    checkpointed(model)

    def loss(m):
        return m(make_images(), MASKS[:2]).loss + m(make_images(width=32), MASKS[:2, :, :2]).loss

    assert_gradients_close(gradients(model, loss(model)), gradients(plain, loss(plain)))


def test_gradient_checkpointing_of_hidden_states():
    model = make("vit", mask_site=2).eval()
    plain = copy.deepcopy(model)
    checkpointed(model)

    def loss(m):
        return m(make_images(), MASKS[:2], output_hidden_states=True).hidden_states[-1].square().mean()

    assert_gradients_close(gradients(model, loss(model)), gradients(plain, loss(plain)))


def test_failed_backward_leaves_no_mask():
    model, images = checkpointed(make("convnext")).eval(), make_images()

    def fail(gradient):
        raise RuntimeError("out of memory")

    clean = run(model.a2mim, images).last_hidden_state
    loss = model(images, MASKS[:2]).loss
    next(model.a2mim.encoder.parameters()).register_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.backward()
    assert torch.equal(run(model.a2mim, images).last_hidden_state, clean)
