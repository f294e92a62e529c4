"""PNG, PPM and JPEG 2000 of more than 8 bits, which Pillow cuts, and slices of NIfTI."""

import gzip
import io
import itertools
import struct
import sys
import zlib

import imagecodecs
import nibabel
import numpy as np
import pytest
from PIL import Image

from modeling_a2mim.data.arrays import BrokenImage, count_pages, open_array
from modeling_a2mim.data.arrays.axes import ORIENTATIONS, turned
from modeling_a2mim.data.decoding import load_tensor, open_stored
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.utils.value_range import ValueRange


MOST = 10_000_000
GENERATOR = np.random.default_rng(0)


def scene(*shape, most=65535):
    return GENERATOR.integers(0, most, shape, np.uint16, endpoint=True)


def opened(data, path=None, pages=None, page=None, max_pixels=MOST):
    return open_array(data, path, None, pages, page, max_pixels)


def check(image, expected):
    assert (image.channels, image.height, image.width) == expected.shape
    for found, values in ((image.read(), expected), (image.read((2, 3, 5, 4)), expected[:, 2:7, 3:7])):
        assert found.dtype == image.dtype
        assert found.flags.writeable
        assert np.array_equal(found, values)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_orientation(png, number):
    exif = Image.Exif()
    exif[0x0112] = number
    return png[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + png[33:]


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("library", ["imagecodecs", "torchvision"])
def test_png_of_16_bits(channels, library, monkeypatch):
    array = scene(40, 50, channels)
    data = imagecodecs.png_encode(array)
    if library == "torchvision":
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    image = opened(data)
    check(image, array.transpose(2, 0, 1))
    assert image.alpha == (channels != 3)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(data))))) <= 256  # what it is for


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_orientation_of_a_png(number):
    array = scene(40, 50, 3)
    data = with_orientation(imagecodecs.png_encode(array), number)
    check(opened(data), np.ascontiguousarray(turned(array.transpose(2, 0, 1), ORIENTATIONS[number])))


def test_other_pngs_are_left_to_pillow():
    for array in (scene(40, 50), scene(40, 50, 3).astype(np.uint8), scene(40, 50).astype(np.uint8)):
        assert opened(imagecodecs.png_encode(array)) is None
    grey = scene(40, 50)
    assert np.array_equal(open_stored(imagecodecs.png_encode(grey), PixelSpec(1)).read()[0], grey)


def test_broken_pngs():
    data = imagecodecs.png_encode(scene(40, 50, 3))
    huge = data[:16] + struct.pack(">II", 1_000_000, 1_000_000) + data[24:]
    with pytest.raises(BrokenImage, match=r"expected 1 to 10000000 \(max_pixels\)"):
        opened(huge)
    large = data[:16] + struct.pack(">II", 3000, 3000) + data[24:]
    with pytest.raises(BrokenImage, match="cannot be in"):
        opened(large[:2000])
    with pytest.raises(BrokenImage, match="decoding PNG"):
        opened(data[:2000]).read()


@pytest.mark.parametrize(("most", "channels"), [(65535, 3), (4095, 3), (4095, 1), (300, 1)])
def test_ppm(most, channels):
    array = scene(40, 50, channels, most=most)
    data = f"P{5 if channels == 1 else 6}\n# by a microscope\n50 40\n{most}\n".encode() + array.astype(">u2").tobytes()
    check(opened(data), array.transpose(2, 0, 1))
    with pytest.raises(BrokenImage, match="cannot be in"):
        opened(data[:-1])
    with pytest.raises(BrokenImage, match="expected 65535 at most"):
        opened(f"P6 50 40 {70000}\n".encode() + array.tobytes())
    assert opened(b"P6 50 40 255\n" + bytes(6000)) is None


@pytest.mark.parametrize(("bits", "channels"), [(16, 3), (12, 3), (12, 1), (16, 4)])
def test_jpeg_2000(bits, channels):
    array = scene(40, 50, channels, most=2**bits - 1)
    stored = array[..., 0] if channels == 1 else array
    for kind in ("jp2", "j2k"):
        data = imagecodecs.jpeg2k_encode(stored, level=0, codecformat=kind, reversible=True, bitspersample=bits)
        image = opened(data)
        check(image, array.transpose(2, 0, 1))
    place = data.index(b"\xff\x4f\xff\x51") + 8
    with pytest.raises(BrokenImage, match="expected 1 to"):
        opened(data[:place] + struct.pack(">II", 1_000_000, 1_000_000) + data[place + 8 :])
    if channels != 4:
        assert opened(imagecodecs.jpeg2k_encode(stored.astype(np.uint8), level=0)) is None


