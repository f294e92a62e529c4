"""TIFF of every type of values: what is written is read, whole and by its boxes; what is not is refused."""

import contextlib
import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.fuzz import attempt_array, damaged
from benchmarks.fuzz_arrays import array_originals
from modeling_a2mim.data.arrays import BrokenImage, count_pages, open_array, tiff
from modeling_a2mim.data.arrays.axes import ORIENTATIONS, turned
from modeling_a2mim.data.arrays.tiff import GDAL_NODATA
from modeling_a2mim.data.decoding import as_array, load_tensor, open_image, open_stored
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.utils.value_range import ValueRange


MOST = 10_000_000
GENERATOR = np.random.default_rng(0)


def write(array, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack", **options})
    return file.getvalue()


def opened(data, pages=None, page=None, max_pixels=MOST):
    return open_array(data, "scan.tif", None, pages, page, max_pixels)


def values_of(dtype, shape):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (GENERATOR.standard_normal(shape) * 1000).astype(dtype)
    if dtype.kind == "b":
        return GENERATOR.random(shape) < 0.5
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return GENERATOR.integers(low, high, shape, dtype, endpoint=True)


def check(data, expected, **how):
    """All of an image (channels, height, width), and boxes of it."""
    image = opened(data, **how)
    assert (image.format, image.channels, image.height, image.width) == ("TIFF", *expected.shape)
    assert image.dtype == expected.dtype
    assert image.dtype.isnative
    found = image.read()
    assert found.dtype == image.dtype
    assert found.flags.writeable
    assert np.array_equal(found, expected, equal_nan=found.dtype.kind == "f")
    _, height, width = expected.shape
    for top, left, rows, columns in ((0, 0, 1, 1), (height - 3, width - 2, 3, 2), (7, 20, 25, 18), (0, 0, height, 5)):
        part = image.read((top, left, rows, columns))
        assert np.array_equal(part, expected[:, top : top + rows, left : left + columns])


TYPES = ["i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", "<>")
def test_every_type(dtype, order):
    array = values_of(dtype, (40, 50))
    check(write(array, byteorder=order), array[None])


LAYOUTS = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "deflate": {"compression": "zlib", "predictor": True},
    "LZW": {"compression": "lzw", "rowsperstrip": 9},
    "LZMA, tiles": {"compression": "lzma", "tile": (32, 16)},
    "Zstandard": {"compression": "zstd", "predictor": True},
    "PackBits": {"compression": "packbits"},
    "BigTIFF": {"bigtiff": True, "tile": (16, 16)},
    "JPEG 2000": {"compression": "jpeg2000", "tile": (32, 32)},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("planar", [False, True])
def test_13_bands_in_every_layout(name, planar):
    array = values_of("u2", (13, 45, 53))
    if name == "JPEG 2000" and not planar:
        array = array[:3]
    stored = array if planar else array.transpose(1, 2, 0)
    check(write(stored, planarconfig="separate" if planar else "contig", **LAYOUTS[name]), array)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_predictor_of_real_numbers(compression):
    array = values_of("f4", (40, 50))
    check(write(array, compression=compression or "zlib", predictor=3), array[None])


def test_photographs_are_left_to_pillow(tmp_path):
    photo = Image.fromarray(values_of("u1", (40, 50, 3)))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate"):
            photo.convert(mode).save(tmp_path / "a.tif", compression=compression)
            assert opened((tmp_path / "a.tif").read_bytes()) is None, mode
    photo.save(tmp_path / "a.tif", compression="jpeg")
    assert opened((tmp_path / "a.tif").read_bytes()) is None
    assert count_pages(tmp_path / "a.tif") == 1


def test_a_fourth_band_is_no_transparency():
    array = values_of("u1", (4, 40, 50))
    check(write(array.transpose(1, 2, 0), photometric="rgb", extrasamples=[0]), array)
    alone = values_of("u1", (2, 40, 50))
    check(write(alone, planarconfig="separate"), alone)
    deep = values_of("u2", (40, 50, 4))
    assert opened(write(deep, photometric="rgb", extrasamples=[2])).alpha
    assert not opened(write(deep, photometric="rgb", extrasamples=[0])).alpha


def test_packed_bits():
    array = GENERATOR.integers(0, 1 << 12, (40, 50), np.uint16)
    check(write(array, bitspersample=12), array[None])
    bits = values_of("?", (5, 40, 50))
    check(write(bits, planarconfig="separate"), bits)
    for mark in (0, 1):
        data = write(bits, planarconfig="separate", **marked(str(mark)))
        assert open_stored(data, PixelSpec(5)).nodata == 255 * mark
        assert load_tensor(data, PixelSpec(5)).any() == (mark == 0)


def test_white_is_zero():
    array = values_of("u2", (40, 50))
    check(write(array, photometric="miniswhite"), 65535 - array[None])
    signed = values_of("i2", (40, 50))
    check(write(signed, photometric="miniswhite"), ~signed[None])
    with pytest.raises(BrokenImage, match="lowest is white"):
        opened(write(array.astype(np.float32), photometric="miniswhite"))


def test_palette_of_16_bits():
    colours = values_of("u2", (3, 65536))
    array = values_of("u2", (40, 50))
    check(write(array, photometric="palette", colormap=colours), colours[:, array])


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_orientation(number):
    array = values_of("u2", (45, 53, 5))
    for options in ({}, {"tile": (16, 16)}):
        data = write(array, planarconfig="contig", extratags=[(274, "H", 1, number, True)], **options)
        check(data, np.ascontiguousarray(turned(array.transpose(2, 0, 1), ORIENTATIONS[number])))
    grey = array[..., 0]
    data = write(grey, extratags=[(274, "H", 1, number, True)])
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert np.array_equal(np.asarray(image), opened(data).read()[0])  # as Pillow turns them


def test_only_the_tiles_of_a_box_are_decoded(monkeypatch):
    array = values_of("u2", (256, 256))
    image = opened(write(array, tile=(64, 64), compression="zlib"))
    decoded = []
    whole = tiff.TiffImage._decode
    monkeypatch.setattr(tiff.TiffImage, "_decode", lambda self, page, i: decoded.append(i) or whole(self, page, i))
    assert np.array_equal(image.read((60, 130, 20, 20))[0], array[60:80, 130:150])
    assert decoded == [2, 6]


def marked(text, **options):
    return {"extratags": [(GDAL_NODATA, "s", 0, text, True)], **options}  # as GDAL


def sparse(array, **options) -> bytes:
    """A TIFF of 4 tiles without the one at the upper right."""
    data = bytearray(write(array, tile=(32, 32), **options))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for tag in (file.pages[0].tags[324], file.pages[0].tags[325]):
            code = {3: "<H", 4: "<I"}[tag.dtype]
            struct.pack_into(code, data, tag.valueoffset + struct.calcsize(code), 0)
    return bytes(data)


@pytest.mark.parametrize(("text", "fill"), [("7", 7), ("7.0", 7), ("-9999", 0), (None, 0)])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_sparse_tiles(dtype, compression, text, fill):
    array = values_of(dtype, (64, 64))
    data = sparse(array, compression=compression, **(marked(text) if text else {}))
    expected = array.copy()
    expected[:32, 32:] = fill
    check(data, expected[None])


FLOAT32, FLOAT64 = float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)


