"""The checks that transformers makes for a vision encoder with a masked-image head, for five families of encoders."""

import copy
import functools
import inspect
import pickle

import pytest
import timm
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
)

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.losses import frequency_loss, spatial_loss

from .families import FAMILIES, HIERARCHICAL, checkpointed


pytestmark = pytest.mark.usefixtures("one_thread")
# Sites inside what gradient checkpointing runs again
INSIDE = {
    "resnet": None,
    "convnext": "stages.2.blocks.0",
    "vit": 2,
    "efficientnet": None,
    "swin": "layers.2.blocks.0",
}
CLASSES = [A2MIMModel, A2MIMForPreTraining, A2MIMForImageClassification]
AUTO = [
    (A2MIMModel, AutoModel),
    (A2MIMForPreTraining, AutoModel),  # its encoder
    (A2MIMForPreTraining, AutoModelForPreTraining),
    (A2MIMForPreTraining, AutoModelForMaskedImageModeling),
    (A2MIMForImageClassification, AutoModelForImageClassification),
    (A2MIMForPreTraining, AutoModelForImageClassification),  # its encoder and a new classifier
]
MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
MASKS = torch.stack([MASK, ~MASK, MASK.T, MASK.flip(0)])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def make_config(family, **kwargs):
    return A2MIMConfig(**{"image_size": 64, "mask_patch_size": 16, "num_labels": 3, **FAMILIES[family], **kwargs})


@functools.cache
def made(family, cls, use_mask_token, kwargs):
    torch.manual_seed(0)
    config = make_config(family, **dict(kwargs))
    return cls(config, use_mask_token=True) if use_mask_token else cls(config)


def make(family, cls=A2MIMForPreTraining, use_mask_token=False, **kwargs):
    """A model of its own for each test; only the first of its kind takes the time to be built."""
    return copy.deepcopy(made(family, cls, use_mask_token, tuple(kwargs.items())))


def make_images(batch=2, channels=3, height=64, width=64):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def timm_encoder(family, **kwargs):
    """What timm makes of the same arguments; a Swin must know the size."""
    args = {"model_name": FAMILIES[family]["architecture"], **FAMILIES[family].get("model_args", {})}
    sized = {"img_size": 64} if family == "swin" else {}
    return timm.create_model(**args, **sized, **{"num_classes": 0, **kwargs})


def run(model, images, **kwargs):
    """Forward without gradients, with the mask where the model takes one."""
    if isinstance(model, A2MIMForPreTraining):
        kwargs.setdefault("bool_masked_pos", MASKS[: len(images)])
    with torch.no_grad():
        return model(images, **kwargs)


def tensors(model):
    """Everything a module holds, the buffers that are not saved included"""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def values(output):
    """An output as named tensors"""
    flat = {}
    for name, value in output.items():
        flat.update({f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value})
    return flat


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_close(actual, expected):
    # The same operations in the same order; threads may add in another one, 1e-7 of the largest per addition.
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item(), msg=name)


def classifier(model):
    """The parameters of timm's classifier, named as in the encoder"""
    own = {id(p) for p in model.a2mim.encoder.get_classifier().parameters()}
    return {name: p for name, p in model.a2mim.encoder.named_parameters() if id(p) in own}


def check_own_weights(model):
    """The first values of token, gamma and decoder"""
    token, gamma = model.a2mim.mask_token.token.detach(), model.a2mim.mask_token.gamma
    weight = model.decoder.weight.detach()
    # At least 48 draws: four standard errors of their standard deviation are 0.02 * 4 / sqrt(2 * 48) = 0.008.
    assert token.std().item() == pytest.approx(0.02, abs=0.008)
    assert token.abs().max() <= 2
    assert torch.equal(gamma, torch.full_like(gamma, 1e-6))
    # At least 49152 draws: four standard errors are 0.00026, those of the mean 0.00036.
    assert weight.std().item() == pytest.approx(0.02, abs=0.00026)
    assert weight.mean().item() == pytest.approx(0, abs=0.00036)
    assert not model.decoder.bias.any()


def check_new_classifier(model, labels):
    weight, bias = classifier(model).values()
    assert weight.shape[0] == len(bias) == labels
    # timm draws from distributions between these; what happens to be in memory would hardly be.
    assert 0.005 < weight.std() < 1
    assert weight.unique().numel() > 0.9 * weight.numel()
    assert bias.abs().max() < 1
    assert run(model, make_images()).logits.isfinite().all()


def test_models_are_small(family):
    assert sum(p.numel() for p in make(family).parameters()) < 1_000_000


@pytest.mark.parametrize("cls", CLASSES)
def test_signature(cls):
    assert list(inspect.signature(cls.forward).parameters)[1] == "pixel_values"
    assert cls.main_input_name == "pixel_values"


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


