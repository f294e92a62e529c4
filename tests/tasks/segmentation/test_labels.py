"""Values of pixels and the classes they stand for: files of names, maps of all modes, what is ignored."""

import io
import json
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from modeling_a2mim.data.decoding import BrokenImage, open_image, orientation, turned
from modeling_a2mim.tasks.segmentation.labels import LabelValues, read_labels, read_pixels


COLOURS = {0x000000: (0, 0, 0), 0xFF0000: (255, 0, 0), 0x0000FF: (0, 0, 255)}


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return {"bytes": stream.getvalue(), "path": None}


def png(pixels, mode=None):
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([255 - i // 3 for i in range(768)])
    return encoded(image if mode in (None, "P", "I;16") else image.convert(mode))


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "RGB", "LA", "RGBA"])
def test_modes_of_maps(mode):
    """Grey in several channels is grey; of a palette, the indices count."""
    values = np.array([[0, 1, 2], [150, 254, 255]], dtype=np.uint16 if mode == "I;16" else np.uint8)
    pixels, coloured = read_pixels(png(values, mode))
    assert pixels.tolist() == values.tolist()
    assert not coloured
    reduced = LabelValues([f"{i}" for i in range(255)], reduce_labels=True).read(png(values, mode))
    assert reduced.tolist() == [[255, 0, 1], [149, 253, 255]]
    if mode == "I;16":
        assert read_pixels(png(values * 200))[0].max() == 51000


DEEP = np.repeat([[0, 1], [300, 26000]], 5, axis=1).astype(np.uint16)


def tiff(values, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def packed(values, bits):
    """Rows of values of `bits` bits, each row of whole bytes."""
    parts = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    return np.packbits(parts.reshape(len(values), -1), axis=1)


def small_png(values, bits):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.tobytes() for row in packed(values, bits))
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def small_tiff(values, bits, white):
    """Of one strip, where 0 is white or black."""
    data = packed(values, bits).tobytes()
    tags = [(256, values.shape[1]), (257, len(values)), (258, bits), (259, 1), (262, 0 if white else 1)]
    tags += [(273, 200), (277, 1), (278, len(values)), (279, len(data))]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + body).ljust(200, b"\0") + data


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_values_of_few_bits_are_kept(bits):
    """Which Pillow makes 0 to 255, and turns over where 0 is white."""
    values = np.arange(2**bits).reshape(2, -1)
    stored = [small_png(values, bits), *(small_tiff(values, bits, white) for white in (True, False))]
    if bits == 8:
        stored.append(tiff(values.astype(np.uint8), photometric="miniswhite", extratags=[(42113, "s", 0, "9", True)]))
    for data in stored:
        pixels, coloured = read_pixels(data)
        assert pixels.tolist() == values.tolist()
        assert not coloured


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (imagecodecs.png_encode(np.dstack([DEEP] * 3)), DEEP),
        (imagecodecs.png_encode(np.dstack([DEEP, DEEP * 0 + 65535])), DEEP),
        (tiff(np.dstack([DEEP] * 3), photometric="rgb"), DEEP),
        (tiff(np.stack([DEEP] * 3), photometric="rgb", planarconfig="separate"), DEEP),
        (tiff(DEEP, photometric="miniswhite"), DEEP),
        (tiff(DEEP.astype(np.int64) - 1), DEEP.astype(int) - 1),
        (tiff((DEEP % 100).astype(np.int8) - 1), (DEEP % 100).astype(int) - 1),
        (imagecodecs.jpeg2k_encode(DEEP, level=0, reversible=True), DEEP),
        (npy(DEEP[None]), DEEP),
        (b"P5\n10 2\n26000\n" + DEEP.astype(">u2").tobytes(), DEEP),
        (b"P5\n10 2\n6\n" + (DEEP % 7).astype(np.uint8).tobytes(), DEEP % 7),
        (b"P2\n10 2\n255\n" + " ".join(map(str, (DEEP % 7).flat)).encode(), DEEP % 7),
    ],
    ids=lambda data: f"{data[:4]}" if isinstance(data, bytes) else "",
)
def test_values_of_more_than_eight_bits_are_kept(data, expected):
    """As they are stored, where Pillow would cut or stretch them."""
    pixels, coloured = read_pixels(data)
    assert pixels.tolist() == expected.tolist()
    assert not coloured


@pytest.mark.parametrize("format", ["TIFF", "GIF", "PNG", "WEBP"])
def test_maps_of_several_pages(format):
    """One page for each class, say, of which the first one is not the map."""
    pages = [Image.fromarray(np.full((8, 8), 40 * k, np.uint8)) for k in range(3)]
    with pytest.raises(BrokenImage, match="^its map of classes has 3 pages or frames; expected one$"):
        read_pixels(encoded(pages[0], format, save_all=True, append_images=pages[1:]))