@pytest.mark.parametrize(
    ("dtype", "text", "nodata"),
    [
        ("u2", "0", 0),
        ("u2", "65535.0", 65535),
        ("u2", "65535 ", 65535),
        ("i2", "-32768.000000", -32768),
        ("u8", "18446744073709551615", 18446744073709551615),
        ("i8", "-9223372036854775808", -9223372036854775808),
        ("f4", "-3.4028235e+38", -FLOAT32),
        ("f4", "-3.40282346638529e+38", -FLOAT32),
        ("f4", "-3.4028234663852886e+38", -FLOAT32),
        ("f4", "-1.7976931348623157e+308", -FLOAT32),
        ("f4", "0,1", float(np.float32(0.1))),
        ("f4", "-inf", -np.inf),
        ("f8", "-1.79769313486232e+308", -FLOAT64),
        ("f8", "-1.797693134862315e+308", -FLOAT64),
        ("f8", "-3.40282346638529e+38", -FLOAT32),
        *(("u2", text, None) for text in ("-9999", "nan", "1e+20", "1e999999999", "0.5", "none", "65536")),
        ("f4", "", None),
    ],
)
def test_the_mark_of_nodata(dtype, text, nodata):
    """However it is written; one that no value can be marks nothing, least of all 0."""
    array = np.full((8, 8), 100, dtype)
    array[0], array[1] = 0, 100 if nodata is None else nodata
    data = write(array, **marked(text))
    image = opened(data)
    assert image.nodata == nodata
    pixels = load_tensor(data, PixelSpec(1, value_range=ValueRange((-0.5,), (0.25,), clip=False)))[0, :3, 0]
    assert np.array_equal(pixels == 0, array[:3, 0] == nodata)


