"""How many images each batch of an epoch takes."""

import pytest

from modeling_a2mim.data.epoch_cut import CUT, FIRST_CUT, EpochCut
from modeling_a2mim.data.order import EpochOrder, ShuffleLayout
from modeling_a2mim.data.samplers import EpochBatches


def sizes(rows, window, *args, **kwargs):
    cut = EpochCut(window, *args, **kwargs)
    spans = [cut.span(rows, index) for index in range(cut.count(rows))]
    assert all(start < stop for start, stop in spans)
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
    return [stop - start for start, stop in spans]


@pytest.mark.parametrize(
    ("rows", "window", "accumulated", "expected"),
    [
        (33, 8, 1, [8, 8, 8, 5, 4]),
        (32, 8, 1, [8, 8, 8, 8]),
        (9, 8, 1, [5, 4]),
        (31, 8, 1, [8, 8, 8, 7]),  # 15 are shared
        (7, 8, 1, [7]),
        (3, 1, 1, [1, 1, 1]),
        (33, 8, 4, [5, 4, 4, 4, 8, 8]),  # steps of 17 and 16 rather than 32 and 1
        (65, 8, 4, [8, 8, 8, 8, 5, 4, 4, 4, 8, 8]),
        (9, 8, 4, [5, 4]),  # one step
        (0, 8, 1, []),
    ],
)
def test_the_last_two_steps_share_what_is_left(rows, window, accumulated, expected):
    assert sizes(rows, window, accumulated) == expected


def test_no_batch_is_much_smaller_or_any_larger_than_the_others():
    for rows in range(1, 200):
        for window, accumulated in ((2, 1), (5, 1), (8, 3), (16, 4), (3, 7)):
            found = sizes(rows, window, accumulated)
            steps = [sum(found[i : i + accumulated]) for i in range(0, len(found), accumulated)]
            assert sum(found) == rows
            assert max(found) <= window
            assert len(steps) == -(-rows // (window * accumulated))
            if len(steps) > 1:
                assert min(found) >= window // 2
                assert min(steps) >= window * accumulated // 2


def test_what_is_left_is_cut_as_the_whole_was():
    """After any step, so that a run that goes on has the batches of one that was not stopped."""
    for rows in range(1, 120):
        for window, accumulated in ((4, 1), (5, 3)):
            whole, size = sizes(rows, window, accumulated), window * accumulated
            for step in range(1, -(-rows // size)):
                seen = sum(whole[: step * accumulated])
                assert sizes(rows - seen, window, accumulated) == whole[step * accumulated :]


def test_incomplete_batches_are_left_out():
    assert sizes(33, 8, drop_last=True) == [8] * 4
    assert sizes(33, 8, 3, drop_last=True) == [8] * 4


def test_a_run_that_began_with_the_first_version_keeps_it():
    assert sizes(33, 8, version=FIRST_CUT) == [8, 8, 8, 8, 1]
    assert sizes(33, 8, 4, version=FIRST_CUT) == [8, 8, 8, 8, 1]
    assert sizes(33, 8, world=2, version=FIRST_CUT) == [8, 8, 8, 9]
    with pytest.raises(ValueError, match=r"^resume_from_checkpoint: its epochs are cut by version 3"):
        EpochCut(8, version=CUT + 1)


@pytest.mark.parametrize(
    ("rows", "batch", "world", "accumulated", "fewest"),
    [(33, 8, 1, 1, 4), (33, 8, 2, 1, 4), (33, 1, 2, 1, 1), (3, 2, 1, 1, 1), (5, 2, 1, 2, 1), (4, 2, 1, 1, 2)],
)
def test_the_fewest_images_that_a_process_has(rows, batch, world, accumulated, fewest):
    batches = EpochBatches(EpochOrder([rows], ShuffleLayout()), batch, 0, world, accumulated)
    assert batches.fewest == fewest == min(len(keys) for keys in batches)
