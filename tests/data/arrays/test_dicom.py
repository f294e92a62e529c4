"""DICOM made by pydicom: values after the modality transformation, frames, windows, and nothing of a patient told."""

import io
import logging
import struct
import traceback
import tracemalloc
import warnings

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from modeling_a2mim.data.arrays import BrokenImage, count_pages, open_array
from modeling_a2mim.data.decoding import load_tensor
from modeling_a2mim.data.pixel_spec import PixelSpec, known_values
from modeling_a2mim.utils.value_range import ValueRange


MOST = 10_000_000
GENERATOR = np.random.default_rng(0)
NAME = "Planted^Patricia"
EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG, JPEG12, LOSSLESS, JPEGLS, JPEG2000, RLE = (
    f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.51", "4.70", "4.80", "4.90", "5")
)


def dicom(array, syntax=EXPLICIT, bits=None, frames=None, encode=None, preamble=True, **elements) -> bytes:
    """A file of (rows, columns), (rows, columns, 3) or, with `frames`, these behind one another."""
    found = Dataset()
    found.PatientName, found.PatientID, found.PatientBirthDate = NAME, "ID-4711", "19010203"
    found.SOPClassUID, found.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    shape = array.shape[1:] if frames else array.shape
    found.Rows, found.Columns = shape[:2]
    found.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    found.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    if len(shape) == 3:
        found.PlanarConfiguration = 0
    found.BitsAllocated = array.dtype.itemsize * 8
    found.BitsStored = bits or found.BitsAllocated
    found.HighBit = found.BitsStored - 1
    found.PixelRepresentation = int(array.dtype.kind == "i")
    if frames:
        found.NumberOfFrames = frames
    for name, value in elements.items():
        setattr(found, name, value)
    big = syntax == BIG
    if array.dtype.kind == "f":
        setattr(found, "FloatPixelData" if array.itemsize == 4 else "DoubleFloatPixelData", array.tobytes())
    elif encode:
        found.PixelData = encapsulate([encode(frame) for frame in (array if frames else [array])])
        found["PixelData"].VR = "OB"
    else:
        data = array.astype(array.dtype.newbyteorder(">")) if big else array
        found.PixelData = data.tobytes() + b"\0" * (data.nbytes % 2)
        found["PixelData"].VR = "OW" if array.itemsize > 1 else "OB"
    file = io.BytesIO()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    if preamble:
        pydicom.dcmwrite(file, found, enforce_file_format=True)
    else:
        del found.file_meta
        pydicom.dcmwrite(file, found, implicit_vr=syntax == IMPLICIT, little_endian=True)
    return file.getvalue()


def opened(data, path=None, pages=None, page=None, max_pixels=MOST):
    return open_array(data, path, None, pages, page, max_pixels)


def check(image, expected):
    assert (image.format, image.channels, image.height, image.width) == ("DICOM", *expected.shape)
    for found, values in ((image.read(), expected), (image.read((2, 3, 5, 4)), expected[:, 2:7, 3:7])):
        assert found.dtype == image.dtype == expected.dtype
        assert found.flags.writeable
        assert np.array_equal(found, values)


def scene(*shape, dtype=np.uint16, bits=12):
    low = -(1 << bits - 1) if np.dtype(dtype).kind == "i" else 0
    return GENERATOR.integers(low, low + (1 << bits), shape, dtype)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4"])