def with_cdef(jp2, *entries):
    """With a box that says of channels (number, type, colour) what they are."""
    box = struct.pack(f">H{3 * len(entries)}H", len(entries), *itertools.chain(*entries))
    box = struct.pack(">I4s", 8 + len(box), b"cdef") + box
    start = jp2.index(b"jp2h") - 4
    end = start + struct.unpack_from(">I", jp2, start)[0]
    return jp2[:start] + struct.pack(">I", end - start + len(box)) + jp2[start + 4 : end] + box + jp2[end:]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_last_channel_of_jpeg_2000_is_no_transparency(channels, dtype):
    """Unless the file says so."""
    array = scene(40, 50, channels).astype(dtype)
    for kind in ("jp2", "j2k"):
        data = imagecodecs.jpeg2k_encode(array, level=0, codecformat=kind, reversible=True, mct=False)
        check(opened(data), array.transpose(2, 0, 1))
        assert not opened(data).alpha
    known = PixelSpec(channels - 1, value_range=ValueRange((0.0,), (65535.0,)))
    with pytest.raises(ValueError, match="^num_channels: the image"):
        load_tensor(data, known)


def test_transparency_of_jpeg_2000():
    array = scene(40, 50, 4)
    plain = imagecodecs.jpeg2k_encode(array, level=0, codecformat="jp2", reversible=True, mct=False)
    for kind in (1, 2):
        check(opened(with_cdef(plain, (0, 0, 1), (1, 0, 2), (2, 0, 3), (3, kind, 0))), array.transpose(2, 0, 1))
        image = opened(with_cdef(plain, (0, kind, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)))  # in front
        check(image, array[..., [1, 2, 3, 0]].transpose(2, 0, 1))
        assert image.alpha
    assert not opened(with_cdef(plain, (0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 65535, 65535))).alpha
    for mode in ("LA", "RGBA", "CMYK"):
        file = io.BytesIO()
        Image.new(mode, (40, 50)).save(file, "JPEG2000")
        assert opened(file.getvalue()) is None


def nifti(array, slope=None, intercept=None, kind=nibabel.Nifti1Image):
    image = kind(array, np.eye(4))
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    return image.to_bytes()


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.uint8])
def test_slices_of_nifti(dtype, kind, tmp_path):
    volume = (GENERATOR.random((30, 40, 5)) * 200).astype(dtype)
    path = tmp_path / "scan.nii.gz"
    for data, name in ((nifti(volume, kind=kind), "scan.nii"), (gzip.compress(nifti(volume, kind=kind)), path)):
        path.write_bytes(data)
        assert count_pages(data, name) == 5
        with pytest.raises(BrokenImage, match="^5 slices; --pages"):
            opened(data, name)
        for number in range(5):
            shown = volume[:, ::-1, number].T[None]  # the second axis goes up
            check(opened(data, name, "samples", number), shown)
        check(opened(data, name, "channels"), volume[:, ::-1].transpose(2, 1, 0))


def test_scaled_nifti():
    stored = GENERATOR.integers(0, 4000, (30, 40, 1), np.int16)
    data = bytearray(nifti(stored))
    struct.pack_into("<ff", data, 112, 0.5, -3)
    check(opened(bytes(data)), stored[:, ::-1, 0].T[None] * 0.5 - 3)


def test_nifti_that_is_refused():
    odd = bytearray(nifti(np.zeros((4, 4, 1), np.int16)))
    struct.pack_into("<ff", odd, 112, 1, float("nan"))
    with pytest.raises(BrokenImage, match="invalid intercept"):
        opened(bytes(odd))
    with pytest.raises(BrokenImage, match="expected a slice or a volume"):
        opened(nifti(np.zeros((4, 4, 4, 2), np.int16)))
    with pytest.raises(BrokenImage, match="complex"):
        opened(nifti(np.zeros((4, 4, 4), np.complex64)))
    data = bytearray(nifti(np.zeros((4, 4, 4), np.int16)))
    struct.pack_into("<3h", data, 42, 3000, 3000, 30000)
    for broken, name in ((bytes(data), None), (gzip.compress(bytes(data)), "a.nii.gz")):
        with pytest.raises(BrokenImage, match="expected 1 to|cannot be in"):
            opened(broken, name)


def test_broken_gzip_of_nifti():
    whole = bytearray(gzip.compress(nifti(np.zeros((4, 4, 3), np.int16))))
    whole[10] = 0xFF  # an unknown kind of block
    for read in (lambda: opened(bytes(whole), "a.nii.gz", "first"), lambda: count_pages(bytes(whole), "a.nii.gz")):
        with pytest.raises(BrokenImage, match="^NIfTI header: error: "):
            read()
