"""The losses against a slow float64 reference: both images transformed in full, formulas as in the paper."""

import itertools

import pytest
import torch

from modeling_a2mim.losses import frequency_loss, spatial_loss


# (rows, columns) of the mask and (height, width) of its cells: square, odd and even widths, one and two columns
SHAPES = [((4, 4), (4, 4)), ((3, 5), (4, 3)), ((2, 3), (5, 7)), ((5, 2), (2, 6)), ((3, 1), (2, 1)), ((2, 1), (3, 2))]
pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ["l1", "focal_l1"]
REPLACEMENTS = ["mixed", "prediction", "target", "mean"]


def make(shape=SHAPES[0], batch=3, channels=3, dtype=torch.float64):
    """(prediction, target, mask) with at least one masked and one visible cell in each image"""
    (rows, columns), (height, width) = shape
    size = (batch, channels, rows * height, columns * width)
    mask = torch.rand(batch, rows, columns) > 0.4
    mask[:, 0, 0], mask[:, -1, -1] = True, False
    return torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype), mask


def upscale(mask, like):
    height, width = like.shape[2] // mask.shape[1], like.shape[3] // mask.shape[2]
    return mask.repeat_interleave(height, 1).repeat_interleave(width, 2)[:, None].to(like.dtype)


def criterion(distance, kind):
    return distance if kind == "l1" else distance * (2 * torch.sigmoid(0.2 * distance) - 1)


def spatial_reference(prediction, target, mask, kind):
    mask = upscale(mask, prediction)
    return (criterion((prediction - target).abs(), kind) * mask).sum() / (mask.sum() + 1e-5) / prediction.shape[1]


def frequency_reference(prediction, target, mask, focal, replacement, unmasked_weight, batch_average, kind="l1"):
    share = upscale(mask, prediction)
    share = share + (1 - share) * unmasked_weight
    replacing = {
        "mixed": 0.5 * prediction + 0.5 * target,
        "prediction": prediction,
        "target": target,
        "mean": target.mean((2, 3), keepdim=True),
    }[replacement].detach()
    mixed = prediction * share + replacing * (1 - share)
    difference = torch.fft.fft2(mixed, norm="ortho") - torch.fft.fft2(target, norm="ortho")
    if not focal:
        return criterion(difference.abs(), kind).mean()
    if batch_average:
        difference = difference.mean(0, keepdim=True)
    weight = torch.log(1 + difference.detach().abs())
    weight = (weight / weight.amax((1, 2, 3), keepdim=True)).clamp(0, 1)
    return (weight * (difference.real**2 + difference.imag**2)).mean()


def value_and_gradient(loss, prediction, *args, **kwargs):
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, prediction)[0]


def assert_same(actual, expected):
    # Float64 sums of a few hundred numbers in another order: some 1e-15 of the largest.
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12 * e.abs().max().item())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_spatial_loss_and_gradient(shape, kind):
    data = make(shape)
    assert_same(value_and_gradient(spatial_loss, *data, kind), value_and_gradient(spatial_reference, *data, kind))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("unmasked_weight", [0.0, 1e-3, 0.3])
def test_focal_frequency_loss_and_gradient(shape, replacement, unmasked_weight):
    data = make(shape)
    for batch_average in (True, False):
        options = {"replacement": replacement, "unmasked_weight": unmasked_weight, "batch_average": batch_average}
        actual = value_and_gradient(frequency_loss, *data, **options)
        assert_same(actual, value_and_gradient(frequency_reference, *data, focal=True, **options))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_frequency_loss_and_gradient(shape, replacement, kind):
    data = make(shape)
    for batch_average in (True, False):  # never averages
        options = {"focal": False, "replacement": replacement, "unmasked_weight": 0.1, "kind": kind}
        actual = value_and_gradient(frequency_loss, *data, **options, batch_average=batch_average)
        assert_same(actual, value_and_gradient(frequency_reference, *data, **options, batch_average=False))


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(channels):
    data = make(channels=channels)
    assert_same([spatial_loss(*data, "focal_l1")], [spatial_reference(*data, "focal_l1")])
    assert_same([frequency_loss(*data)], [frequency_reference(*data, True, "mixed", 0.0, True)])


@pytest.mark.parametrize("kind", KINDS)
def test_analytic_gradients(kind):
    """Where nothing is detached, gradients are those of finite differences."""
    prediction, target, mask = make(((2, 3), (2, 1)), batch=2)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_loss(x, target, mask, kind), (prediction,))
    options = {"focal": False, "replacement": "target", "unmasked_weight": 0.2, "kind": kind}
    assert torch.autograd.gradcheck(lambda x: frequency_loss(x, target, mask, **options), (prediction,))


