"""Arrays of NumPy: which axis is which, every type, and what is refused."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from modeling_a2mim.data.arrays import BrokenImage, count_pages, open_array


MOST = 10_000_000
GENERATOR = np.random.default_rng(0)


def npy(array, version=(1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=True)
    return file.getvalue()


def npz(compressed=False, **arrays) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def opened(data, channels=None, pages=None, page=None, max_pixels=MOST):
    return open_array(data, None, channels, pages, page, max_pixels)


def check(image, expected):
    assert (image.format, image.channels, image.height, image.width) == ("NumPy", *expected.shape)
    for found, values in ((image.read(), expected), (image.read((2, 3, 5, 4)), expected[:, 2:7, 3:7])):
        assert found.dtype == image.dtype == expected.dtype
        assert found.dtype.isnative
        assert found.flags.writeable
        assert found.flags.c_contiguous
        assert np.array_equal(found, values)


@pytest.mark.parametrize(
    "dtype", ["?", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"]
)
@pytest.mark.parametrize("order", "<>")
def test_every_type(dtype, order):
    array = (GENERATOR.random((5, 12, 13)) * 200 - 50).astype(np.dtype(dtype).newbyteorder(order))
    expected = array.astype(array.dtype.newbyteorder("="))
    check(opened(npy(array)), expected)
    check(opened(npy(np.asfortranarray(array), (2, 0))), expected)
    check(opened(npz(image=array)), expected)
    check(opened(npz(True, image=array)), expected)


@pytest.mark.parametrize(
    ("shape", "channels", "pages", "page", "count", "expected"),
    [
        ((12, 13), 1, None, None, 1, np.s_[None]),
        ((12, 13, 4), 4, None, None, 1, "last"),
        ((12, 13, 4), None, None, None, 1, "last"),
        ((12, 12, 40), None, None, None, 1, "last"),  # a square of spectra
        ((40, 12, 12), None, None, None, 1, np.s_[:]),
        ((40, 12, 12), None, "channels", None, 1, np.s_[:]),
        ((6, 40, 12, 12), None, "samples", 2, 6, np.s_[2]),
        ((4, 12, 13), 4, "samples", None, 1, np.s_[:]),
        ((7, 12, 13), 1, "samples", 3, 7, np.s_[3:4]),
        ((7, 12, 13), 3, "first", None, 7, np.s_[:1]),
        ((7, 12, 13), 1, "channels", None, 7, np.s_[:]),
        ((7, 12, 13), 1, None, None, 7, np.s_[:]),
        ((6, 3, 12, 13), 3, "samples", 2, 6, np.s_[2]),
        ((1, 3, 12, 13), 3, None, None, 1, np.s_[0]),
        ((6, 3, 12, 13), 3, "channels", None, 6, "flat"),
    ],
)
def test_axes(shape, channels, pages, page, count, expected):
    array = GENERATOR.integers(0, 999, shape, np.uint16)
    values = {"last": lambda: array.transpose(2, 0, 1), "flat": lambda: array.reshape(18, 12, 13)}
    check(
        opened(npy(array), channels, pages, page), values[expected]() if isinstance(expected, str) else array[expected]
    )
    if channels is not None or array.ndim != 3:
        assert count_pages(npy(array), None, channels) == count


@pytest.mark.parametrize("pages", ["samples", "first"])
def test_pages_that_may_be_channels_are_refused(pages):
    """Of `--channels 1` nobody knows whether the first axis is what they are counted along."""
    stack = npy(np.zeros((7, 12, 13), np.uint16))
    with pytest.raises(BrokenImage, match=r"^an array \(7, 12, 13\): nothing says whether its first axis"):
        opened(stack, None, pages, 0)
    with pytest.raises(BrokenImage, match="make it 4 axes"):
        count_pages(stack)


@pytest.mark.parametrize("shape", [(83, 86, 204), (45, 60, 100), (512, 217, 204), (13, 50, 13), (9, 9, 9)])
def test_spectra_of_which_the_axis_is_unclear_are_refused(shape):
    cube = npy(np.zeros(shape, np.uint16))
    with pytest.raises(BrokenImage, match=r"^an array \(.*of which nothing tells which axis are the channels"):
        opened(cube, None)
    assert opened(cube, shape[0]).channels == shape[0]


@pytest.mark.parametrize(
    ("shape", "count"), [((610, 340, 103), 103), ((3, 40, 4), 3), ((40, 5, 4), 4), ((13, 20, 24), 13)]
)
def test_spectra_of_which_it_is_clear(shape, count):
    assert opened(npy(np.zeros(shape, np.uint16)), None).channels == count


def test_several_pages_are_refused():
    data = npy(np.zeros((6, 3, 12, 13)))
    with pytest.raises(BrokenImage, match="^6 images along the first axis; --pages channels, samples or first"):
        opened(data, 3)


def test_which_array_of_an_archive(tmp_path):
    array = GENERATOR.integers(0, 9, (12, 13), np.int16)
    for name in ("image", "img", "x"):
        check(opened(npz(label=np.zeros(1), **{name: array})), array[None])
    check(opened(npz(anything=array)), array[None])
    with pytest.raises(BrokenImage, match=r"^2 arrays \(a, b\); one of them must be called image"):
        opened(npz(a=array, b=array))
    (tmp_path / "a.npz").write_bytes(npz(image=np.zeros((5, 3, 12, 13))))
    assert count_pages(tmp_path / "a.npz") == 5


def test_an_archive_of_something_else_is_left_alone():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    assert opened(file.getvalue()) is None
    assert opened(b"PK\x03\x04" + bytes(100)) is None


def header(shape, descr="<u2", rest=b""):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + rest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([[{}]], dtype=object)), "array of objects"),
        (npy(np.zeros((4, 4), np.complex64)), "complex values"),
        (npy(np.zeros((4, 4), "M8[s]")), "expected whole or real numbers"),
        (npy(np.zeros((4, 4), "u1,f4")), "expected whole or real numbers"),
        (npy(np.zeros((4, 4), "S3")), "expected whole or real numbers"),
        (npy(np.zeros((0, 4))), "empty"),
        (npy(np.zeros(4)), "expected .height, width."),
        (npy(np.zeros((1, 2, 3, 4, 5))), "expected .height, width."),
        (header("(1000000, 1000000)"), "cannot be in 0 bytes"),
        (header(f"({10**30}, {10**30})"), "cannot be in 0 bytes"),
        (header("(1000000000, 4, 4)", rest=bytes(100)), "cannot be in 100 bytes"),
        (header("(4, 4)", rest=bytes(31)), "cannot be in 31 bytes"),
        (header("(-4, -4)"), "empty"),
        (header("(" * 100), "NumPy header"),
        (b"\x93NUMPY\3\0" + bytes(100), "version 3.0"),
        (b"\x93NUMPY", "NumPy header"),
    ],
)
def test_what_is_refused(data, message):
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImage, match=message):
            opened(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def bomb(shape, packed):
    """An archive whose array claims a shape, and holds zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("image.npy", "w") as member:
        member.write(header(shape))
        for _ in range(packed):
            member.write(bytes(1 << 20))
    return file.getvalue()


@pytest.mark.parametrize(("shape", "packed"), [("(1000000, 1000000)", 0), ("(60000, 60000)", 20), ("(6000, 6000)", 0)])
def test_bombs_in_archives(shape, packed):
    data = bomb(shape, packed)
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImage, match="cannot be in"):
            opened(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(BrokenImage, match="decoding NumPy"):
        opened(bomb("(1000, 1000)", 0)).read()


def test_max_pixels():
    with pytest.raises(BrokenImage, match=r"in one piece; at most 3000 values are read at once \(4 x max_pixels\)"):
        opened(npz(True, image=np.zeros((20, 12, 13))), 1, "samples", 0, max_pixels=750)
    with pytest.raises(BrokenImage, match=r"13 x 12 pixels; expected 1 to 155 \(max_pixels\)"):
        opened(npy(np.zeros((12, 13))), max_pixels=155)
    assert opened(npy(np.zeros((20, 12, 13))), 1, "samples", 0, max_pixels=156).height == 12
