"""Stored values to numbers in [0, 1]: the same for every type, however they are computed."""

import numpy as np
import pytest

from modeling_a2mim.utils.value_range import ValueRange


EVERY = {
    np.uint8: np.arange(2**8),
    np.int8: np.arange(-(2**7), 2**7),
    np.uint16: np.arange(2**16),
    np.int16: np.arange(-(2**15), 2**15),
}
GENERATOR = np.random.default_rng(0)
LIMITS = [
    *((0.0, 1.0), (0.0, 255.0), (16.0, 4059.0), (-1024.0, 3071.0), (0.0, 65535.0), (-32768.0, 32767.0), (7.0, 10.0)),
    *(
        (0.5, 99.25),
        (-160.5, 239.5),
        (1000.0, 1000.0 + 2**-20),
        (65536.0, 2.0**40),
        (1.0, 1e300),
    ),  # computed in float32
    *((0.1, 99.9), (2.0**20, 2.0**21 + 1), (0.0, 2.0**24 + 1), (-1e9, 1e9), (0.0, 1e-300), (1 / 3, 70000.7)),  # or not
    *(tuple(sorted(GENERATOR.integers(-(2**16), 2**16, 2).astype(float).tolist())) for _ in range(25)),
    *(tuple(sorted((GENERATOR.integers(-(2**22), 2**22, 2) / 64).tolist())) for _ in range(25)),
]


def by_definition(values, low, high, clip):
    """In float64, rounded once."""
    found = (values.astype(np.float64) - low) / (high - low)
    return (found.clip(0, 1) if clip else found).astype(np.float32)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of values as far beyond the range as float32 goes
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("dtype", EVERY)
def test_every_value_is_what_float64_gives(dtype, clip):
    values = EVERY[dtype].astype(dtype).reshape(1, 1, -1)
    for low, high in LIMITS:
        known = ValueRange((low,), (high,), clip)
        found = known.scale(values, *known.limits(values))
        expected = by_definition(values, low, high, clip)
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes(), (low, high)
        if not np.isfinite(found).all():  # a real number would become 0 there
            continue
        for wider in (np.int32, np.float32, np.float64):
            assert known.scale(values.astype(wider), *known.limits(values)).tobytes() == found.tobytes()


def test_channels_with_ranges_of_their_own():
    values = np.arange(3 * 5 * 7, dtype=np.uint16).reshape(3, 5, 7)[:, ::-1]
    given = values.copy()
    known = ValueRange((0.0, 0.1, 60.0), (50.0, 90.0, 61.0))
    found = known.scale(values, *known.limits(values))
    for channel, low, high in zip(range(3), known.low, known.high, strict=True):
        assert np.array_equal(found[channel], by_definition(values[channel], low, high, True))
    assert np.array_equal(values, given)


def test_where_low_and_high_are_the_same_all_is_nought():
    values = np.arange(10, dtype=np.uint16).reshape(1, 2, 5)
    limit = np.full((1, 1, 1), 4.0)
    assert np.array_equal(ValueRange((0.0,), (1.0,)).scale(values, limit, limit), np.zeros((1, 2, 5), np.float32))