def test_every_type(syntax, dtype):
    array = scene(40, 50, dtype=dtype, bits=np.dtype(dtype).itemsize * 8)
    check(opened(dicom(array, syntax)), array[None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_real_numbers(dtype):
    array = GENERATOR.standard_normal((40, 50)).astype(dtype)
    check(opened(dicom(array)), array[None])
    check(opened(dicom(array, RescaleSlope="2", RescaleIntercept="1")), array[None].astype(np.float64) * 2 + 1)


def test_one_bit():
    array = GENERATOR.random((40, 50)) < 0.5
    data = dicom(
        np.packbits(array, bitorder="little").reshape(1, -1), Rows=40, Columns=50, BitsAllocated=1, BitsStored=1
    )
    check(opened(data), array[None])


def rle(array) -> bytes:
    """A frame of one channel in DICOM's RLE, without a run in it."""
    planes = array.astype(array.dtype.newbyteorder(">")).view(np.uint8).reshape(array.size, array.itemsize).T
    parts = []
    for plane in planes:
        data = plane.tobytes()
        literal = b"".join(
            bytes([len(part) - 1]) + part for part in (data[i : i + 128] for i in range(0, len(data), 128))
        )
        parts.append(literal + b"\0" * (len(literal) % 2))
    starts = [64 + sum(map(len, parts[:i])) for i in range(len(parts))]
    return struct.pack("<16I", len(parts), *starts, *[0] * (15 - len(parts))) + b"".join(parts)


ENCODERS = {
    "lossless JPEG": (LOSSLESS, lambda array: imagecodecs.ljpeg_encode(array, bitspersample=12)),
    "JPEG-LS": (JPEGLS, imagecodecs.jpegls_encode),
    "JPEG 2000": (
        JPEG2000,
        lambda array: imagecodecs.jpeg2k_encode(array, level=0, codecformat="j2k", reversible=True, bitspersample=12),
    ),
    "RLE": (RLE, rle),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_compressed_without_loss(name):
    syntax, encode = ENCODERS[name]
    array = scene(40, 50)
    check(opened(dicom(array, syntax, 12, encode=encode)), array[None])
    stack = scene(3, 40, 50)
    data = dicom(stack, syntax, 12, frames=3, encode=encode)
    for frame in range(3):
        check(opened(data, pages="samples", page=frame), stack[frame : frame + 1])
    check(opened(data, pages="channels"), stack)


def test_jpeg_in_colour():
    y, x = np.mgrid[:40, :50]
    array = np.stack([4 * x, 5 * y, 100 + x], axis=-1).astype(np.uint8)
    for photometric, colours in (("RGB", "RGB"), ("YBR_FULL_422", "YCBCR")):
        data = dicom(
            array,
            JPEG,
            encode=lambda a, colours=colours: imagecodecs.jpeg_encode(
                a, level=100, colorspace="RGB", outcolorspace=colours
            ),
            PhotometricInterpretation=photometric,
        )
        found = opened(data).read().astype(int)
        assert np.abs(found - array.transpose(2, 0, 1)).max() < 12


def test_colours():
    array = scene(40, 50, 3, dtype=np.uint8, bits=8)
    check(opened(dicom(array)), array.transpose(2, 0, 1))
    planar = dicom(array, PlanarConfiguration=1)
    assert np.array_equal(opened(planar).read(), np.frombuffer(array.tobytes(), np.uint8).reshape(3, 40, 50))
    grey = dicom(
        np.stack([array[..., 0], *[np.full((40, 50), 128, np.uint8)] * 2], -1), PhotometricInterpretation="YBR_FULL"
    )
    check(opened(grey), np.stack([array[..., 0]] * 3))


@pytest.mark.parametrize(("bits", "dtype"), [(16, np.uint16), (8, np.uint8)])
def test_palette(bits, dtype):
    tables = scene(3, 256, dtype=dtype, bits=bits)
    array = scene(40, 50, dtype=np.uint8, bits=8)
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    check(opened(dicom(array, **elements)), tables[:, array])


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        ("1", "-1024", np.int16),
        ("2", "0", np.uint16),
        ("100", "-5", np.int32),
        ("16", "0", np.uint16),
        ("0.5", "0", np.float64),
    ],
)
def test_rescale(slope, intercept, dtype):
    array = scene(40, 50)
    image = opened(dicom(array, bits=12, RescaleSlope=slope, RescaleIntercept=intercept))
    check(image, (array[None] * float(slope) + float(intercept)).astype(dtype))


def test_rescale_of_each_frame():
    stack = scene(2, 40, 50)
    groups = []
    for intercept in ("-10", "-20"):
        item, group = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept = "1", intercept
        group.PixelValueTransformationSequence = Sequence([item])
        groups.append(group)
    data = dicom(stack, bits=12, frames=2, PerFrameFunctionalGroupsSequence=Sequence(groups))
    for frame, intercept in enumerate((-10, -20)):
        check(opened(data, pages="samples", page=frame), stack[frame : frame + 1].astype(np.int16) + intercept)
    both = stack.astype(np.int16) - np.array([10, 20], np.int16)[:, None, None]
    check(opened(data, pages="channels"), both)


def test_a_slope_of_zero_is_refused():
    with pytest.raises(BrokenImage, match="^a rescale slope of 0 in DICOM"):
        opened(dicom(scene(40, 50), RescaleSlope="0", RescaleIntercept="5"))


@pytest.mark.parametrize("colours", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("slope", ["1", "2", "0.5"])
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_padding_is_not_part_of_the_image(syntax, slope, colours):
    """What scanners write outside their circle, which may be beyond the bits that the header says are stored."""
    array = scene(40, 50)
    rescale = {"RescaleSlope": slope, "RescaleIntercept": "-1024", "PhotometricInterpretation": colours}
    whole = opened(dicom(array, syntax, bits=12, **rescale)).read()
    outside = np.zeros(array.shape, bool)
    outside[:7] = outside[:, 45:] = True
    padded = np.where(outside, np.uint16(63536), array)
    image = opened(dicom(padded, syntax, bits=12, PixelPaddingValue=63536, **rescale))
    values = image.read()
    assert np.array_equal(values[0][~outside], whole[0][~outside].astype(values.dtype))
    assert set(values[0][outside].tolist()) == {image.nodata}
    pixels = load_tensor(image.data, PixelSpec(1, value_range=ValueRange((-1024.0,), (8000.0,))))[0].numpy()
    assert not pixels[outside].any()
    assert pixels[~outside].any()
    found = known_values(values, image)
    np.testing.assert_array_equal(np.isnan(found[0]), outside)


def test_padding_may_be_a_range_and_signed():
    array = scene(40, 50, dtype=np.int16)
    array[:4], array[4:8] = -2048, -2000
    found = {"PixelPaddingValue": -2048, "PixelPaddingRangeLimit": -1990}
    array[8:][array[8:] < -1980] = 0
    values = opened(dicom(array, bits=12, **found)).read()[0]
    assert (values[:8] == -2048).all()
    assert np.array_equal(values[8:], array[8:])
    image = opened(dicom(array, bits=12, **found))
    assert (image.nodata, image.dtype) == (-2048, np.int16)


def test_padding_of_frames_with_slopes_of_their_own():
    stack, groups = scene(2, 40, 50), []
    stack[:, :5] = 0
    for intercept in ("-10", "-20"):
        item, group = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept = "1", intercept
        group.PixelValueTransformationSequence = Sequence([item])
        groups.append(group)
    data = dicom(stack, bits=12, frames=2, PixelPaddingValue=0, PerFrameFunctionalGroupsSequence=Sequence(groups))
    values = opened(data, pages="channels").read()
    expected = np.where(stack == 0, np.nan, stack - np.array([10.0, 20.0])[:, None, None])
    assert np.array_equal(values, expected, equal_nan=True)
    assert opened(data, pages="samples", page=1).nodata == -20


def test_modality_table():
    table = scene(4096, bits=16)
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], table.tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    array = scene(40, 50)
    check(opened(dicom(array, bits=12, ModalityLUTSequence=Sequence([item]))), table[array][None])


def test_high_values_are_bright():
    array = scene(40, 50)
    check(opened(dicom(array, bits=12, PhotometricInterpretation="MONOCHROME1")), 4095 - array[None])
    signed = scene(40, 50, dtype=np.int16)
    check(opened(dicom(signed, bits=12, PhotometricInterpretation="MONOCHROME1")), -1 - signed[None])
    both = {"RescaleSlope": "2", "RescaleIntercept": "-100", "PhotometricInterpretation": "MONOCHROME1"}
    image = opened(dicom(array, bits=12, WindowCenter="1000.5", WindowWidth="801", **both))
    check(image, 2 * (4095 - array[None]).astype(np.int16) - 100)
    # The window was 600 to 1400 of what runs from -100 to 8090 before it is inverted.
    assert image.window == (7990 - 1400, 7990 - 600)


def test_window():
    array = scene(40, 50)
    assert opened(dicom(array)).window is None
    assert opened(dicom(array, WindowCenter="50", WindowWidth="400")).window == (-150.0, 249.0)
    assert opened(dicom(array, WindowCenter=["50", "9"], WindowWidth=["400", "8"])).window == (-150.0, 249.0)
    exact = {"VOILUTFunction": "LINEAR_EXACT"}
    assert opened(dicom(array, WindowCenter="50", WindowWidth="400", **exact)).window == (-150.0, 250.0)
    sigmoid = {"VOILUTFunction": "SIGMOID"}
    assert opened(dicom(array, WindowCenter="50", WindowWidth="400", **sigmoid)).window is None
    spec = PixelSpec(1, value_range=ValueRange(of="window"))
    pixels = load_tensor(dicom(array, WindowCenter="2048", WindowWidth="1001"), spec)
    expected = np.clip((array[None] - 1547.5 + 0.0) / 1000, 0, 1)
    assert np.allclose(pixels.numpy(), expected, atol=1e-6)


def test_windows_of_frames():
    """Each channel is shown by that of its own frame."""
    stack, groups = scene(3, 40, 50), []
    for low, high in ((0, 1000), (500, 900), (0, 4000)):
        item, group = Dataset(), Dataset()
        item.WindowCenter, item.WindowWidth, item.VOILUTFunction = (low + high) / 2, high - low, "LINEAR_EXACT"
        group.FrameVOILUTSequence = Sequence([item])
        groups.append(group)
    data = dicom(stack, bits=12, frames=3, PerFrameFunctionalGroupsSequence=Sequence(groups))
    expected = np.stack([stack[0] / 1000, (stack[1] - 500.0) / 400, stack[2] / 4000]).clip(0, 1).astype(np.float32)
    known = ValueRange(of="window")
    assert np.array_equal(load_tensor(data, PixelSpec(3, None, known, "channels")), expected)
    assert np.array_equal(load_tensor(data, PixelSpec(2, (3, 2), known, "channels")), expected[[2, 1]])
    for page in range(3):
        found = load_tensor({"bytes": data, "page": page}, PixelSpec(1, None, known, "samples"))
        assert np.array_equal(found[0], expected[page])
    same = dicom(stack, bits=12, frames=3, WindowCenter="50", WindowWidth="400")
    assert opened(same, pages="channels").window == (-150.0, 249.0)
    del groups[1].FrameVOILUTSequence
    data = dicom(stack, bits=12, frames=3, PerFrameFunctionalGroupsSequence=Sequence(groups))
    with pytest.raises(BrokenImage, match="its header has no window"):
        load_tensor(data, PixelSpec(3, None, known, "channels"))


def test_frames(tmp_path):
    stack = scene(5, 40, 50)
    data = dicom(stack, bits=12, frames=5)
    (tmp_path / "scan").write_bytes(data)
    assert count_pages(tmp_path / "scan") == count_pages(data) == 5
    with pytest.raises(BrokenImage, match="^5 frames; --pages channels, samples or first says what they are$"):
        opened(data)
    check(opened(data, pages="channels"), stack)
    check(opened(data, pages="samples", page=4), stack[4:])
    check(opened(data, pages="first"), stack[:1])


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_without_a_preamble(syntax):
    array = scene(40, 50)
    data = dicom(array, syntax, preamble=False)
    check(opened(data, "scan.dcm"), array[None])
    assert count_pages(data, "scan.DCM") == 1
    assert opened(data, "scan") is None


def with_mark(data, signature):
    return signature + data[len(signature) :]


def test_a_preamble_of_another_format():
    array = scene(40, 50)
    check(opened(with_mark(dicom(array), b"II*\0" + bytes(60))), array[None])


# What is refused


def element(data, group, number, code, value):
    """The file with another number in an element of explicit, short type."""
    place = data.index(struct.pack("<HH", group, number)) + 8
    broken = bytearray(data)
    struct.pack_into(code, broken, place, value)
    return bytes(broken)


GOOD = dicom(scene(40, 50), bits=12)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            element(element(GOOD, 0x28, 0x10, "<H", 65535), 0x28, 0x11, "<H", 65535),
            r"expected 1 to 10000000 \(max_pix",
        ),
        (element(element(GOOD, 0x28, 0x10, "<H", 2000), 0x28, 0x11, "<H", 2000), "cannot be in"),
        (dicom(scene(40, 50), NumberOfFrames=1_000_000_000), "1000000000 frames .* cannot be in"),
        (dicom(scene(40, 50), RLE, encode=rle, NumberOfFrames=10**9), "cannot be in"),
        (dicom(scene(40, 50), "1.2.840.10008.1.2.4.102", encode=lambda a: a.tobytes()), "transfer syntax"),
        (GOOD[:-20], "cannot be in"),
        (GOOD[:-2], "decoding DICOM"),
        (dicom(scene(40, 50), SamplesPerPixel=60_000), "photometric"),
        (dicom(scene(40, 50), PhotometricInterpretation="HSV"), "photometric"),
        (GOOD[:140], "DICOM"),
        (bytes(128) + b"DICM", "DICOM"),
    ],
)
def test_bombs(data, message):
    opened(GOOD)  # imports
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImage, match=message):
            opened(data, pages="first").read()
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_count_that_cannot_be():
    with pytest.raises(BrokenImage, match="1000000000 pages"):
        count_pages(dicom(scene(40, 50), NumberOfFrames=1_000_000_000))


