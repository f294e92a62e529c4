import io

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PillowImage

from modeling_a2mim.data.arrays import BrokenImage
from modeling_a2mim.data.image_statistics import find_range, find_statistics, stored_types
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.utils.value_range import ValueRange


class Arrays(DatasetSource):
    """A source whose images are arrays in memory, or broken."""

    def __init__(self, images):
        self.images = images
        super().__init__(Dataset.from_dict({"image": list(range(len(images)))}), "arrays")
        self.columns = ("image", None)

    def read(self, rows):
        return [(self.images[int(row)], None) for row in rows]

    def describe(self, row):
        return f"row {row}"


def images(count=40, channels=2, dtype=np.uint16):
    generator = np.random.default_rng(0)
    return [generator.integers(16 + i, 4000 + i, (channels, 8, 9)).astype(dtype) for i in range(count)]


def test_types():
    kinds = stored_types(Arrays(images(5)), PixelSpec(2))
    assert kinds == {"uint16": 5}
    assert stored_types(Arrays([*images(2), *images(3, dtype=np.uint8), BrokenImage("gone")]), PixelSpec(2)) == {
        "uint16": 2,
        "8 bits": 3,
    }
    with pytest.raises(ValueError, match=r"^num_channels: row 0: the image \(array\) has 2 channel"):
        stored_types(Arrays(images(2)), PixelSpec(3))
    with pytest.raises(ValueError, match="none of 2 images that were looked at can be used; row 0: gone"):
        stored_types(Arrays([BrokenImage("gone")] * 2), PixelSpec(3))


def test_the_range_is_that_of_all():
    data = images()
    known = find_range(Arrays(data), PixelSpec(2))
    assert known == ValueRange((float(np.min(data)),), (float(np.max(data)),), clip=False)
    floats = [np.where(np.arange(9) == 4, np.nan, one.astype(np.float32) / -7) for one in data]
    known = find_range(Arrays(floats), PixelSpec(2))
    assert (known.low[0], known.high[0]) == (np.nanmin(floats), np.nanmax(floats))
    assert find_range(Arrays([np.full((1, 4, 4), 7, np.int16)] * 3), PixelSpec(1)).high == (8.0,)
    with pytest.raises(ValueError, match="^value_range: of 3 images none has values that can be read"):
        find_range(Arrays([np.full((1, 4, 4), np.nan, np.float32)] * 3), PixelSpec(1))


def test_a_few_of_8_bits_are_not_taken_for_dark_ones():
    """They may be others than those whose headers were looked at before the range is."""
    data = images()
    data[5] = data[9] = data[5].astype(np.uint8)
    with pytest.raises(ValueError, match="^value_range: 2 of 40 images are of 8 bits, and others are not: row 5"):
        find_range(Arrays(data), PixelSpec(2))


def test_what_is_wrong_with_images_is_said():
    """The field first, then the image, then why."""
    one = PillowImage.new("RGB", (6, 4))
    for find in (stored_types, find_statistics):
        with pytest.raises(ValueError, match=r"^channels: row 0: 4 is asked for, but the image \(PIL\) has 3"):
            find(Arrays([one]), PixelSpec(1, channels=(4,)))
    with pytest.raises(ValueError, match="^num_channels: row 1: the image .array. has 3 channel"):
        find_range(Arrays([*images(1), *images(1, channels=3)]), PixelSpec(2))
    with pytest.raises(ValueError, match="^image_mean: of 2 images none can be read; row 0: its header has no window"):
        find_statistics(Arrays([one, one]), PixelSpec(3, value_range=ValueRange(of="window")))
    with pytest.raises(ValueError, match="^none of 1 images .*; row 0: its header has no window, which --value_range"):
        stored_types(Arrays([one]), PixelSpec(3, value_range=ValueRange(of="window")))
    with pytest.raises(ValueError, match="^value_range: of 1 images none has values .*; row 0: gone"):
        find_range(Arrays([BrokenImage("gone")]), PixelSpec(3))


def test_outliers_are_told(caplog):
    data = images()
    data[3][0, 0, 0] = 65535
    assert find_range(Arrays(data), PixelSpec(2)).high == (65535.0,)
    assert "the highest 65535; --value_range" in caplog.text
    far = [(image.astype(np.int64) + 10**8).astype(np.int32) for image in data]
    find_range(Arrays(far), PixelSpec(2))
    low, high = map(float, caplog.text.rpartition("--value_range ")[2].split()[:2])
    assert 10**8 + 16 <= low < 10**8 + 100
    assert 10**8 + 3900 < high <= 10**8 + 4039


def test_a_channel_that_is_hardly_seen_in_the_range_of_all_is_told(caplog):
    rng = np.random.default_rng(0)
    bright, faint = rng.integers(0, 10_000, (8, 1, 30, 30)), rng.integers(200, 300, (8, 1, 30, 30))
    data = list(np.concatenate([bright, faint, np.full_like(faint, 7)], 1).astype(np.uint16))
    assert find_range(Arrays(data), PixelSpec(3)).high == (9999.0,)
    assert "channel(s) 2 fill less than 2% of the range of all" in caplog.text
    assert "--image_mean auto --image_std auto" in caplog.text
    words = caplog.text.partition("or --value_range ")[2].split(",")[0].split()
    pairs = np.array(words, dtype=float).reshape(3, 2)
    assert (pairs[:, 0] < 210).all()
    assert 290 < pairs[1, 1] < 300
    caplog.clear()
    find_range(Arrays([image[:1] for image in data]), PixelSpec(1))
    assert "fill less" not in caplog.text


def test_statistics_are_those_of_numpy():
    data, spec = images(), PixelSpec(2, value_range=ValueRange((0.0,), (4095.0,)))
    found = find_statistics(Arrays(data), spec)
    pixels = (np.stack(data) / 4095).transpose(1, 0, 2, 3).reshape(2, -1)
    np.testing.assert_allclose(found.mean, pixels.mean(1), rtol=1e-6)  # the pixels are float32
    np.testing.assert_allclose(found.std, pixels.std(1), rtol=1e-6)
    assert found.error == [0, 0]
    assert found.images == 40


def test_a_sample_says_how_far_it_may_be_off():
    data = images(1500, channels=1)
    found = find_statistics(Arrays(data), PixelSpec(1, value_range=ValueRange((0.0,), (6000.0,))))
    pixels = np.stack(data) / 6000
    assert found.images == 512
    assert 0 < found.error[0] < 0.01
    assert abs(found.mean[0] - pixels.mean()) < 4 * found.error[0]


def test_photographs_and_constant_channels():
    files = []
    for number in range(3):
        file = io.BytesIO()
        PillowImage.new("RGB", (6, 4), (51 * number, 102, 255)).save(file, "PNG")
        files.append(file.getvalue())
    rows = Dataset.from_dict(
        {"image": [{"bytes": file, "path": None} for file in files], "label": [0] * 3},
        features=Features({"image": Image(), "label": Value("int64")}),
    )
    found = find_statistics(DatasetSource(rows).select("image"), PixelSpec(3))
    np.testing.assert_allclose(found.mean, [0.2, 0.4, 1.0], rtol=1e-12)
    np.testing.assert_allclose(found.std, [np.std([0, 0.2, 0.4]), 1, 1], rtol=1e-9)