# Outputs


def test_determinism(family):
    model, images = make(family).eval(), make_images()
    assert_equal(values(run(model, images)), values(run(model, images)))


def test_batches_are_independent(family):
    model, images = make(family).eval(), make_images(4)
    whole = run(model, images).reconstruction
    single = torch.cat(
        [run(model, images[i : i + 1], bool_masked_pos=MASKS[i : i + 1]).reconstruction for i in range(4)]
    )
    # Convolutions and products of other shapes add in another order.
    torch.testing.assert_close(single, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("states", [False, True])
def test_tuples_equal_dicts(family, cls, states):
    model, images = make(family, cls).eval(), make_images()
    output = run(model, images, output_hidden_states=states)
    given = run(model, images, output_hidden_states=states, return_dict=False)
    assert isinstance(given, tuple)
    assert len(given) == len(output)
    assert_equal(values(dict(enumerate(given))), values(dict(enumerate(output.to_tuple()))))
    model.config.return_dict, model.config.output_hidden_states = False, states
    assert_equal(values(dict(enumerate(run(model, images)))), values(dict(enumerate(given))))


@pytest.mark.parametrize("cls", CLASSES)
def test_hidden_states(family, cls):
    model, images = make(family, cls).eval(), make_images()
    plain, output = run(model, images), run(model, images, output_hidden_states=True)
    assert plain.hidden_states is None
    assert_equal(values(plain), {k: v for k, v in values(output).items() if not k.startswith("hidden_states")})
    encoder = getattr(model, "a2mim", model).encoder
    with torch.no_grad():
        expected = encoder.forward_intermediates(images)[1]
    shapes = [(2, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"]) for info in encoder.feature_info]
    assert [tuple(state.shape) for state in output.hidden_states] == shapes
    if cls is A2MIMForPreTraining:  # masked: maps before the last stage differ as well
        assert not any(torch.equal(*pair) for pair in zip(output.hidden_states, expected, strict=True))
    else:
        assert all(torch.equal(*pair) for pair in zip(output.hidden_states, expected, strict=True))


@pytest.mark.parametrize("use_mask_token", [False, True])
def test_features_are_timms(family, use_mask_token):
    model, images = make(family, A2MIMModel, use_mask_token).eval(), make_images()
    encoder = timm_encoder(family).eval()
    encoder.load_state_dict(model.encoder.state_dict())
    output = run(model, images)
    with torch.no_grad():
        features = encoder.forward_features(images)
        pooled = encoder.forward_head(features, pre_logits=True)
    assert torch.equal(output.last_hidden_state, features)
    assert torch.equal(output.pooler_output, pooled)
    if use_mask_token:
        nothing = run(model, images, bool_masked_pos=torch.zeros(2, 4, 4))
        assert torch.equal(nothing.last_hidden_state, features)


def test_loss_is_the_sum_of_its_terms(family):
    model, images = make(family).eval(), make_images()
    output = run(model, images)
    spatial = spatial_loss(output.reconstruction, images, MASKS[:2], "focal_l1")
    frequency = frequency_loss(output.reconstruction, images, MASKS[:2], unmasked_weight=1e-3, kind="focal_l1")
    assert torch.equal(output.spatial_loss, spatial)
    assert torch.equal(output.frequency_loss, frequency)
    assert torch.equal(output.loss, spatial + 0.5 * frequency)
    assert torch.equal(output.bool_masked_pos, MASKS[:2])
    model.config.frequency_loss_weight = 0
    output = run(model, images)
    assert output.frequency_loss is None
    assert torch.equal(output.loss, spatial)


def test_decoder_puts_pixels_in_their_place():
    """Cell (i, j) of the map becomes the square of `stride` pixels at (i, j), also where rows are not columns."""
    model = make("vit", image_size=(32, 64))
    features = torch.zeros(1, 64, 2, 4)
    features[0, 0, 1, 2] = 1
    with torch.no_grad():
        image = model.decode(features, (32, 64))
    changed = image.abs().sum((0, 1)) > 0
    expected = torch.zeros(32, 64, dtype=torch.bool)
    expected[16:32, 32:48] = True
    assert torch.equal(changed, expected)
    square = image[0, :, 16:32, 32:48].reshape(-1)  # channel by channel, row by row
    assert torch.equal(square, model.decoder.weight[:, 0, 0, 0])


# The mask and its token


def test_token_enters_masked_positions_of_the_site_only(family):
    model, seen = make(family, mask_gamma_init=0.5).eval(), []
    site = model.a2mim.encoder.get_submodule(model.a2mim.site.module)

    def look(module, args, output):
        seen.append(output if output.shape[2:] == (4, 4) else output.permute(0, 3, 1, 2))

    site.register_forward_hook(look, prepend=True)
    site.register_forward_hook(look)
    run(model, make_images())
    before, after = seen
    token, mask = model.a2mim.mask_token.token.view(-1, 1, 1), MASKS[:2, None]
    assert torch.equal(after, torch.where(mask, 0.5 * before + token, before))


def test_token_is_used_only_with_a_mask(family):
    model, images = make(family).eval(), make_images()
    masked, clean = run(model, images), run(model.a2mim, images)
    with torch.no_grad():
        model.a2mim.mask_token.token += 1
    assert not torch.equal(run(model, images).reconstruction, masked.reconstruction)
    assert_equal(values(run(model.a2mim, images)), values(clean))
    with torch.no_grad():
        assert torch.equal(model.a2mim.encoder.forward_features(images), clean.last_hidden_state)


def test_masked_pixels_are_not_seen(family):
    """With the fill by zeros, what is behind the mask cannot reach the features."""
    model = make(family, mask_fill="zero").eval()
    images = make_images()
    hidden = MASKS[:2].repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    other = torch.where(hidden, torch.full_like(images, 9), images)
    assert torch.equal(run(model, images).reconstruction, run(model, other).reconstruction)
    seen = torch.where(hidden, images, images + 1)
    assert not torch.equal(run(model, images).reconstruction, run(model, seen).reconstruction)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(family, duplicate):
    model, images = make(family).eval(), make_images()
    twin = duplicate(model)
    expected = run(model, images)
    assert_equal(tensors(twin), tensors(model))
    assert_equal(values(run(twin, images)), values(expected))
    with torch.no_grad():
        twin.a2mim.mask_token.token += 1
    assert not torch.equal(run(twin, images).reconstruction, expected.reconstruction)
    assert_equal(values(run(model, images)), values(expected))


def test_flat_masks(family):
    model, images = make(family).eval(), make_images()
    grid = values(run(model, images))
    for mask in (MASKS[:2].flatten(1), MASKS[:2].float(), MASKS[:2].long().flatten(1)):
        assert_equal(values(run(model, images, bool_masked_pos=mask)), grid)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4), (2, 15), (4, 4), (16,), (2, 1, 4, 4)])
