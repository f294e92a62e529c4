"""Statistics of pixels beside those of NumPy, in parts and as a whole."""

import numpy as np
import pytest

from modeling_a2mim.preparation.equal_bins import EqualBins
from modeling_a2mim.preparation.statistics import PERCENTILES, Statistics


def images(dtype, channels, count=6):
    rng = np.random.default_rng(0)
    for number in range(count):
        values = rng.normal(100, 40, (channels, 20, 10 + number))
        if np.dtype(dtype).kind in "iu":
            values = values.clip(0 if dtype.startswith("u") else -300, 255 if dtype == "uint8" else 4095)
        yield (values * (1 if dtype == "uint8" else 7)).astype(dtype)


def counted(arrays):
    found = Statistics()
    for values in arrays:
        found.add(values)
    return found


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float16", "float32", "float64"])
def test_as_numpy(dtype, tmp_path):
    arrays = list(images(dtype, 3))
    parts = [counted(arrays[:2]), counted(arrays[2:3]), counted(arrays[3:])]
    for number, part in enumerate(parts):
        part.save(tmp_path / f"{number}.npz")
    parts = [Statistics.load(tmp_path / f"{number}.npz") for number in range(3)]
    [found] = Statistics.total(parts).summary()
    pixels = np.concatenate([values.reshape(3, -1) for values in arrays], axis=1).astype(np.float64)
    scale = 255 if dtype == "uint8" else 1
    assert (found["dtype"], found["images"], found["pixels"]) == (dtype, 6, pixels.shape[1])
    assert np.allclose(found["mean"], pixels.mean(1) / scale, rtol=1e-12)
    assert np.allclose(found["std"], pixels.std(1) / scale, rtol=1e-9)
    assert found["min"] == pixels.min(1).tolist()
    assert found["max"] == pixels.max(1).tolist()
    exact = np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize <= 2
    for percent in PERCENTILES:
        expected = np.percentile(pixels, percent, axis=1, method="inverted_cdf")
        assert np.allclose(found["percentiles"][f"{percent:g}"], expected, rtol=0 if exact else 0.004)


def kelvin(count=8):
    return [np.random.default_rng(i).normal(300.6, 0.5, (1, 64, 64)).astype(np.float32) for i in range(count)]


@pytest.mark.parametrize(
    ("arrays", "most"),
    [
        (kelvin(), 0.001),
        ([np.where(np.arange(64) < 3, 0, values).astype(np.float32) for values in kelvin()], 0.001),  # a wide range
        ([(1e9 + 2 * values.astype(np.float64)).astype(np.int32) for values in kelvin()], 0),
        ([1e5 + values.astype(np.float64) for values in kelvin()], 0.001),
        ([10 ** (values - 300) for values in kelvin()], 0.01),  # of several magnitudes
    ],
    ids=["kelvin", "kelvin and 0", "int32", "float64", "magnitudes"],
)
def test_a_narrow_range_far_from_0(arrays, most):
    """Percentiles to within this share of the range, and what is normalised with the flags has mean 0 and deviation
    1."""
    found = Statistics.total([counted(arrays[:3]), counted(arrays[3:])]).summary()[0]
    pixels = np.stack(arrays).astype(np.float64)
    words = found["flags"].split()
    low, high = (float(word) for word in words[3:5])
    lowest, highest = np.percentile(pixels, PERCENTILES, method="inverted_cdf")
    assert abs(low - lowest) <= (most + 1e-4) * (highest - lowest)
    assert abs(high - highest) <= (most + 1e-4) * (highest - lowest)
    scaled = np.clip((pixels - low) / (high - low), 0, 1)
    assert float(words[6]) == pytest.approx(scaled.mean(), abs=most / 2 + 1e-4)
    assert float(words[8]) == pytest.approx(scaled.std(), abs=most / 2 + 1e-4)
    assert found["std"][0] == pytest.approx(pixels.std(), rel=1e-6)


def test_values_that_are_not_known_well_enough_give_no_range():
    """Lest most of them are cut off."""
    arrays = kelvin()
    arrays[0][0, 0, 0] = np.finfo(np.float32).min  # which programs write where there is nothing
    [found] = counted(arrays).summary()
    assert found["flags"] == ""
    assert found["no_flags"].startswith("percentiles are known to within 2 alone, as values are -3.40282e+38 to 302.5")