@pytest.mark.parametrize("kind", KINDS)
def test_spatial_loss_sees_masked_pixels_only(kind):
    prediction, target, mask = make()
    visible = upscale(mask, prediction) == 0
    value, gradient = value_and_gradient(spatial_loss, prediction, target, mask, kind)
    assert torch.equal(spatial_loss(prediction + 100 * visible, target, mask, kind), value)
    assert not gradient[visible.expand_as(gradient)].any()
    assert gradient[~visible.expand_as(gradient)].all()


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_visible_pixels_get_the_share_of_the_gradient(replacement):
    """Without an unmasked weight the replacement stops every gradient to what is visible."""
    prediction, target, mask = make()
    visible = (upscale(mask, prediction) == 0).expand_as(prediction)
    _, gradient = value_and_gradient(frequency_loss, prediction, target, mask, replacement=replacement)
    assert not gradient[visible].any()
    options = {"replacement": replacement, "unmasked_weight": 0.01}
    _, gradient = value_and_gradient(frequency_loss, prediction, target, mask, **options)
    assert gradient[visible].all()


def losses(*data):
    """Every form of both losses."""
    yield from (spatial_loss(*data, kind) for kind in KINDS)
    for replacement, average in itertools.product(REPLACEMENTS, (True, False)):
        yield frequency_loss(*data, replacement=replacement, unmasked_weight=1e-3, batch_average=average)
    for replacement, kind in itertools.product(REPLACEMENTS, KINDS):
        yield frequency_loss(*data, focal=False, replacement=replacement, unmasked_weight=1e-3, kind=kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_perfect_prediction(dtype):
    """Zero loss, and a gradient that is finite, for each form but the one whose replacement is a blurred target."""
    _, target, mask = make()
    target = target.to(dtype)
    prediction = target.clone().requires_grad_()
    for kind in KINDS:
        assert spatial_loss(prediction, target, mask, kind) == 0
    for replacement, focal in itertools.product(["mixed", "prediction", "target"], (True, False)):
        assert frequency_loss(prediction, target, mask, focal=focal, replacement=replacement) == 0
    sum(losses(prediction, target, mask)).backward()
    assert prediction.grad.isfinite().all()


def test_nothing_masked():
    prediction, target, mask = make()
    prediction.requires_grad_()
    mask = torch.zeros_like(mask)
    assert spatial_loss(prediction, target, mask) == 0
    sum(losses(prediction, target, mask)).backward()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_computed_in_float32(dtype, autocast):
    prediction, target, mask = make()
    prediction, target = prediction.to(dtype).requires_grad_(), target.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = list(losses(prediction, target, mask))
    expected = list(losses(prediction.detach().float(), target.float(), mask))
    assert {loss.dtype for loss in actual} == {torch.float32}
    assert torch.equal(torch.stack(actual), torch.stack(expected))
    sum(actual).backward()
    assert prediction.grad.dtype == dtype
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_large_half_precision_values(dtype, autocast):
    """The squared sum of 8192 errors of up to 1.2e5 is far above the largest float16, 65504."""
    size = (2, 3, 64, 64)
    target = torch.full(size, 6e4).to(dtype)
    prediction = (-target * torch.rand(size)).to(dtype).requires_grad_()
    mask = torch.rand(2, 4, 4) > 0.5
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = torch.stack(list(losses(prediction, target, mask)))
    assert values.isfinite().all()
    gradients = torch.autograd.grad(spatial_loss(prediction, target, mask), prediction)[0]
    assert gradients.isfinite().all()


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_without_batch_average_images_are_independent(replacement):
    data = make(batch=4)
    options = {"replacement": replacement, "unmasked_weight": 1e-3, "batch_average": False}
    singles = [frequency_loss(*(x[i : i + 1] for x in data), **options) for i in range(4)]
    assert_same([frequency_loss(*data, **options)], [torch.stack(singles).mean()])
    averaged = frequency_loss(*data, **{**options, "batch_average": True})
    assert averaged < 0.9 * torch.stack(singles).mean()  # residuals of different images cancel


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_batch_average_of_one_image(replacement):
    data = make(batch=1)
    averaged, single = (frequency_loss(*data, replacement=replacement, batch_average=flag) for flag in (True, False))
    assert torch.equal(averaged, single)


def test_mask_of_any_number_type():
    prediction, target, mask = make()
    for other in (mask.float(), mask.long(), mask.double()):
        assert torch.equal(spatial_loss(prediction, target, other), spatial_loss(prediction, target, mask))
        assert torch.equal(frequency_loss(prediction, target, other), frequency_loss(prediction, target, mask))
