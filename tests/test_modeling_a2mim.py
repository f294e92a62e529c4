"""The checks that transformers makes for a vision encoder with a masked-image head, for five families of encoders."""

import copy
import inspect
import pickle

import pytest
import torch

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.losses import frequency_loss, spatial_loss

from .families import FAMILIES
from .small_models import (
    CLASSES,
    MASKS,
    assert_equal,
    gradients,
    make,
    make_images,
    run,
    tensors,
    timm_encoder,
    values,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_models_are_small(family):
    assert sum(p.numel() for p in make(family).parameters()) < 1_000_000


@pytest.mark.parametrize("cls", CLASSES)
def test_signature(cls):
    assert list(inspect.signature(cls.forward).parameters)[1] == "pixel_values"
    assert cls.main_input_name == "pixel_values"


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
        for images in (make_images(channels=1), make_images(channels=4), make_images()[0], make_images().numpy()):
            with pytest.raises(ValueError, match="^pixel_values: "):
                part(images)
        for images in (make_images().byte(), make_images() > 0):
            with pytest.raises(ValueError, match="^pixel_values: expected normalised images, got torch"):
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