@pytest.mark.parametrize(
    ("mode", "options", "mark"),
    [
        ("1", {}, 1),
        ("L", {}, 200),
        ("LA", {}, 200),
        ("RGB", {}, 200),
        ("RGB", {"compression": "tiff_lzw"}, 200),
        ("RGB", {"compression": "jpeg"}, 200),
        ("YCbCr", {"compression": "jpeg"}, 200),
        ("RGBA", {}, 200),
        ("P", {}, None),  # where it is the number of a colour
        ("CMYK", {}, None),
    ],
)
def test_nodata_of_photographs(mode, options, mark, tmp_path):
    """They are as Pillow reads them, but for what is marked."""
    photos = [Image.fromarray(values_of("u1", (40, 50, 3))).convert(mode) for _ in range(2)]
    spec = PixelSpec(3, pages="samples")
    for name, tags in (("a.tif", {}), ("b.tif", {GDAL_NODATA: str(mark or 1)})):
        photos[0].save(tmp_path / name, save_all=True, append_images=photos[1:], tiffinfo=tags, **options)
    for page in range(2):
        plain, found = (load_tensor({"path": str(tmp_path / name), "page": page}, spec) for name in ("a.tif", "b.tif"))
        if mark is not None:
            unknown = plain == (255 if mode == "1" else mark)
            assert unknown.any()
            plain = plain.masked_fill(unknown, 0)
        assert found.equal(plain)


@pytest.mark.parametrize(("dtype", "text", "nodata"), [("u2", "0", 65535), ("i2", "-5", 4), ("u1", "255", 0)])
def test_nodata_where_white_is_zero(dtype, text, nodata):
    array = values_of(dtype, (40, 50))
    array[:4] = int(text)
    image = opened(write(array, photometric="miniswhite", **marked(text)))
    assert image.nodata == nodata
    assert np.array_equal(image.read()[0] == nodata, array == int(text))


def test_pages_with_nodata_of_their_own():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for text in ("0", "65535"):
            writer.write(values_of("u2", (8, 8)), photometric="minisblack", metadata=None, **marked(text))
    with pytest.raises(BrokenImage, match=r"^pages of different nodata \(0, 65535\)"):
        opened(file.getvalue(), "channels")
    assert opened(file.getvalue(), "samples", 1).nodata == 65535


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_big_endian_bigtiff_of_8_bits(options):
    big = {"bigtiff": True, "byteorder": ">", **options}
    grey, colour = values_of("u1", (40, 50)), values_of("u1", (40, 50, 3))
    check(write(grey, **big), grey[None])
    check(write(colour, photometric="rgb", **big), colour.transpose(2, 0, 1))
    colours = values_of("u2", (3, 256))
    palette = {"photometric": "palette", "colormap": colours}
    check(write(grey, **palette, **big), (colours >> 8).astype(np.uint8)[:, grey])
    as_pillow = load_tensor(write(grey, **palette), PixelSpec(3)).numpy()
    assert np.array_equal(as_pillow, opened(write(grey, **palette, **big)).read())
    with pytest.raises(BrokenImage, match="^4 bits in a sparse TIFF or a big-endian BigTIFF"):
        opened(write(grey >> 4, bitspersample=4, bigtiff=True, byteorder=">"))


# Pages


