"""The page of images that are alike: self-contained, escaped, with thumbnails of whatever is stored."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.inference.similarity_page import SIDE, Group, Shown, is_page, thumbnail, write_page


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def shown(stored):
    uri, is_small = thumbnail(stored)
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,([\w+/=]+)", uri).groups()
    assert is_small == (kind == "png")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.mode, image.format) == ("RGB", kind.upper())
    assert not image.getexif()
    return image


def test_small_images_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 255, (28, 20, 3), dtype=np.uint8)
    assert np.array_equal(shown(file_of(Image.fromarray(pixels))), pixels)
    for array in (pixels, pixels.transpose(2, 0, 1)):
        assert np.array_equal(shown(array), pixels)
    assert np.array_equal(np.asarray(shown(pixels[..., 0]))[..., 1], pixels[..., 0])


def test_large_images_are_reduced():
    image = Image.new("RGB", (900, 300), (200, 30, 30))
    found = shown(file_of(image, "JPEG", quality=95))
    assert found.size == (SIDE, round(SIDE / 3))
    np.testing.assert_allclose(np.asarray(found).mean((0, 1)), (200, 30, 30), atol=3)
    assert image.size == (900, 300)
    shown(image)
    assert image.size == (900, 300)


def test_turned_grey_deep_and_transparent_images():
    exif = Image.Exif()
    exif[0x112] = 6  # turn it right by 90 degrees
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))
    found = np.asarray(shown(file_of(image, "JPEG", exif=exif, quality=95)))
    assert found.shape == (40, 20, 3)
    assert found[:18].mean() > 250
    assert found[22:].mean() < 5
    deep = Image.fromarray(np.linspace(1000, 3000, 100).reshape(10, 10).astype(np.uint16))  # stretched, to be seen
    assert np.ptp(np.asarray(shown(file_of(deep, "TIFF")))) == 255
    clear = Image.new("RGBA", (10, 10), (10, 20, 30, 0))
    assert np.asarray(shown(file_of(clear)))[0, 0].tolist() == [10, 20, 30]


def test_broken_images():
    with pytest.raises(BrokenImage, match="an empty file"):
        thumbnail({"bytes": b"", "path": None})
    with pytest.raises(BrokenImage, match="gone"):
        thumbnail(BrokenImage("gone"))


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_a_page(tmp_path):
    name = "<b>&\"'.png"
    image = file_of(Image.new("RGB", (8, 8)))
    groups = [Group("first <i>", [Shown(image, name), Shown(image, "b.png", 0.98765)])]
    groups.append(Group("second", [Shown(BrokenImage("gone <script>"), "c.png", 0.5)]))
    write_page(tmp_path / "page.html", "model <x>", ["a & b"], [("Part", groups)])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "b>", "i", "x", "link", "iframe"} & set(tags)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert [attributes["alt"] for attributes in images] == [name, "b.png"]
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)
    assert {"model <x>", "a & b", "first <i>", name, "0.9877", "query"} <= set(reader.text)
    assert "cannot be shown: gone <script>" in reader.text
    assert "http:" not in text
    assert "https:" not in text
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert is_page(tmp_path / "page.html")
    (tmp_path / "other.html").write_text("<!doctype html>")
    assert not is_page(tmp_path / "other.html")
