"""Which images are duplicates of which."""

import numpy as np

from modeling_a2mim.preparation.duplicates import groups_of, hash_of


def test_equal_pixels():
    values = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    others = [values.astype(np.uint16), values.reshape(1, 4, 3), values + 1]
    assert hash_of(values) == hash_of(np.asfortranarray(values))
    assert len({hash_of(other) for other in [values, *others]}) == 4
    assert groups_of([b"a", b"b", b"a", b"c", b"b"]).tolist() == [0, 1, 0, 3, 1]


def test_near_ones_follow_the_first_that_is_kept():
    """2 is near 1 alone, which is left out itself."""
    codes = [0b0000, 0b0011, 0b1111, 0b1111, 2**64 - 1]
    assert groups_of([b"a", b"b", b"c", b"d", b"e"], codes, 2).tolist() == [0, 0, 2, 2, 4]
    assert groups_of([b"a", b"b", b"b", b"d", b"e"], [0, 3, 3, 15, 2**64 - 1], 2).tolist() == [0, 0, 0, 3, 4]
    assert groups_of([b"a", b"b"], [2**64 - 1, 0], 63).tolist() == [0, 1]
