"""Images made smaller, and cut in tiles."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from modeling_a2mim.data.content import Content
from modeling_a2mim.preparation.options import LONGER, Options
from modeling_a2mim.preparation.pixels import pieces_of, target_size, tiles
from modeling_a2mim.preparation.statistics import Statistics


@pytest.mark.parametrize("size", [(50, 70), (20, 20), (19, 100), (5, 7), (21, 41)])
@pytest.mark.parametrize("overlap", [0, 7])
def test_tiles_cover_every_pixel(size, overlap):
    seen = np.zeros(size, dtype=int)
    names = set()
    for name, (top, left, height, width) in tiles(*size, 20, overlap):
        assert (height, width) == (min(20, size[0]), min(20, size[1]))
        assert top + height <= size[0]
        assert left + width <= size[1]
        seen[top : top + height, left : left + width] += 1
        names.add(name)
    assert seen.min() >= 1
    if size == (20, 20):
        assert names == {"_r000_c000"}


def test_no_image_is_enlarged():
    assert target_size(100, 200, Options(size=50)) == (50, 100)
    assert target_size(100, 200, Options(size=50, resize_mode=LONGER)) == (25, 50)
    assert target_size(100, 200, Options(size=150)) == (100, 200)
    assert target_size(3, 2000, Options(size=100, resize_mode=LONGER)) == (1, 100)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_no_value_lies_beyond_those_of_the_image(dtype):
    """Bicubic interpolation overshoots at edges."""
    values = np.zeros((2, 40, 40), dtype=dtype)
    values[:, :, 20:] = 1000
    [piece] = pieces_of(values, Options(size=13))
    assert piece.values.dtype == dtype
    assert piece.values.shape == (2, 13, 13)
    assert (piece.values.min(), piece.values.max()) == (0, 1000)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_missing_values_spread_no_farther_than_they_are_used(dtype, missing):
    values = np.random.default_rng(0).uniform(1, 9, (2, 40, 40)).astype(dtype)
    [whole] = pieces_of(values, Options(size=20))
    values[0, :3, :] = missing
    [piece] = pieces_of(values, Options(size=20))
    assert piece.values.dtype == dtype
    assert np.array_equal(piece.values[0, 8:], whole.values[0, 8:])
    assert np.array_equal(piece.values[1], whole.values[1])
    assert not np.isfinite(piece.values[0, :2]).any()


def test_large_integers_are_not_rounded_to_float32():
    values = np.full((1, 40, 40), 2**31 - 1, dtype=np.int32)
    [piece] = pieces_of(values, Options(size=10))
    assert (piece.values == 2**31 - 1).all()


def test_content_is_what_differs_from_the_border():
    values = np.full((3, 40, 40), 200, dtype=np.uint8)
    values[:, 10:20, 10:30] = 0
    values[0] += np.random.default_rng(0).integers(0, 5, (40, 40), dtype=np.uint8)  # noise of the glass
    content = Content.of(values)
    assert content.share(values) == pytest.approx(200 / 1600)
    assert content.share(values[:, 10:20, 10:30]) == 1
    assert content.share(values[:, 30:]) == 0
    holes = np.where(values > 100, np.nan, values)[1:].astype(np.float32)  # no data around what is there
    assert Content.of(holes).share(holes) == 0  # 0, as training reads what is not finite
    assert Content.of(holes + 5).share(holes + 5) == pytest.approx(200 / 1600)
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 40), dtype=np.uint8)  # has no background
    assert Content.of(noise).share(noise[:, :5, :5]) == 1


def test_transparency_and_palettes():
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 4), dtype=np.uint8))
    for image, channels, alpha in (
        (rgba, 4, True),
        (rgba.convert("LA"), 4, True),
        (rgba.convert("RGB").quantize(8), 3, False),
        (rgba.convert("L"), 1, False),
        (rgba.convert("1"), 1, False),
        (rgba.convert("RGB").convert("CMYK"), 3, False),
    ):
        [piece] = pieces_of(image, Options(size=None))
        assert (len(piece.values), piece.alpha) == (channels, alpha), image.mode


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_missing_values_leave_the_rest_of_the_image(dtype):
    values = np.full((2, 100, 100), 7, dtype=dtype)
    values[0, 0, 0] = np.nan
    values[1, 99, 99] = np.inf
    [piece] = pieces_of(values, Options(size=50))
    assert piece.values.dtype == dtype
    assert np.isnan(piece.values[0, 0, 0])  # spread to the pixels made of it
    assert (piece.values[0, 8:] == 7).all()
    assert (piece.values[:, :, 8:-8] == 7).all()


@pytest.mark.parametrize(
    ("stored", "mark", "written"),
    [
        ("float32", -9999, "float32"),
        ("int16", -32768, "float32"),
        ("uint16", 65535, "float32"),
        ("int32", -1, "float64"),
    ],
)
@pytest.mark.parametrize("options", [Options(size=None), Options(size=None, tile=32, min_content=0.5)])
def test_what_a_geotiff_marks_as_missing_is_no_value(stored, mark, written, options):
    """Neither in the pixels nor in the range that the flags give."""
    values = np.random.default_rng(0).integers(400, 600, (64, 64)).astype(stored)
    values[:16] = mark
    file = io.BytesIO()
    tifffile.imwrite(file, values, extratags=[(42113, "s", 0, str(mark), True)])
    found = Statistics()
    pieces = [piece for piece in pieces_of({"bytes": file.getvalue(), "path": "a.tif"}, options) if piece]
    for piece in pieces:
        assert piece.values.dtype == written
        found.add(piece.values, piece.alpha)
    top = pieces[0].values[0]
    np.testing.assert_array_equal(top[:16], np.nan)
    np.testing.assert_array_equal(top[16:], values[16 : len(top), : top.shape[1]])
    [own] = found.summary()
    assert 400 <= own["min"][0] <= own["max"][0] < 600


def test_marks_that_integers_keep():
    """A mark of 0; and of 8 bits, what training makes of them."""
    file = io.BytesIO()
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    tifffile.imwrite(file, values, extratags=[(42113, "s", 0, "0", True)])
    [piece] = pieces_of({"bytes": file.getvalue(), "path": "a.tif"}, Options(size=None))
    np.testing.assert_array_equal(piece.values[0], values)
    assert piece.unknown == 0
    file = io.BytesIO()
    values = np.arange(2 * 64 * 64, dtype=np.uint16).reshape(64, 64, 2) % 256
    tifffile.imwrite(file, values.astype(np.uint8), extratags=[(42113, "s", 0, "7", True)], planarconfig="contig")
    [piece] = pieces_of({"bytes": file.getvalue(), "path": "a.tif"}, Options(size=None))
    assert piece.values.dtype == np.uint8
    np.testing.assert_array_equal(piece.values.transpose(1, 2, 0), np.where(values == 7, 0, values))


@pytest.mark.parametrize(
    ("mode", "bits", "encode", "channels", "lost"),
    [
        ("RGBA", 16, "auto", 3, True),
        ("LA", 16, "auto", 1, True),
        ("RGBA", 8, "npy", 3, True),
        ("RGBA", 8, "auto", 4, False),
        ("RGB", 16, "auto", 3, False),
    ],
)
@pytest.mark.parametrize("tile", [None, 20])
def test_transparency_is_no_channel_of_an_array(mode, bits, encode, channels, lost, tile):
    """Training drops it where an image says what it is, which arrays do not."""
    values = np.random.default_rng(0).integers(0, 1 << bits, (40, 40, len(mode)), dtype=f"uint{bits}")
    file = io.BytesIO()
    extra = {"extrasamples": ["unassalpha"]} if mode.endswith("A") else {}
    tifffile.imwrite(
        file, values, photometric="rgb" if "RGB" in mode else "minisblack", planarconfig="contig", **extra
    )
    options = Options(size=None, encode=encode, tile=tile)
    for piece in pieces_of({"bytes": file.getvalue(), "path": "a.tif"}, options):
        assert piece.lost == (("transparency",) if lost else ())
        np.testing.assert_array_equal(piece.values, values.transpose(2, 0, 1)[:channels, : tile or 40, : tile or 40])
        break
    chosen = Options(size=None, encode="npy", channels=tuple(range(1, len(mode) + 1)))
    [piece] = pieces_of({"bytes": file.getvalue(), "path": "a.tif"}, chosen)
    assert (len(piece.values), piece.lost) == (len(mode), ())  # as asked for