def test_what_is_no_map():
    with pytest.raises(
        ValueError, match="^label_column_name: expected maps with one class for each pixel, .* 1 channel.s. of float32"
    ):
        read_pixels(encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="^label_column_name: expected maps of colours, .* 1 channel.s. of uint16"):
        read_pixels(png(np.zeros((2, 2), dtype=np.uint16)), colours=True)
    with pytest.raises(ValueError, match="maps with one class for each pixel, found 3 channel.s. of uint16"):
        read_pixels(tiff(np.dstack([DEEP, DEEP + 1, DEEP]), photometric="rgb"))
    for data, message in ((npy(DEEP.astype(np.int64) << 30), "more than 32 bits"), (b"P2\n1 1\n6\n5", "as text")):
        with pytest.raises(BrokenImage, match=message):
            read_pixels(data)
    stored = png(np.zeros((90, 90), dtype=np.uint8))
    with pytest.raises(BrokenImage):
        read_pixels({**stored, "bytes": stored["bytes"][:60]})
    with pytest.raises(BrokenImage, match="holds colours"):
        LabelValues(["a", "b"]).read(png(np.uint8([[[0, 0, 9]]])))


def test_colours():
    """As they are, or of a palette; and back to grey where nobody names colours."""
    image = Image.fromarray(np.uint8([[COLOURS[0], COLOURS[0xFF0000]], [COLOURS[0x0000FF], COLOURS[0]]]))
    labels = LabelValues(["ground", "car"], [0, 0xFF0000], 0x0000FF, colours=True)
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    for one in (image, image.convert("RGBA"), palette):
        assert labels.read(encoded(one)).tolist() == [[0, 1], [255, 0]]
    assert labels.describe() == "#000000 ground, #ff0000 car"
    assert read_pixels(encoded(image))[1]
    with pytest.raises(BrokenImage, match="holds the value #0000ff, which is no class"):
        LabelValues(["ground", "car"], [0, 0xFF0000], None, colours=True).read(encoded(image))


def test_values_become_classes():
    values = np.uint8([[0, 255, 128], [7, 0, 255]])
    labels = LabelValues(["ground", "defect"], [0, 255], 128)
    assert labels.ignored == 128
    with pytest.raises(BrokenImage, match="holds the value 7, which is no class"):
        labels.read(png(values))
    assert labels.read(png(values[:1])).tolist() == [[0, 1, 128]]
    assert LabelValues(list("abc"), [0, 128, 255], 1).ignored == 255  # 1 is the class b
    many = LabelValues([str(i) for i in range(300)], None, None)
    assert many.ignored == 300
    assert many.read(png(np.uint16([[0, 255, 299]]))).tolist() == [[0, 255, 299]]
    signed = np.int32([[0, 1, -1]])
    stored = encoded(Image.fromarray(signed), "TIFF")
    assert LabelValues(["a", "b"], None, -1).read(stored).tolist() == [[0, 1, 255]]
    for ignored in (None, -100, 255):  # a negative value is the last class of nothing
        with pytest.raises(BrokenImage, match="holds the value -1, which is no class"):
            LabelValues(["a", "b"], None, ignored).read(stored)


def test_classes_are_told_apart_by_their_names():
    labels = LabelValues(["cat", "dog"], [10, 20]).ordered_as(["bird", "dog", "cat"])
    assert labels.names == ["bird", "dog", "cat"]
    assert labels.read(png(np.uint8([[10, 20, 255]]))).tolist() == [[2, 1, 255]]
    with pytest.raises(ValueError, match="^labels_file: 'dog' is no class of the model, which knows cat"):
        LabelValues(["cat", "dog"]).ordered_as(["cat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"one": "a"}', "must name classes by the values of their pixels, 0 to 65535 or #rrggbb; it has 'one'"),
        ('{"-1": "a", "0": "b"}', "it has '-1'"),
        ('{"70000": "a"}', "it has '70000'"),
        ('{"#ff00": "a"}', "it has '#ff00'"),
        ('{"0": "a", "#ff0000": "b"}', "has numbers and colours"),
        ('["a", "b", "a"]', "names two classes 'a'"),
        ('{"0": "a", "0": "b"}', "names two classes of 0"),
        ('{"#FF0000": "a", "#ff0000": "b"}', "names two classes of #ff0000"),
        ("[1, 2]", "must hold names"),
        ('{"wall": 0}', "must hold names"),
        ("{}", "must hold names"),
        ("nothing", "cannot be read"),
    ],
)
def test_wrong_labels_files(tmp_path, content, message):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ValueError, match=f"^labels_file: .*{message}"):
        read_labels(tmp_path / "names.json")


def test_labels_files(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"255": "k", "0": "a", "10": "b"}))
    assert read_labels(path) == ({0: "a", 10: "b", 255: "k"}, False)
    assert list(read_labels(path)[0]) == [0, 10, 255]
    path.write_text('["a", "b"]', encoding="utf-8-sig")
    assert read_labels(path) == ({0: "a", 1: "b"}, False)
    path.write_text('{"#FF0000": "car", "#000000": "ground"}')
    assert read_labels(path) == ({0xFF0000: "car", 0: "ground"}, True)


def test_turned():
    """Arrays turn as Pillow turns images of the same orientation."""
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for number in range(1, 9):
        exif = Image.Exif()
        exif[274] = number
        stored = open_image(encoded(Image.fromarray(pixels), exif=exif)["bytes"])
        assert turned(pixels, orientation(stored)).tolist() == np.asarray(ImageOps.exif_transpose(stored)).tolist()
