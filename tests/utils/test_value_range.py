import numpy as np
import pytest

from modeling_a2mim.utils.value_range import ValueRange, short_limits, stored_fields


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


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["0", "4095"], ValueRange((0.0,), (4095.0,))),
        (["-1000", "400", "unclipped"], ValueRange((-1000.0,), (400.0,), clip=False)),
        (["0", "1", "2", "3"], ValueRange((0.0, 2.0), (1.0, 3.0))),
        (["percentile", "0.5", "99.5"], ValueRange((0.5,), (99.5,), of="percentile")),
        (["window"], ValueRange(of="window")),
    ],
)
def test_words_and_configurations(words, known):
    assert ValueRange.from_words(words) == ValueRange.from_words([" ".join(words)]) == known
    assert ValueRange.from_words(known.to_words()) == known
    assert ValueRange.from_config(known.to_config()) == known


def test_auto_is_found_elsewhere():
    assert ValueRange.from_words(["auto"]) is None
    assert ValueRange.from_config(None) is None


WRONG = ("0", "5 5", "9 1", "auto 1", "low 1", "percentile 1", "percentile 5 101", "window 0 1", "nan 1", "0 inf")


@pytest.mark.parametrize(
    ("known", "fits"),
    [
        (ValueRange((0.0,), (255.0,)), True),
        (ValueRange((20.0, 0.0), (200.0, 255.0)), True),
        (ValueRange((0.0, 0.0), (200.0, 4095.0)), False),
        (ValueRange((-1000.0,), (200.0,)), False),
        (ValueRange((0.0,), (1.0,)), False),
        (ValueRange(of="window"), True),
        (ValueRange((0.5,), (99.5,), of="percentile"), True),
    ],
)
def test_ranges_that_bytes_fill(known, fits):
    assert known.holds_bytes() is fits


@pytest.mark.parametrize("words", [*WRONG, "", "unclipped", "auto unclipped"])
def test_wrong_words(words):
    with pytest.raises(ValueError, match="^value_range: "):
        ValueRange.from_words(words.split())


@pytest.mark.parametrize("value", [3, {"low": [0], "high": []}, {"low": [2], "high": [1]}, {"low": "a", "high": "b"}])
def test_wrong_configurations(value):
    with pytest.raises(ValueError, match=r"^value_range: |could not convert"):
        ValueRange.from_config(value)


def test_the_same_for_every_type():
    values = np.random.default_rng(0).integers(0, 4096, (2, 9, 7))
    known = ValueRange((16.0, 0.0), (4059.0, 1000.0))
    low, high = known.limits(values)
    expected = ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
    for kind in (np.uint16, np.int16, np.uint32, np.int32, np.int64, np.float32, np.float64):
        assert np.array_equal(known.scale(values.astype(kind), low, high), expected), kind
    levels, known = np.arange(4096)[None, None], ValueRange((0.0,), (4095.0,), clip=False)
    assert len(np.unique(known.scale(levels, *known.limits(levels)))) == 4096


def test_what_is_cut_off_and_what_is_missing():
    values = np.array([[[-5.0, 0.0, 5.0, 20.0, np.nan, np.inf, -np.inf]]])
    limits = np.zeros((1, 1, 1)), np.full((1, 1, 1), 10.0)
    assert ValueRange((0.0,), (10.0,)).scale(values, *limits).ravel().tolist() == [0, 0, 0.5, 1, 0, 1, 0]
    found = ValueRange((0.0,), (10.0,), clip=False).scale(values, *limits)
    assert found.ravel().tolist() == [-0.5, 0, 0.5, 2, 0, 0, 0]


def test_percentiles_of_each_channel():
    values = np.stack([np.arange(101.0), np.arange(101.0) * 10, np.full(101, np.nan), np.full(101, 7.0)])[:, None]
    known = ValueRange((5.0,), (95.0,), of="percentile")
    low, high = known.limits(values)
    assert low.ravel().tolist() == [5, 50, 0, 7]
    assert high.ravel().tolist() == [95, 950, 0, 7]
    assert not known.scale(values, low, high)[2:].any()  # a channel that is missing, and one that is constant


def test_windows():
    low, high = ValueRange(of="window").limits(np.zeros((1, 2, 2)), (-160.0, 240.0))
    assert (low.item(), high.item()) == (-160, 240)
    with pytest.raises(ValueError, match="its header has no window"):
        ValueRange(of="window").limits(np.zeros((1, 2, 2)))


def test_other_channels():
    ValueRange((0.0,), (1.0,)).check(13)
    with pytest.raises(
        ValueError, match="^value_range: has 2 ranges; expected one, or one for each of the 3 channels"
    ):
        ValueRange((0.0, 0.0), (1.0, 1.0)).check(3)


def test_fields_of_a_file():
    assert stored_fields({}) == {}
    assert stored_fields({"stored_images": {"pages": "first"}}) == {"pages": "first"}
    with pytest.raises(ValueError, match="^stored_images: expected an object"):
        stored_fields({"stored_images": {"architecture": "resnet50"}})


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


def test_limits_are_shown_in_as_many_digits_as_tell_them_apart():
    assert short_limits(0, 4095) == ("0", "4095")
    assert short_limits(-1.23456789, 1) == ("-1.23457", "1")
    assert short_limits(0, 1234567) == ("0", "1234567")
    assert short_limits(0, 1e20) == ("0", "1e+20")
    assert short_limits(1234561, 1234563) == ("1234561", "1234563")
    assert short_limits(101325.25, 101326.5) == ("101325.25", "101326.5")
    assert str(ValueRange((1234561.0,), (1234563.0,))) == "1234561 to 1234563"
