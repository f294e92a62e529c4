"""What pydicom needs to decode compressed frames: a plugin that has them decoded by imagecodecs."""

from typing import Any

import numpy as np

from .array_image import BrokenImage
from .limits import EXTRA, jpeg2000_size, jpeg_size


NAME = "a2mim"
DECODER_DEPENDENCIES: dict[str, tuple[str, ...]] = {}  # pydicom asks for it


def is_available(uid: str) -> bool:
    """pydicom asks for it."""
    return True


def frame(found: Any, index: int, codec: str, all_bits: bool = False) -> np.ndarray:
    """The stored values of a frame of a dataset, (height, width) or (height, width, channels); YCbCr as RGB.
    `all_bits`: with the bits beyond those that the header says are used, which else are left out.

    Raises:
        BrokenImage: if a library is missing, or the frame has another size than the header of the file says.
    """
    from pydicom.pixels.decoders.base import get_decoder

    decoder, plugin = get_decoder(found.file_meta.TransferSyntaxUID), ""
    if codec != "none":
        try:
            import imagecodecs  # noqa: F401
        except ImportError:
            raise BrokenImage(f"compressed DICOM needs imagecodecs: {EXTRA}") from None
        plugin = NAME
        if NAME not in decoder.available_plugins:
            decoder.add_plugin(NAME, (__name__, "decode_frame"))
    options: Any = {"index": index, "decoding_plugin": plugin, "correct_unused_bits": not all_bits}
    return decoder.as_array(found, **options)[0]


def decode_frame(data: bytes, runner: Any) -> bytearray:
    """Decode a frame for pydicom, and tell it what came of it (see its guide to decoder plugins).

    Raises:
        BrokenImage: if the frame has another size than the header of the file says.
    """
    import imagecodecs

    uid = str(runner.transfer_syntax)
    rows, columns, samples = runner.rows, runner.columns, runner.samples_per_pixel
    if uid.endswith("1.2.5"):
        dtype = np.dtype(f"<u{runner.bits_allocated // 8}")
        size = samples * rows * columns * dtype.itemsize
        found = imagecodecs.dicomrle_decode(data, dtype, out=size)
        if len(found) != size:
            raise BrokenImage("a frame of another size than the header says")
        runner.set_option("planar_configuration", 1)
        return bytearray(found)
    if uid.endswith((".90", ".91")):
        shape: Any = (jpeg2000_size(data) or (0, 0, 0, 0))[:3]
    else:
        shape = jpeg_size(data)
    if shape != (samples, rows, columns):
        raise BrokenImage("a frame of another size than the header says")
    if uid.endswith((".90", ".91")):
        values = imagecodecs.jpeg2k_decode(data)
    elif uid.endswith((".80", ".81")):
        values = imagecodecs.jpegls_decode(data)
    elif samples == 3:
        ycbcr = "YBR" in runner.photometric_interpretation
        values = imagecodecs.jpeg_decode(data, colorspace="YCBCR" if ycbcr else "RGB", outcolorspace="RGB")
        runner.set_option("photometric_interpretation", "RGB")
    else:
        values = imagecodecs.jpeg_decode(data)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):  # undone by the codec
        runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", values.dtype.itemsize * 8)
    return bytearray(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes())