def test_pages():
    array = values_of("u2", (5, 40, 50))
    data = write(array, metadata=None)
    assert count_pages(data) == 5
    with pytest.raises(BrokenImage, match="^5 pages; --pages channels, samples or first says what they are$"):
        opened(data)
    check(data, array, pages="channels")
    check(data, array[:1], pages="first")
    for page in range(5):
        check(data, array[page : page + 1], pages="samples", page=page)
    with pytest.raises(BrokenImage, match="no page 5"):
        opened(data, "samples", 5)
    with pytest.raises(BrokenImage, match="which one is meant is not said"):
        opened(data, "samples")


def test_pages_of_photographs_are_as_each_alone(tmp_path):
    photos = [Image.fromarray(values_of("u1", (40, 50, 3))) for _ in range(3)]
    for mode, options in (
        ("RGB", {}),
        ("L", {}),
        ("P", {}),
        ("RGBA", {}),
        ("CMYK", {}),
        ("RGB", {"compression": "jpeg"}),
    ):
        first, *rest = [photo.convert(mode) for photo in photos]
        first.save(tmp_path / "a.tif", save_all=True, append_images=rest, **options)
        data = (tmp_path / "a.tif").read_bytes()
        assert count_pages(tmp_path / "a.tif") == 3
        assert opened(data, "first") is None
        assert opened(data, "samples", 0) is None
        for page in (1, 2):
            rest[page - 1].save(tmp_path / "b.tif", **options)
            expected = as_array(open_image(tmp_path / "b.tif"))
            found = opened(data, "samples", page)
            assert np.array_equal(found.read(), expected.read())
            assert found.read().shape == (found.channels, found.height, found.width)
            assert found.alpha == expected.alpha
    value = {"bytes": data, "path": None, "page": 2}
    assert load_tensor(value, PixelSpec(3, pages="samples")).shape == (3, 40, 50)


