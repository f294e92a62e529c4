"""Stored images as people look at them."""

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image

from modeling_a2mim.data.display import display_image, stored_channels


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_the_page_that_is_named(suffix, tmp_path):
    """Not the first one in place of each slice of a stack or frame of an animation."""
    path, pages = tmp_path / f"stack.{suffix}", np.zeros((3, 6, 6), dtype=np.uint8)
    for number, page in enumerate(pages):
        page[2 * number :] = 255
    first, *others = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=others)
    stored = {"bytes": path.read_bytes(), "path": str(path)}
    shown = [np.asarray(display_image({**stored, "page": number}))[..., 0] for number in (None, 0, 2)]
    assert np.array_equal(shown, pages[[0, 0, 2]])


def test_nodata_does_not_stretch(tmp_path):
    """What is marked is black, and of no weight in what becomes black and white."""
    values = np.linspace(5, 6, 64, dtype=np.float32).reshape(8, 8)
    values[:, :3] = -9999
    tifffile.imwrite(tmp_path / "scene.tif", values, extratags=[(42113, "s", 0, "-9999", True)])
    shown = np.asarray(display_image(tmp_path / "scene.tif"))
    assert shown[:, :3].max() == 0
    assert shown[0, 3, 0] == 0
    assert 110 < shown[4, 3, 0] < 150
    assert shown[7, 7, 0] == 255


@pytest.mark.parametrize(
    ("channels", "display_channels", "expected"),
    [
        (None, None, None),
        (None, [4, 3, 2], [4, 3, 2]),
        ([8, 4, 3, 2], [1, 3, 4], [8, 3, 2]),
        ([8, 4, 3], None, [8, 4, 3]),
        ([8, 4], None, None),
    ],
)
def test_channels_of_figures(channels, display_channels, expected):
    config = SimpleNamespace(channels=channels, display_channels=display_channels)
    assert stored_channels(config) == expected
    assert stored_channels(SimpleNamespace()) is None  # of transformers' own models