def test_wrong_masks(shape):
    model = make("convnext")
    for part in (model, model.a2mim):
        with pytest.raises(ValueError, match="^bool_masked_pos: "):
            part(make_images(), torch.ones(shape))


def test_wrong_images(family):
    model = make(family)
    for part in (model, model.a2mim, make(family, A2MIMForImageClassification)):
        for images in (make_images(channels=1), make_images(channels=4), make_images()[0]):
            with pytest.raises(ValueError, match="^pixel_values: "):
                part(images)
    with pytest.raises(ValueError, match="^pixel_values: "):
        model(make_images(channels=1), MASKS[:2])


def test_models_without_token_or_labels(family):
    with pytest.raises(ValueError, match="^bool_masked_pos: "):
        make(family, A2MIMModel)(make_images(), MASKS[:2])
    with pytest.raises(ValueError, match="^num_labels: "):
        make(family, A2MIMForImageClassification, num_labels=0)


def test_random_masks(family):
    model, images = make(family).eval(), make_images(4)

    def draw(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return run(model, images, bool_masked_pos=None).bool_masked_pos

    first, second, again = draw(3), draw(), draw(3)
    assert first.shape == (4, 4, 4)
    assert first.sum((1, 2)).tolist() == [10] * 4  # ceil(0.6 * 16)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert len({tuple(m) for m in first.flatten(1).tolist()}) == 4  # each image its own


@pytest.mark.parametrize("kwargs", [{"image_size": (64, 96)}, {"num_channels": 1}, {"num_channels": 4}])
def test_other_images(family, kwargs):
    model = make(family, **kwargs)
    height, width = model.config.input_size
    images = make_images(2, model.config.num_channels, height, width)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert output.bool_masked_pos.shape == (2, height // 16, width // 16)
    gradient = gradients(model, output.loss)
    assert all(g.isfinite().all() for g in gradient.values())
    assert len(gradient) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit", "efficientnet"])
def test_images_of_another_size(name):
    """A model for 64 x 64 px does with 32 x 96 px what one built for them does; a Swin takes only its own size."""
    model, other = make(name).eval(), make(name, image_size=(32, 96)).eval()
    other.load_state_dict(model.state_dict())
    images, mask = make_images(height=32, width=96), torch.rand(2, 2, 6) > 0.5
    assert_equal(*(values(run(m, images, bool_masked_pos=mask)) for m in (model, other)))
    assert model(images).bool_masked_pos.shape == (2, 2, 6)


def test_images_of_another_size_between_the_blocks_of_a_vit():
    model, other = make("vit", mask_site=2).eval(), make("vit", mask_site=2, image_size=(32, 96)).eval()
    other.load_state_dict(model.state_dict())
    images, mask = make_images(height=32, width=96), torch.rand(2, 2, 6) > 0.5
    assert_equal(*(values(run(m, images, bool_masked_pos=mask)) for m in (model, other)))


def test_number_of_masked_cells_of_another_size():
    output = run(make("convnext"), make_images(height=32, width=96), bool_masked_pos=None)
    assert output.bool_masked_pos.sum((1, 2)).tolist() == [8, 8]  # ceil(0.6 * 12)


def test_larger_decoder():
    """A kernel of 3 that is zero but for its middle decodes as one of 1."""
    one, three, images = make("convnext"), make("convnext", decoder_kernel_size=3), make_images()
    three.a2mim.load_state_dict(one.a2mim.state_dict())
    with torch.no_grad():
        three.decoder.weight.zero_()[..., 1:2, 1:2] = one.decoder.weight
        three.decoder.bias.copy_(one.decoder.bias)
    expected, found = (run(m, images, bool_masked_pos=MASKS[:2]).reconstruction for m in (one, three))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # other kernels, other sums in float32


# Training


@pytest.mark.parametrize("cls", [A2MIMForPreTraining, A2MIMForImageClassification])
def test_every_parameter_gets_a_gradient(family, cls):
    model = make(family, cls).train()
    labels = {"labels": torch.tensor([0, 1, 2, 0])}
    output = model(make_images(4), **(labels if cls is A2MIMForImageClassification else {}))
    gradient = gradients(model, output.loss)
    assert [name for name, _ in model.named_parameters() if name not in gradient or not gradient[name].any()] == []
    assert all(g.isfinite().all() for g in gradient.values())


@pytest.mark.parametrize("cls", [A2MIMForPreTraining, A2MIMForImageClassification])
def test_bfloat16_autocast(family, cls):
    model, images = make(family, cls).train(), make_images(4)
    extra = {"labels": torch.tensor([0, 1, 2, 0])} if cls is A2MIMForImageClassification else {}
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, **extra)
    if cls is A2MIMForPreTraining:
        assert output.reconstruction.dtype == torch.bfloat16  # autocast was at work
        assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    assert all(g.isfinite().all() for g in gradients(model, output.loss).values())


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


# Classification


def test_freeze_encoder(family):
    model, images = make(family, A2MIMForImageClassification), make_images(4)
    logits = run(model.eval(), images).logits
    model.freeze_encoder()
    assert len(classifier(model)) == 2
    trained = {f"a2mim.encoder.{name}" for name in classifier(model)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(2):
        model.train()
        assert model.training
        output = model(images, torch.tensor([0, 1, 2, 0]))
        assert torch.equal(output.logits, logits)  # no batch statistics, no stochastic depth
        assert gradients(model, output.loss).keys() == trained
        model.eval()
    assert_equal(dict(model.named_buffers()), before)


def test_freeze_encoder_with_two_classifiers():
    deit = {"architecture": "deit_tiny_distilled_patch16_224", "model_args": {"depth": 1}}
    model = A2MIMForImageClassification(A2MIMConfig(image_size=32, mask_patch_size=16, **deit))
    model.freeze_encoder()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "a2mim.encoder.head.weight",
        "a2mim.encoder.head.bias",
        "a2mim.encoder.head_dist.weight",
        "a2mim.encoder.head_dist.bias",
    ]


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1, 2]), F.cross_entropy),
        ("multi_label_classification", torch.eye(4, 3), F.binary_cross_entropy_with_logits),
        ("regression", torch.eye(4, 3), F.mse_loss),
        (None, torch.tensor([0, 2, 1, 2]), F.cross_entropy),
        (None, torch.eye(4, 3), F.binary_cross_entropy_with_logits),
    ],
)
def test_classification_loss(problem, labels, loss):
    model, images = make("convnext", A2MIMForImageClassification, problem_type=problem).eval(), make_images(4)
    with torch.no_grad():
        model.a2mim.encoder.get_classifier().weight.mul_(50)  # logits that are far from equal
    assert run(model, images).loss is None
    output = run(model, images, labels=labels)
    assert output.logits.shape == (4, 3)
    assert torch.equal(output.loss, loss(output.logits, labels))


def test_logits_are_timms(family):
    model, images = make(family, A2MIMForImageClassification).eval(), make_images()
    encoder = timm_encoder(family, num_classes=3).eval()
    encoder.load_state_dict(model.a2mim.encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(run(model, images).logits, encoder(images))