def test_overviews_and_masks_are_no_pages(tmp_path):
    array = values_of("u2", (64, 64))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(array, photometric="minisblack", metadata=None, subifds=1)
        writer.write(array[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
        writer.write(array[::4, ::4], photometric="minisblack", metadata=None, subfiletype=1)
    assert count_pages(file.getvalue()) == 1
    check(file.getvalue(), array[None])


def test_a_thumbnail_in_front():
    photo = values_of("u1", (64, 64, 3))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(photo[::4, ::4], photometric="rgb", metadata=None, subfiletype=1)
        writer.write(photo, photometric="rgb", metadata=None)
    check(file.getvalue(), photo.transpose(2, 0, 1))


def test_pages_of_other_sizes():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for size in (64, 50):
            writer.write(values_of("u2", (size, size)), photometric="minisblack", metadata=None)
    with pytest.raises(BrokenImage, match="different sizes"):
        opened(file.getvalue(), "channels")
    assert opened(file.getvalue(), "samples", 1).height == 50


@pytest.mark.parametrize("kind", ["ImageJ", "OME"])
def test_channels_that_the_file_names(kind):
    array = values_of("u2", (4, 3, 2, 40, 50))  # T Z C Y X
    named = {"imagej": True} if kind == "ImageJ" else {"ome": True}
    data = write(array, metadata={"axes": "TZCYX"}, **named)
    assert count_pages(data) == 12
    check(data, array[0, 0], pages="first")
    check(data, array[2, 1], pages="samples", page=7)
    check(data, array.reshape(24, 40, 50), pages="channels")
    alone = write(array[0, 0], metadata={"axes": "CYX"}, **named)
    check(alone, array[0, 0])
    if kind == "OME":
        other = write(array.transpose(2, 0, 1, 3, 4), metadata={"axes": "CTZYX"}, ome=True)
        check(other, array[2, 1], pages="samples", page=7)


def test_planes_of_imagej_behind_one_directory():
    array = values_of("u2", (3, 40, 50))
    data = write(array, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        second = file.pages[0].offset + 2 + 12 * len(file.pages[0].tags)
        order = file.byteorder
    data = bytearray(data)
    struct.pack_into(order + "I", data, second, 0)  # no directory but the first
    assert count_pages(bytes(data)) == 3
    check(bytes(data), array[1:2], pages="samples", page=1)


# What is refused


@contextlib.contextmanager
def refused_cheaply(message):
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(BrokenImage, match=message):
            yield
        assert time.perf_counter() - start < 1
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def directory(*tags, order="<", offset=8, following=0):
    """A TIFF of one directory of (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + body + struct.pack("<I", following)


def claim(width, height, channels=1, bits=16, compression=1, length=64):
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 300), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, length), (284, 3, 1, 1)]
    return directory(*tags) + bytes(1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claim(1_000_000, 1_000_000), r"1000000 x 1000000 pixels; expected 1 to 10000000 \(max_pixels\)"),
        (claim(3000, 3000), "cannot be in"),
        (claim(3000, 3000, compression=8), "cannot be in 1134 bytes"),
        (claim(3000, 3000, compression=50000), "cannot be in 1134 bytes"),
        (claim(100, 100, channels=60_000), "60000 channels; expected 1 to 4096"),
        (claim(0, 100), "expected 1 to"),
        (claim(10, 10, compression=34892), "compression .* is not read"),
        (directory((256, 4, 1, 10), following=8), "a loop"),
    ],
)
def test_bombs(data, message):
    opened(write(values_of("u2", (8, 8))))  # imports
    with refused_cheaply(message):
        opened(data).read()


def test_too_many_pages():
    pages = 100_001
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    for number in range(pages):
        data += struct.pack("<HHHIII", 1, 256, 4, 1, 9, 8 + 18 * (number + 1))
    with pytest.raises(BrokenImage, match="more than 100000 pages"):
        count_pages(bytes(data))


def test_a_tile_that_claims_more_than_it_is():
    array = values_of("u2", (64, 64))
    data = write(array, compression="jpeg2000", tile=(32, 32))
    place = data.index(b"\xff\x4f\xff\x51") + 8
    broken = bytearray(data)
    struct.pack_into(">II", broken, place, 60_000, 60_000)
    with pytest.raises(BrokenImage, match="header says that it is larger"):
        opened(bytes(broken)).read()


def test_a_file_that_ends_early():
    data = write(values_of("u2", (64, 64)), compression="zlib", rowsperstrip=16)
    with pytest.raises(BrokenImage):
        opened(data[: len(data) // 2]).read()


def test_complex_values():
    with pytest.raises(BrokenImage, match="complex values"):
        opened(write(np.zeros((10, 10), np.complex64)))


@pytest.mark.parametrize("photometric", [8, 32803, 32845])
def test_colours_that_are_not_numbers_of_channels(photometric):
    data = write(values_of("u2", (10, 10, 3)), photometric="rgb")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        place = file.pages[0].tags[262].valueoffset
    with pytest.raises(BrokenImage, match="^colours in"):
        opened(data[:place] + struct.pack("<H", photometric) + data[place + 2 :])


def test_without_imagecodecs(monkeypatch):
    monkeypatch.setattr(tiff, "_has_imagecodecs", lambda: False)
    array = values_of("u2", (40, 50))
    with pytest.raises(BrokenImage, match=r"needs imagecodecs: pip install 'a2mim\[formats\]'"):
        opened(write(np.stack([array] * 2), planarconfig="separate", compression="lzw"))
    assert opened(write(array, compression="lzw")) is None  # Pillow reads this without loss
    with pytest.raises(BrokenImage, match="needs imagecodecs"):  # but knows nothing of nodata, or of other pages
        opened(write(array, compression="lzw", **marked("0")))
    with pytest.raises(BrokenImage, match="needs imagecodecs"):
        opened(write(np.stack([array] * 2), compression="lzw", metadata=None), "samples", 1)
    check(write(array, compression="zlib"), array[None])


def test_a_directory_far_behind_the_file():
    for data in (b"II+\0\x08\0\0\0" + b"\xff" * 8, b"II*\0" + b"\xff" * 4):
        assert opened(data + bytes(50)) is None  # Pillow says what is wrong
        assert count_pages(data + bytes(50)) == 1


def test_damaged_files_are_read_or_refused():
    """A part of `make fuzz`."""
    files = array_originals()
    outcomes = []
    for number in range(300):
        name = list(files)[number % len(files)]
        outcome, why = attempt_array(damaged(files[name], np.random.default_rng(number)), number)
        assert outcome != "failed", (number, name, why)
        outcomes.append(outcome)
    assert len(set(outcomes)) == 2
