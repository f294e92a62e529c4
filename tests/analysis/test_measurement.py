"""Interaction strength against the definition, computed directly; and what is compared, resumed, stopped, refused."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from modeling_a2mim.analysis.contexts import (
    all_contexts,
    contexts_of,
    draw_permutations,
    neighboring_pairs,
    with_pairs,
)
from modeling_a2mim.analysis.measurement import _Values, interaction_strength
from modeling_a2mim.analysis.strength import InteractionSettings


pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"grid": 3, "ratios": (0, 0.3, 0.6, 1), "pairs": 6, "contexts": 4}


class Net(nn.Module):
    """A few random non-linear functions of all pixels, in float64 unless said."""

    def __init__(self, pixels: int = 3 * 12 * 12, classes: int = 5, dtype=torch.float64):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.Tanh(), nn.Linear(16, classes)).to(dtype)
        self.shown = 0

    def forward(self, pixel_values):
        self.shown += len(pixel_values)
        return SimpleNamespace(logits=3 * self.layers(pixel_values))


def pictures(count: int = 3, size: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64) + 0.3


def value_of(logits: torch.Tensor, label: int, value: str) -> float:
    p = logits.softmax(0)[label].item()
    return {"log_odds": np.log(p / (1 - p)), "log_prob": np.log(p), "logit": logits[label].item()}[value]


def shown_cells(image: torch.Tensor, cells, grid: int, fill: str) -> torch.Tensor:
    """The image with all cells but these filled, cell by cell."""
    result, side = image.clone(), image.shape[-1] // grid
    color = image.mean((1, 2)) if fill == "mean" else torch.zeros(3, dtype=image.dtype)
    for cell in set(range(grid**2)) - set(cells):
        row, column = cell // grid * side, cell % grid * side
        result[:, row : row + side, column : column + side] = color[:, None, None]
    return result


def defined(model, image, label, pair, order, grid, value, fill) -> float:
    """I_ij(m): the mean over all contexts of m cells, one forward pass for each term."""
    i, j = pair
    others = [cell for cell in range(grid**2) if cell not in pair]

    def v(cells):
        with torch.no_grad():
            return value_of(model(shown_cells(image, cells, grid, fill)[None]).logits[0], label, value)

    found = [v((*s, i, j)) - v((*s, i)) - v((*s, j)) + v(s) for s in itertools.combinations(others, order)]
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("value", "fill"), [("log_odds", "zero"), ("log_odds", "mean"), ("log_prob", "zero"), ("logit", "mean")]
)
def test_is_what_the_definition_says(value, fill):
    """All pairs of 9 cells and all contexts of all 8 orders, to 1e-9: float64 on both sides, different batches."""
    model, images, labels = Net(), pictures(2), [3, 0]
    ratios = [m / 7 for m in range(8)]
    result = interaction_strength(model, images, labels, 3, ratios, None, None, value, fill, batch_size=100)
    assert result.orders.tolist() == list(range(8))
    assert result.interactions.shape == (2, 8, 36)
    assert result.pairs[0].tolist() == neighboring_pairs((3, 3)).tolist()
    # Of the middle orders (35 contexts) a few pairs.
    for order, pairs in ((0, range(36)), (1, range(0, 36, 3)), (3, (0, 17)), (6, (5, 9)), (7, range(36))):
        for pair in pairs:
            for number in (0, 1):
                cells = neighboring_pairs((3, 3))[pair].tolist()
                direct = defined(
                    model,
                    images[number],
                    labels[number],
                    cells,
                    order,
                    3,
                    value,
                    fill,
                )
                assert abs(result.interactions[number, order, pair] - abs(direct)) < 1e-9
    mean = result.interactions.mean((0, 2))
    np.testing.assert_allclose(result.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(result.strength, mean / mean.mean(), rtol=1e-12)


@pytest.mark.parametrize("sampling", ["shared", "windows", "independent"])
def test_sampled_contexts_by_hand(sampling):
    """The same pairs and contexts, four forward passes for each, to 1e-9."""
    model, images, labels = Net(), pictures(), [1, 2, 4]
    result = interaction_strength(model, images, labels, **SMALL, sampling=sampling, batch_size=50)
    settings = InteractionSettings(**SMALL, sampling=sampling)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        pairs, subsets = settings.draw(number)
        np.testing.assert_array_equal(result.pairs[number], pairs.cells)
        for place, subset in enumerate(subsets):
            masks = np.unpackbits(subset.packed, axis=-1, count=9)[subset.indices]  # (pairs, contexts, 4, 9)
            for pair, of_pair in enumerate(masks):
                total = 0.0
                for four in of_pair:
                    for sign, mask in zip((1, -1, -1, 1), four, strict=True):
                        with torch.no_grad():
                            shown = shown_cells(image, np.flatnonzero(mask).tolist(), 3, "zero")
                            total += sign * value_of(model(shown[None]).logits[0], label, "log_odds")
                assert abs(result.interactions[number, place, pair] - abs(total) / len(of_pair)) < 1e-9
    np.testing.assert_allclose(result.per_image, np.einsum("iop,ip->io", result.interactions, result.weights))


@pytest.mark.parametrize("sampling", ["shared", "independent"])
def test_estimates_are_unbiased(sampling):
    """I_ij(m), before its absolute value, over many draws of 3 contexts: within 5 standard errors of the mean over all
    contexts, for each pair. That the contexts of a pair are evenly drawn is exact in test_contexts.py."""
    generator = np.random.default_rng(0)
    value = generator.normal(size=2**9)  # of any subset of 9 cells
    pairs, order, draws = neighboring_pairs((3, 3)), 3, 4000

    def means(contexts):
        number = with_pairs(contexts, pairs) @ (1 << np.arange(9))
        return (value[number] @ [1, -1, -1, 1]).mean(1)

    exact = means(all_contexts(9, pairs, order))
    found = []
    for _ in range(draws):
        places = draw_permutations(9, 3 if sampling == "shared" else 3 * 36, generator)
        found.append(means(contexts_of(places if sampling == "shared" else places.reshape(36, 3, 9), pairs, order)))
    error = np.std(found, axis=0) / np.sqrt(draws)
    assert (np.abs(np.mean(found, axis=0) - exact) < 5 * error).all()
    assert error.max() < 0.05


def test_all_models_are_shown_the_same():
    images, labels = pictures(2), [0, 1]
    one = interaction_strength(Net(), images, labels, **SMALL)
    other = interaction_strength(Net(classes=7), images, labels, **SMALL, batch_size=7)
    np.testing.assert_array_equal(one.pairs, other.pairs)
    assert one.forward_passes == other.forward_passes
    assert not np.allclose(one.interactions, other.interactions)
    # Each image has its own, which do not depend on how many there are.
    assert (one.pairs[0] != one.pairs[1]).any()
    alone = interaction_strength(Net(), images[:1], labels[:1], **SMALL)
    np.testing.assert_array_equal(alone.pairs[0], one.pairs[0])
    reseeded = interaction_strength(Net(), images, labels, **SMALL, seed=1)
    assert (reseeded.pairs != one.pairs).any()


def test_batches_make_no_difference():
    model, images = Net(), pictures(5)
    results = [interaction_strength(model, images, range(5), **SMALL, batch_size=size) for size in (1, 13, 1000)]
    for result in results[1:]:
        np.testing.assert_allclose(result.interactions, results[0].interactions, atol=1e-12)
    assert results[0].forward_passes == model.shown // 3


def test_each_subset_is_shown_once():
    """Both ends have one context, so 4 passes for each of 6 pairs at most, however many contexts are asked for."""
    model = Net()
    result = interaction_strength(model, pictures(1), [0], **{**SMALL, "ratios": (0, 1), "contexts": 40})
    cells = len(np.unique(result.pairs))
    assert result.forward_passes == model.shown == 2 * (1 + cells + 6)


def test_a_linear_model_has_no_interactions():
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 5)).double()
    result = interaction_strength(model, pictures(), [0, 1, 2], **SMALL, value="logit")
    assert result.interactions.max() < 1e-12
    model[1].weight.data.zero_()
    result = interaction_strength(model, pictures(), [0, 1, 2], **SMALL, value="logit")
    assert np.isnan(result.strength).all()  # nothing over nothing


def test_stops_when_the_intervals_are_narrow():
    images, labels = pictures(40), torch.arange(40) % 5
    whole = interaction_strength(Net(), images, labels, **SMALL, batch_size=4)
    torch.manual_seed(0)
    width = float(np.diff(whole.strength_interval()).max()) * 1.5
    model = Net()
    result = interaction_strength(model, images, labels, **SMALL, batch_size=4, interval_width=width)
    assert 10 <= result.images < 40
    assert np.diff(result.strength_interval()).max() <= width
    never = interaction_strength(model, images[:12], labels[:12], **SMALL, interval_width=1e-9)
    assert never.images == 12


@pytest.mark.parametrize("labelled", [True, False])
def test_goes_on_where_it_was_stopped(tmp_path, labelled):
    model, images, file = Net(), pictures(6), tmp_path / "results" / "net.npz"
    labels = [0, 1, 2, 3, 4, 0] if labelled else None
    options = {**SMALL, "batch_size": 8}  # one image at a time
    whole = interaction_strength(model, images, labels, **options)

    def stopped():
        yield from images[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interaction_strength(model, stopped(), labels, **options, resume=file)
    model.shown = 0
    result = interaction_strength(model, images, labels, **options, resume=file)
    assert model.shown == pytest.approx(whole.forward_passes / 2, rel=0.2)
    np.testing.assert_array_equal(result.interactions, whole.interactions)
    assert result.forward_passes == whole.forward_passes
    # All of it is there now, whatever the batch.
    model.shown = 0
    again = interaction_strength(model, images, labels, **{**options, "batch_size": 500}, resume=file)
    assert model.shown == 0
    np.testing.assert_array_equal(again.interactions, whole.interactions)
    assert [path.name for path in file.parent.iterdir()] == ["net.npz"]
    shorter = interaction_strength(model, images[:2], labels and labels[:2], **options, resume=file)
    assert shorter.images == 2


def test_what_is_no_resumption(tmp_path):
    model, images, file = Net(), pictures(2), tmp_path / "net.npz"
    interaction_strength(model, images, [0, 1], **SMALL, resume=file)
    for options, name in (({"seed": 1}, "seed"), ({"fill": "mean"}, "fill"), ({"contexts": 5}, "contexts")):
        with pytest.raises(ValueError, match=f"^resume: .*other {name}; name another file"):
            interaction_strength(model, images, [0, 1], **{**SMALL, **options}, resume=file)
    with pytest.raises(ValueError, match="^resume: .*other weights; name another file"):
        interaction_strength(Net(), images, [0, 1], **SMALL, resume=file)
    with pytest.raises(ValueError, match=r"^resume: net.npz is a measurement of other images or labels"):
        interaction_strength(model, images, [1, 1], **SMALL, resume=file)
    with pytest.raises(ValueError, match=r"^resume: net.npz is a measurement of other images or labels"):
        interaction_strength(model, images + 1, [0, 1], **SMALL, resume=file)
    for broken in (b"", b"not a file of numpy", file.read_bytes()[:500]):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="^resume: .* is no file of a measurement"):
            interaction_strength(model, images, [0, 1], **SMALL, resume=file)


def test_labels_are_what_the_model_says():
    model, images = Net(), pictures()
    said = model(images).logits.argmax(1)
    one = interaction_strength(model, images, **SMALL)
    other = interaction_strength(model, images, said, **SMALL)
    np.testing.assert_allclose(one.interactions, other.interactions, atol=1e-12)


def test_a_stream_is_read_as_it_is_needed():
    read = []

    def stream():
        for number, image in enumerate(pictures(100)):
            read.append(number)
            yield image

    options = {**SMALL, "batch_size": 8, "interval_width": 1000.0}
    result = interaction_strength(Net(), stream(), itertools.repeat(0), **options)
    assert result.images == len(read) == 10


def test_sure_models_have_finite_odds():
    """Logits 200 apart, of which float32 makes probabilities of exactly 0 and 1."""
    model = Net(dtype=torch.float32)
    model.layers[-1].weight.data *= 300
    result = interaction_strength(model, pictures().float(), [0, 1, 2], **SMALL)
    assert np.isfinite(result.interactions).all()
    assert result.mean.max() > 10


def test_bad_input(tmp_path):
    model, images = Net(), pictures()
    for options, message in (
        ({"grid": 1}, "grid: must be at least 2"),
        ({"pairs": 40}, "pairs: a grid of 3 x 3 has 1 to 36"),
        ({"contexts": 0}, "contexts: must be at least 1"),
        ({"ratios": (2,)}, "ratios: expected numbers"),
        ({"value": "odds"}, "value: must be one of log_odds, log_prob, logit, got 'odds'"),
        ({"fill": "blur"}, "fill: must be one of zero, mean"),
        ({"sampling": "any"}, "sampling: must be one of"),
        ({"batch_size": 0}, "batch_size: must be"),
        ({"interval_width": 0}, "interval_width: must be"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            interaction_strength(model, images, [0, 1, 2], **{**SMALL, **options})
    with pytest.raises(ValueError, match="^labels: expected one for each of 3 images, got 2"):
        interaction_strength(model, images, [0, 1], **SMALL)
    with pytest.raises(ValueError, match="^images: there are none"):
        interaction_strength(model, images[:0], [], **SMALL)
    with pytest.raises(ValueError, match="^labels: there is a label 5, but the model has 5 classes"):
        interaction_strength(model, images, [0, 5, 1], **SMALL)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^images: the model gives image 1 \(from 0\) values that are not finite"):
        interaction_strength(model, images, [0, 1, 2], **SMALL)
    assert model.training


def test_timm_models_in_bfloat16():
    """Logits of 8 bits: each of the 4 values of an interaction is off by a few units in the last place."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, in_chans=1, img_size=32, patch_size=8, depth=2)
    model.head.weight.data *= 300
    images = torch.randn(2, 1, 32, 32)
    options = {"grid": 4, "ratios": (0, 0.5, 1), "pairs": 5, "contexts": 3, "value": "logit"}
    whole = interaction_strength(model, images, [0, 1], **options)
    half = interaction_strength(model, images, [0, 1], **options, dtype=torch.bfloat16)
    assert not np.array_equal(half.interactions, whole.interactions)
    with torch.no_grad():
        rounding = 2**-8 * model.eval()(images).abs().max().item()
    assert np.abs(half.interactions - whole.interactions).max() < 4 * 4 * rounding


def test_grids_that_do_not_divide_the_image():
    """5 cells over 12 x 10 pixels: rows of 2 or 3 pixels, which cover the image once."""
    values = _Values(Net(), InteractionSettings(grid=5, pairs=5), 8, None)
    shown = values._pixels(torch.from_numpy(np.packbits(np.eye(25, dtype=bool), axis=1)), torch.Size((12, 10)))
    assert shown.shape == (25, 1, 12, 10)
    assert (shown.sum(0) == 1).all()
    assert set(shown.sum((1, 2, 3)).tolist()) == {4, 6}
    rows = shown[:, 0].any(2).nonzero()
    assert rows[rows[:, 0] == 7, 1].tolist() == [3, 4]  # cell 7 is in the second row, of pixels 2.4 to 4.8
