"""What is made of each image."""

from dataclasses import asdict, dataclass
from typing import Any

from ..arguments.data import MAX_PIXELS


PARQUET, WEBDATASET = "parquet", "webdataset"
AUTO, JPEG, PNG, NPY = "auto", "jpeg", "png", "npy"
SHORTER, LONGER = "shorter", "longer"
SIZE = 256  # pixels
QUALITY = 95  # of Pillow


@dataclass(frozen=True)
class Options:
    """What is made of each image, and how it is stored.

    Args:
        size: pixels of the `resize_mode` side; longer ones are made smaller, no image is enlarged. `None` leaves all
            as they are.
        resize_mode: which side, `SHORTER` or `LONGER`.
        tile: pixels of the sides of tiles, which are cut at the resolution of the image instead; `None` for none.
        tile_overlap: pixels that neighboring tiles have in common.
        min_content: tiles with a smaller share of pixels that are not background are left out (see
            `data.content.Content`).
        channels: which of the stored channels, from 1; `None` for all.
        pages: what further pages of a file are, as `data.arrays.open_array`.
        encode: `AUTO`, `JPEG`, `PNG` or `NPY` (see `encoding.encode`).
        quality: of JPEG, 1 to 100.
        dtype: float16 or float32 that floating-point values are stored as; `None` for as they are.
        max_pixels: larger images are skipped.
        format: `PARQUET` or `WEBDATASET`.
        near_duplicates: images whose perceptual hashes of 64 bits differ in at most so many are near-duplicates;
            `None` looks for equal ones alone.
        drop_duplicates: whether all but the first of each group are left out.

    Raises:
        ValueError: naming the field that is wrong, or has no effect.
    """

    size: int | None = SIZE
    resize_mode: str = SHORTER
    tile: int | None = None
    tile_overlap: int = 0
    min_content: float | None = None
    channels: tuple[int, ...] | None = None
    pages: str | None = None
    encode: str = AUTO
    quality: int = QUALITY
    dtype: str | None = None
    max_pixels: int = MAX_PIXELS
    format: str = PARQUET
    near_duplicates: int | None = None
    drop_duplicates: bool = False

    def __post_init__(self):
        for name, least, most in (
            ("size", 1, None),
            ("tile", 1, None),
            ("tile_overlap", 0, None),
            ("quality", 1, 100),
            ("max_pixels", 1, None),
            ("near_duplicates", 0, 63),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= (value if most is None else most):
                limits = f"at least {least}" if most is None else f"in [{least}, {most}]"
                raise ValueError(
                    f"{'max_image_pixels' if name == 'max_pixels' else name}: must be {limits}, got {value}"
                )
        if self.min_content is not None and not 0 < self.min_content <= 1:
            raise ValueError(f"min_content: must be a share in (0, 1], got {self.min_content:g}")
        if self.channels is not None and (not self.channels or min(self.channels) < 1):
            raise ValueError(f"channels: are counted from 1, got {' '.join(map(str, self.channels))}")
        if self.tile is None:
            for name in ("tile_overlap", "min_content"):
                if getattr(self, name):
                    raise ValueError(f"{name}: is of tiles; give --tile as well")
        elif self.tile_overlap >= self.tile:
            raise ValueError(f"tile_overlap: must be less than --tile {self.tile}, got {self.tile_overlap}")
        if self.encode in (PNG, NPY) and self.quality != QUALITY:
            raise ValueError(f"quality: is of JPEG, and has no effect with --encode {self.encode}; leave it out")
        if self.near_duplicates is not None:
            try:
                import imagehash  # noqa: F401
            except ImportError as error:
                raise ValueError("near_duplicates: needs imagehash; pip install 'a2mim[duplicates]'") from error

    def as_dict(self) -> dict[str, Any]:
        """JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