def test_equal_bins_are_the_same_in_any_order():
    values = np.random.default_rng(0).normal(0, 10.0 ** np.arange(-3, 3)[:, None], (6, 50))
    one, other, parts = EqualBins(False), EqualBins(False), EqualBins(False)
    for row in values:
        one.add(row)
    for row in values[::-1]:
        other.add(row)
        part = EqualBins(False)
        part.add(row)
        parts.merge(part)
    levels, widths = one.levels()
    assert one.counts.sum() == values.size
    assert np.count_nonzero(one.counts) > 100
    ends = np.repeat(levels, one.counts) - np.sort(values.ravel())
    assert np.abs(ends).max() <= widths[0] / 2 < (values.max() - values.min()) / 2**14
    for found in (other, parts):
        assert (found.counts == one.counts).all()
        assert (found.low, found.high) == (values.min(), values.max())
    assert part.counts.sum() == 50  # what is merged stays as it was


@pytest.mark.parametrize("values", [[0.0, 5e-324], [-1.7e308, 1.7e308], [0.0], [1e300], [1.0, 1.0 + 2**-52]])
def test_equal_bins_of_extremes(values):
    bins = EqualBins(False)
    for value in values:
        bins.add(np.array([value]))
    levels, widths = bins.levels()
    found = np.repeat(levels, bins.counts)
    assert (np.abs(found - values) <= widths[: len(values)]).all()


def test_values_that_are_not_finite_are_counted_apart():
    values = np.array([[[-1.0, np.nan, 3.0, np.inf]]], dtype=np.float32)
    [found] = counted([values]).summary()
    assert (found["mean"], found["min"], found["max"], found["unknown"]) == ([1.0], [-1.0], [3.0], 2)


def test_channels_without_any_value():
    nothing = np.full((1, 1, 4), np.nan, dtype=np.float32)
    [found] = counted([nothing]).summary()
    assert [found[name] for name in ("mean", "std", "min", "max", "flags")] == [[0.0], [0.0], [0.0], [0.0], ""]
    known = np.arange(100, 104, dtype=np.float32).reshape(1, 1, 4)
    [found] = counted([np.concatenate([nothing, known])]).summary()
    assert found["min"] == [0.0, 100.0]
    assert found["flags"].startswith("--num_channels 2 --value_range 100 103 ")


def test_photographs_become_rgb():
    """As training makes them: grey in all channels, and no transparency."""
    found, rng = Statistics(), np.random.default_rng(0)
    grey, rgb, rgba = (rng.integers(0, 256, (channels, 8, 8), dtype=np.uint8) for channels in (1, 3, 4))
    for values, alpha in ((grey, False), (rgb, False), (rgba, True)):
        found.add(values, alpha)
    [summary] = Statistics.total([found]).summary()
    pixels = np.stack([np.repeat(grey, 3, 0), rgb, rgba[:3]])
    assert (summary["images"], summary["channels"]) == (3, 3)
    assert np.allclose(summary["mean"], pixels.mean((0, 2, 3)) / 255)
    assert summary["flags"].startswith("--image_mean")


def test_flags_of_a_range():
    """The mean and standard deviation are those of the pixels that the range gives."""
    values = np.arange(2000, dtype=np.uint16).reshape(1, 40, 50)
    [found] = counted([values]).summary()
    words = found["flags"].split()
    assert words[:5] == ["--num_channels", "1", "--value_range", "9", "1989"]
    scaled = np.clip((values - 9.0) / 1980, 0, 1)
    assert words[5:] == ["--image_mean", f"{scaled.mean():.4f}", "--image_std", f"{scaled.std():.4f}"]


def test_a_constant_image_gives_no_range():
    [found] = counted([np.full((1, 4, 4), 7, dtype=np.uint16)]).summary()
    assert (found["std"], found["flags"]) == ([0.0], "")
    assert found["no_flags"].startswith("all but 1% of the values are 7; give --value_range")


def test_marked_values_are_not_counted():
    """As those that are not finite; a channel of nothing else has no range."""
    values = np.arange(1000, 2000, dtype=np.uint16).reshape(1, 25, 40).repeat(2, 0)
    values[0, :5], values[1] = 0, 0
    found = Statistics()
    found.add(values, unknown=0)
    [own] = found.summary()
    assert (own["min"], own["max"], own["unknown"]) == ([1200.0, 0.0], [1999.0, 0.0], 200 + 1000)
    np.testing.assert_allclose(own["mean"], [values[0, 5:].mean(), 0])
    assert "--value_range 1203 1995" in own["flags"]  # percentiles 0.5 and 99.5
