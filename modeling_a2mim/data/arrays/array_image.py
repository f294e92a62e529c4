"""An image whose pixels are read when they are needed, whatever their type."""

import abc
from collections.abc import Collection

import numpy as np


Box = tuple[int, int, int, int]  # top, left, height and width in pixels
Window = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]  # lowest and highest value, or of channels


class BrokenImage(ValueError):
    """An image that cannot be used, with the reason.

    Attributes:
        argument: the one that it does not fit, where another value of it would do; `None` for a fault of its own.
    """

    def __init__(self, reason: str, argument: str | None = None):
        super().__init__(reason)
        self.argument = argument


def at_fault(arguments: Collection[str | None]) -> str | None:
    """The one argument that none of several broken images fits, by the `argument` of each; `None` if there is none."""
    return next(iter(arguments)) if len(set(arguments)) == 1 else None


class ArrayImage(abc.ABC):
    """What the header of an image says; `read` gives its pixels.

    Attributes:
        format: what it is stored as, for messages ("TIFF").
        channels, height, width: of the image the right way up.
        dtype: of the values, a real number of NumPy in the order of bytes of this machine.
        window: the values between which a DICOM file is to be shown, if it says so; of each channel, where frames with
            others are channels.
        alpha: whether the last channel is transparency.
        nodata: the value of pixels of which nothing is known (GeoTIFF's nodata, DICOM's padding), if there is one.
    """

    nodata: float | None = None

    def __init__(
        self,
        format: str,
        shape: tuple[int, int, int],
        dtype: np.dtype,
        window: Window | None = None,
        alpha: bool = False,
    ):
        self.format, self.dtype, self.window, self.alpha = format, np.dtype(dtype), window, alpha
        self.channels, self.height, self.width = shape

    @abc.abstractmethod
    def read(self, box: Box | None = None) -> np.ndarray:
        """The values of a box, or of all of the image: (channels, height, width), of `dtype`.

        Raises:
            BrokenImage: if they cannot be decoded.
        """


class StoredArray(ArrayImage):
    """An array that is in memory: (channels, height, width)."""

    def __init__(self, format: str, values: np.ndarray, window: Window | None = None, alpha: bool = False):
        super().__init__(format, values.shape, values.dtype, window, alpha)
        self.values = values

    def read(self, box: Box | None = None) -> np.ndarray:
        if box is None:
            return self.values
        top, left, height, width = box
        return self.values[:, top : top + height, left : left + width]


class BooleanImage(ArrayImage):
    """An image of booleans as one of 8 bits, 0 and 255, as Pillow gives those of one bit."""

    def __init__(self, image: ArrayImage):
        shape = (image.channels, image.height, image.width)
        super().__init__(image.format, shape, np.dtype(np.uint8), alpha=image.alpha)
        self.image, self.nodata = image, None if image.nodata is None else 255 * image.nodata

    def read(self, box: Box | None = None) -> np.ndarray:
        return self.image.read(box) * np.uint8(255)
