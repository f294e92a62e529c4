"""Checks of numbers that users give."""

from collections.abc import Sequence


def check_statistics(field: str, values: Sequence[float], bounded: bool = True) -> None:
    """Refuse an `image_mean` or `image_std` that cannot be of pixels in [0, 1], such as those of 0-255.

    Args:
        field: which of the two.
        values: of each channel.
        bounded: whether pixels are in [0, 1]; else they may be any numbers, as an `unclipped` range gives them.

    Raises:
        ValueError: naming `field`.
    """
    wrong = None
    if bounded and max(values) > 1:
        largest = 255 if max(values) <= 255 else 65535  # of 8 and of 16 bits
        scaled = ", ".join(f"{value / largest:.4g}" for value in values)
        hint = f"if these are of pixels of 0-{largest}, divide by {largest}: {scaled}"
        wrong = f"is of pixels in [0, 1], got {list(values)}; {hint}"
    elif field == "image_std" and min(values) <= 0:
        wrong = f"must be positive, got {list(values)}"
    elif bounded and min(values) < 0:
        wrong = f"is of pixels in [0, 1], got {list(values)}"
    if wrong:
        raise ValueError(f"{field}: {wrong}")
