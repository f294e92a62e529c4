import io

import numpy as np
import pytest
import torch

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data.arrays import BrokenImage, StoredArray
from modeling_a2mim.data.decoding import load_tensor, open_stored
from modeling_a2mim.data.pixel_spec import PixelSpec, read_values
from modeling_a2mim.preparation.options import Options
from modeling_a2mim.preparation.pixels import pieces_of
from modeling_a2mim.utils.value_range import ValueRange


VALUES = np.random.default_rng(0).integers(0, 4000, (4, 6, 5), dtype=np.uint16)
RANGE = ValueRange((0.0,), (4000.0,))


def read(values, box=None, **spec):
    return read_values(StoredArray("test", values), PixelSpec(**spec), box)


def test_the_fields_of_a_model():
    config = A2MIMConfig(
        architecture="test_resnet",
        num_channels=2,
        channels=[3, 1],
        pages="first",
        value_range={"low": [1], "high": [2]},
    )
    known = PixelSpec.from_config(config, 100)
    assert known == PixelSpec(2, (3, 1), ValueRange((1.0,), (2.0,)), "first", 100)
    assert PixelSpec.from_config(A2MIMConfig(architecture="test_resnet")).plain
    assert A2MIMConfig(architecture="test_resnet").stored_images == {}


def test_channels_are_picked_and_ordered():
    found = read(VALUES, num_channels=3, channels=(3, 2, 1), value_range=RANGE)
    assert torch.equal(found, torch.from_numpy((VALUES[[2, 1, 0]] / 4000).astype(np.float32)))
    part = read(VALUES, (1, 2, 3, 2), num_channels=4, value_range=RANGE)
    assert torch.equal(part, torch.from_numpy((VALUES[:, 1:4, 2:4] / 4000).astype(np.float32)))
    assert torch.equal(
        read(VALUES[:1], num_channels=3, value_range=RANGE)[2], read(VALUES[:1], num_channels=1, value_range=RANGE)[0]
    )
    grey = read(VALUES[:3], num_channels=1, value_range=RANGE)[0]
    np.testing.assert_allclose(grey, (0.299 * VALUES[0] + 0.587 * VALUES[1] + 0.114 * VALUES[2]) / 4000, rtol=1e-6)
    clear = StoredArray("test", VALUES, alpha=True)
    assert torch.equal(
        read_values(clear, PixelSpec(3, value_range=RANGE)), read(VALUES[:3], num_channels=3, value_range=RANGE)
    )
    for spec, message in (
        (
            {"num_channels": 3},
            r"^num_channels: the image \(test\) has 4 channel\(s\), the model takes 3$",
        ),
        ({"num_channels": 2, "channels": (5, 1)}, r"^channels: 5 is asked for, but the image \(test\) has 4 channel"),
    ):
        with pytest.raises(ValueError, match=message):
            read(VALUES, value_range=RANGE, **spec)


def test_without_a_range():
    small = (VALUES // 16).astype(np.uint8)
    assert torch.equal(read(small, num_channels=4), torch.from_numpy(small))
    shares = (small / 255).astype(np.float32)
    assert torch.equal(read(shares, num_channels=4), torch.from_numpy(shares))
    for values in (VALUES, VALUES.astype(np.float64), VALUES.astype(np.float32), shares - 1):
        with pytest.raises(BrokenImage, match="^its values are of .*--value_range says what they become"):
            read(values, num_channels=4)
    assert read(small[:3], num_channels=1).dtype == torch.uint8


@pytest.mark.parametrize("known", [None, ValueRange((0.0,), (255.0,)), ValueRange((0.0,), (90.0,), of="percentile")])
def test_booleans_are_bytes(known):
    """The same with a range as without, and as `prepare` writes them."""
    file, small, spec = io.BytesIO(), VALUES > 2000, PixelSpec(4, value_range=known)
    np.save(file, small)
    expected = load_tensor(small * np.uint8(255), spec)
    assert expected.unique().tolist() == [0, 255 if known is None else 1]
    for value in (small, {"bytes": file.getvalue(), "path": "mask.npy"}):
        assert load_tensor(value, spec).equal(expected)
        assert open_stored(value, spec).dtype == np.uint8
    (piece,) = pieces_of({"bytes": file.getvalue(), "path": "mask.npy"}, Options(size=None))
    assert np.array_equal(piece.values, small * np.uint8(255))


def test_percentiles_are_of_the_whole_image():
    known = ValueRange((1.0,), (99.0,), of="percentile")
    whole = read(VALUES, num_channels=4, value_range=known)
    assert torch.equal(read(VALUES, (2, 1, 3, 3), num_channels=4, value_range=known), whole[:, 2:5, 1:4])


def test_windows_and_missing_values():
    shown = StoredArray("test", VALUES[:1], window=(1000.0, 3000.0))
    found = read_values(shown, PixelSpec(1, value_range=ValueRange(of="window")))
    assert torch.equal(found, read(VALUES[:1], num_channels=1, value_range=ValueRange((1000.0,), (3000.0,))))
    with pytest.raises(BrokenImage, match="its header has no window"):
        read(VALUES[:1], num_channels=1, value_range=ValueRange(of="window"))
    shown.nodata = float(VALUES[0, 2, 3])
    found = read_values(shown, PixelSpec(1, value_range=ValueRange((-1.0,), (4000.0,))))
    assert torch.equal(found[0] == 0, torch.from_numpy(VALUES[0] == VALUES[0, 2, 3]))
    small = StoredArray("test", (VALUES[:1] // 16).astype(np.uint8) + np.uint8(1))
    small.nodata = float(small.values.max())
    found = read_values(small, PixelSpec(1)).numpy()
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.where(small.values == small.values.max(), 0, small.values))