def test_a_frame_of_another_size():
    data = dicom(
        scene(40, 50), JPEGLS, encode=lambda array: imagecodecs.jpegls_encode(np.zeros((400, 500), np.uint16))
    )
    with pytest.raises(BrokenImage, match="decoding DICOM"):
        opened(data).read()


def test_deflated():
    file = io.BytesIO(GOOD)
    found = pydicom.dcmread(file)
    found.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    out = io.BytesIO()
    pydicom.dcmwrite(out, found)
    with pytest.raises(BrokenImage, match="deflated DICOM"):
        opened(out.getvalue())


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(BrokenImage, match=r"needs pydicom: pip install 'a2mim\[formats\]'"):
        opened(GOOD)


def test_nothing_of_a_patient_is_told(caplog):
    """Broken everywhere, and read with every warning on: no message, log or traceback has a name, a date or a number
    of the patient."""
    secrets = ("Planted", "Patricia", "4711", "19010203")
    window = {"WindowCenter": "1234567", "WindowWidth": "1"}
    named = dicom(scene(40, 50), **window).replace(b"1234567 ", NAME[:8].encode())  # where a number belongs
    files = [GOOD, named, dicom(scene(40, 50), RLE, encode=rle)]
    messages = []
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for data in files:
            for number in range(150):
                generator = np.random.default_rng(number)
                broken = bytearray(data)
                for place in generator.integers(132, 700, 6):
                    broken[place] ^= 1 << int(generator.integers(8))
                try:
                    opened(bytes(broken), pages="first").read()
                except BrokenImage as error:
                    messages.append("".join(traceback.format_exception(error)) + str(error))
    assert len(messages) > 100
    told = "\n".join([*messages, *(str(w.message) for w in warned), caplog.text])
    assert not any(secret in told for secret in secrets)
    with pytest.raises(BrokenImage) as refused:
        opened(named).read()
    assert "Planted" not in "".join(traceback.format_exception(refused.value))
    assert logging.getLogger("pydicom").propagate  # as before
