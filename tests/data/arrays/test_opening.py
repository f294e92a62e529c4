"""The same scene in every format and type of values is the same to a model, bit for bit."""

import io

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_a2mim.data.decoding import load_tensor, open_stored
from modeling_a2mim.data.pixel_spec import PixelSpec, read_values
from modeling_a2mim.utils.value_range import ValueRange

from .test_dicom import dicom
from .test_numpy_files import npy, npz
from .test_tiff import write


LEVELS = 2387
SPEC = PixelSpec(1, value_range=ValueRange((16.0,), (4059.0,)))


@pytest.fixture(scope="module")
def scene():
    """12 bits, 16 to 4059, of which 2387 values occur."""
    generator = np.random.default_rng(0)
    levels = np.sort(generator.choice(np.arange(17, 4059), LEVELS - 2, replace=False))
    levels = np.concatenate([[16], levels, [4059]])
    return generator.permutation(np.resize(levels, 60 * 80)).reshape(60, 80).astype(np.uint16)


def png(array):
    return imagecodecs.png_encode(array)


FORMATS = {
    "PNG": png,
    "PNG in colour": lambda array: png(np.stack([array] * 3, axis=-1)),
    "TIFF": write,
    "TIFF, tiles": lambda array: write(array, tile=(32, 32), compression="zlib", predictor=True),
    "TIFF, LZW": lambda array: write(array, compression="lzw"),
    "npy": npy,
    "npz": lambda array: npz(True, image=array),
    "DICOM": lambda array: dicom(array, bits=12),
    "PGM": lambda array: b"P5 80 60 4095\n" + array.astype(">u2").tobytes(),
    "JPEG 2000": lambda array: imagecodecs.jpeg2k_encode(array, level=0, reversible=True, bitspersample=12),
}


@pytest.mark.parametrize("name", FORMATS)
def test_no_level_is_lost(name, scene):
    spec = PixelSpec(3, value_range=SPEC.value_range) if "colour" in name else SPEC
    values = read_values(open_stored(FORMATS[name](scene), spec), spec)
    assert values.dtype == torch.float32
    assert len(torch.unique(values)) == LEVELS
    expected = load_tensor(npy(scene), SPEC)
    assert torch.equal(values, expected.expand_as(values))


@pytest.mark.parametrize("name", ["TIFF", "TIFF, tiles", "npy", "npz", "DICOM"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int32, np.float32, np.float64])
def test_types_are_the_same_to_a_model(name, dtype, scene):
    array = scene.astype(dtype)
    if name == "TIFF, tiles" and array.dtype.kind == "f":
        data = write(array, tile=(32, 32), compression="zlib", predictor=3)
    else:
        data = dicom(array) if name == "DICOM" else FORMATS[name](array)
    assert torch.equal(load_tensor(data, SPEC), load_tensor(npy(scene), SPEC))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_photographs_are_what_pillow_reads(kind):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    file = io.BytesIO()
    photo.save(file, kind)
    found = load_tensor(file.getvalue(), PixelSpec(3))
    with Image.open(file) as expected:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))
