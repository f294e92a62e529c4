"""Files of every kind to pixels: all that can be read is read properly, all else is refused with a reason."""

import contextlib
import io
import itertools
import resource
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, features
from sklearn.datasets import load_sample_images

from benchmarks.fuzz import damaged, originals
from modeling_a2mim.data import decoding
from modeling_a2mim.data.decoding import (
    BrokenImage,
    count_images,
    load_pixels,
    load_tensor,
    open_image,
    open_stored,
    resized_crop,
    to_pixels,
    upright,
    upright_size,
)
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.utils.value_range import ValueRange

from ..image_files import encoded


CHINA, FLOWER = (Image.fromarray(photo) for photo in load_sample_images().images)
LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "PPM": {},
    "JPEG2000": {"irreversible": False},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def decode(data, num_channels: int = 3) -> np.ndarray:
    return np.asarray(to_pixels(upright(open_image(data)), num_channels))


def crop(data, box, size, num_channels: int = 3) -> torch.Tensor:
    return resized_crop(open_image(data), box, size, PixelSpec(num_channels))


def psnr(one, other) -> float:
    error = np.mean((np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.fixture(scope="module")
def photo():
    return FLOWER.crop((100, 100, 260, 220))  # 160 x 120


# What is given


def test_everything_that_a_row_may_hold(tmp_path, photo):
    data = encode(photo, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    values = [data, bytearray(data), path, str(path), photo]
    values += [{"bytes": data, "path": None}, {"bytes": data, "path": "nowhere.png"}]
    values += [{"bytes": None, "path": str(path)}, {"path": str(path)}]
    for value in values:
        assert np.array_equal(decode(value), np.asarray(photo))
    assert open_image(photo) is photo


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": None}])
def test_no_image(value):
    with pytest.raises(BrokenImage, match="a sample holds no image"):
        open_image(value)
    with pytest.raises(BrokenImage, match="a sample holds no image"):
        load_pixels(value, PixelSpec())


def test_files_that_cannot_be_read_are_no_broken_images(tmp_path):
    for value in (tmp_path / "nowhere.png", {"bytes": None, "path": str(tmp_path / "nowhere.png")}):
        with pytest.raises(FileNotFoundError):
            open_image(value)
    with pytest.raises(IsADirectoryError):
        open_image(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"just text",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        b"8BPS\0\1" + bytes(100),
        bytes(1000),
    ],
)
def test_what_is_no_image_of_a_known_format(data):
    with pytest.raises(BrokenImage, match="^opening: .*JPEG, PNG.* or a broken header$"):
        open_image(data)


def test_empty_files():
    for data in (b"", {"bytes": b"", "path": "x.png"}):
        with pytest.raises(BrokenImage, match="^an empty file$"):
            open_image(data)


# How large


def test_bombs_are_refused_by_their_header():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with pytest.raises(BrokenImage, match=r"^50000 x 50000 pixels; expected 1 to 178956970 \(max_pixels\)"):
        open_image(png_header(50_000, 50_000))
    assert time.perf_counter() - start < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_max_pixels(photo, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(png_header(13_000, 13_000)).size == (13_000, 13_000)  # Pillow would warn
        assert open_image(png_header(50_000, 50_000), max_pixels=2_500_000_000).size == (50_000, 50_000)
    with pytest.raises(BrokenImage, match=r"^160 x 120 pixels; expected 1 to 19199"):
        open_image(encode(photo, "JPEG"), max_pixels=160 * 120 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit plays no part, and stays
    for format, options in LOSSLESS.items():
        assert np.array_equal(decode(encode(photo, format, **options)), np.asarray(photo))
    with pytest.raises(BrokenImage):
        open_image(b"nothing")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_threads_leave_pillows_limit_as_it_was(photo):
    limit, data = Image.MAX_IMAGE_PIXELS, encode(photo, "JPEG")
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(decode, [data] * 200))
    assert all(np.array_equal(image, images[0]) for image in images)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_sizes_that_a_file_cannot_have(photo):
    """Headers that claim the largest image allowed. All-white images as small as encoders make them are no such."""
    jpeg, gif, webp = (
        bytearray(encode(photo, "JPEG")),
        bytearray(encode(photo, "GIF")),
        bytearray(encode(photo, "WEBP")),
    )
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 2900, 60_000)
    struct.pack_into("<HH", gif, 6, 60_000, 2900)
    struct.pack_into("<HH", webp, webp.index(b"\x9d\x01\x2a") + 3, 16_000, 11_000)
    for data in (jpeg, gif, webp):
        with pytest.raises(BrokenImage, match=r"^(60000 x 2900|16000 x 11000) pixels cannot be in \d+ bytes of "):
            open_image(data)
    smallest = {"optimize": True, "progressive": True}
    for format, mode, options in (
        ("JPEG", "L", smallest),
        ("JPEG", "RGB", smallest),
        ("GIF", "L", {}),
        ("WEBP", "RGB", {"quality": 0}),
    ):
        assert open_image(encode(Image.new(mode, (4000, 3000), "white"), format, **options)).size == (4000, 3000)
    assert open_image(encode(Image.new("RGB", (2000, 1500)), "WEBP", lossless=True)).size == (2000, 1500)


# What a file holds


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats(format, photo):
    assert np.array_equal(decode(encode(photo, format, **LOSSLESS[format])), np.asarray(photo))


# AVIF is optional in Pillow: not every build can make the file that is read here.
@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(photo):
    assert psnr(decode(encode(photo, "AVIF", quality=95)), photo) > 35


def test_jpeg_is_as_pillow_decodes_it(photo):
    for image in (photo, photo.convert("L")):
        for options in ({}, {"progressive": True}, {"subsampling": 0}):
            data = encode(image, "JPEG", **options)
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(decode(data), expected)
            assert np.array_equal(decode(data + b"trailing garbage" * 100), expected)
            whole = crop(data, (0, 0, 120, 160), (120, 160))
            assert np.array_equal(whole.permute(1, 2, 0), expected)


def test_cmyk_jpeg(photo):
    """Adobe's are inverted, and either CMYK or YCCK."""
    cmyk = photo.convert("CMYK")
    expected = np.asarray(cmyk.convert("RGB"))
    assert psnr(decode(encode(cmyk, "JPEG", quality=98, subsampling=0)), expected) > 38
    cyan, magenta, yellow, key = cmyk.split()
    planes = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    ycck = Image.merge("CMYK", (*(ImageOps.invert(plane) for plane in planes), key))
    data = bytearray(encode(ycck, "JPEG", quality=98, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2  # says that it is YCCK
    assert psnr(decode(data), expected) > 35


def test_palettes(photo):
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    expected = np.asarray(palette.convert("RGB"))
    opacity = bytes(range(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (
            encode(palette, "PNG"),
            encode(palette, "PNG", transparency=opacity),
            encode(palette, "PNG", transparency=5),
            encode(palette, "GIF"),
            encode(palette, "GIF", transparency=5),
            encode(palette, "TIFF"),
        ):
            assert np.array_equal(decode(data), expected)
            assert np.array_equal(decode(data, 1), np.asarray(Image.fromarray(expected).convert("L")))
    alpha = decode(encode(palette, "PNG", transparency=opacity), 4)[..., 3]
    assert np.array_equal(alpha, np.asarray(palette))


def test_transparency_is_dropped_or_kept(photo):
    transparent = photo.convert("RGBA")
    transparent.putalpha(photo.convert("L"))
    data = encode(transparent, "PNG")
    assert np.array_equal(decode(data), np.asarray(photo))
    assert np.array_equal(decode(data, 4), np.asarray(transparent))
    assert np.array_equal(
        decode(encode(transparent.convert("LA"), "PNG")), np.asarray(photo.convert("L").convert("RGB"))
    )
    assert (decode(encode(photo, "PNG"), 4)[..., 3] == 255).all()
    premultiplied = transparent.convert("RGBa")
    assert np.array_equal(np.asarray(to_pixels(premultiplied, 3)), np.asarray(premultiplied.convert("RGBA"))[..., :3])


def test_one_bit(photo):
    image = photo.convert("1")
    for data in (encode(image, "PNG"), encode(image, "TIFF", compression="group4")):
        assert np.array_equal(decode(data, 1), np.asarray(image) * np.uint8(255))
        assert np.array_equal(decode(data)[..., 0], np.asarray(image) * np.uint8(255))


def test_more_than_eight_bits_stay_what_they_are():
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    big_endian = Image.frombytes("I;16B", (64, 64), values.astype(">u2").tobytes())
    images = [Image.fromarray(values), big_endian, Image.fromarray(values.astype(np.int32))]
    images.append(Image.fromarray(values.astype(np.float32)))
    files = [encode(images[0], "PNG"), *(encode(image, "TIFF") for image in images)]
    for count in (1, 3):
        spec = PixelSpec(count, value_range=ValueRange((0,), (65535,)))
        for value in (
            *images,
            *files,
            values,
            values[None].astype(np.float64),
            torch.from_numpy(values.astype(np.int32)),
        ):
            found = load_pixels(value, spec)
            expected = torch.from_numpy((values / 65535).astype(np.float32))
            assert torch.equal(found, expected.expand(count, -1, -1))
            with pytest.raises(
                BrokenImage, match="its values are of .*the model takes those of 8 bits; --value_range"
            ):
                load_pixels(value, PixelSpec(count))
    with pytest.raises(BrokenImage, match="its values are of mode I"):
        to_pixels(images[0], 1)


def animation(format: str, photo: Image.Image) -> tuple[list[Image.Image], bytes]:
    """Three frames, and the file of them."""
    first = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).convert("RGB")
    frames = [first, *(first.rotate(90 * k) for k in (1, 2))]
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    return frames, encode(first, format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animations(format, photo, caplog, monkeypatch):
    """Their first frame, which is said once, or each a sample; never the channels of an image."""
    monkeypatch.setattr(decoding, "_cut_animations", itertools.count())
    frames, data = animation(format, photo)
    value = {"bytes": data, "path": "a/b"}
    most = 5 if format == "AVIF" else 0
    for pages in ("first", None, None):
        found = np.asarray(load_pixels(value, PixelSpec(3, pages=pages)))
        assert np.abs(found.astype(int) - np.asarray(frames[0])).mean() <= most
    assert caplog.text.count("b is an animation; of these the first frame is taken, --pages samples takes all") == 1
    assert count_images(data) == 3
    for page, frame in enumerate(frames):
        found = np.asarray(load_pixels({**value, "page": page}, PixelSpec(3, pages="samples")))
        assert np.abs(found.astype(int) - np.asarray(frame)).mean() <= most
    for pages, page, message in (
        ("channels", None, "frames of an animation are no channels; --pages samples or first"),
        ("samples", 3, r"there is no page 3 \(from 0\) among 3 frames"),
        ("samples", None, "3 frames, each a sample; which one is meant is not said"),
    ):
        with pytest.raises(BrokenImage, match=message):
            open_stored({**value, "page": page}, PixelSpec(3, pages=pages))
    still = encode(frames[0], format)
    assert count_images(still) == 1
    load_pixels(still, PixelSpec(3, pages="channels"))


def test_animations_that_are_damaged(photo):
    """Where a first frame is whole, the others do not matter; a file cannot claim more frames than it has bytes."""
    frames, data = animation("GIF", photo)
    for length in range(len(data) // 3, len(data) // 2, 7):
        found = [image_or_none(read, data[:length]) for read in (open_image, lambda v: open_stored(v, PixelSpec()))]
        assert found[0] == found[1]
    frames, data = animation("PNG", photo)
    place = data.index(b"acTL") - 4
    chunk = b"acTL" + struct.pack(">II", 2_000_000_000, 0)
    data = data[:place] + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[place + 20 :]
    with pytest.raises(BrokenImage, match="2000000000 frames in .* bytes"):
        count_images(data)
    assert np.array_equal(decode(data), np.asarray(frames[0]))


def image_or_none(read, data: bytes) -> Image.Image | None:
    with contextlib.suppress(BrokenImage):
        return to_pixels(read(data), 3)
    return None


def test_reduced_and_truncated_multi_picture_jpeg(photo):
    data = encode(photo.resize((1600, 1200)), "MPO", save_all=True, append_images=[photo])
    image = open_image(data)
    assert image.format == "MPO"
    small = resized_crop(image, (0, 0, 1200, 1600), (60, 80), PixelSpec(3))
    assert psnr(small.permute(1, 2, 0), photo.resize((80, 60))) > 25
    assert image.size == (200, 150)


# The right way up

STORED = {  # an image with that orientation, from the upright one
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.few(4)
@pytest.mark.parametrize("orientation", STORED)
def test_orientations(orientation):
    """A crop of a rotated file is that of the upright one, whole or at reduced scale; edges are no multiples of 8."""
    image = CHINA.crop((3, 5, 600, 402))  # 597 x 397
    stored = image
    for transpose in STORED[orientation]:
        stored = stored.transpose(transpose)
    box = (31, 77, 301, 419)
    for format, options in [*LOSSLESS.items(), ("JPEG", {"quality": 95, "subsampling": 0})]:
        if format in ("BMP", "PPM", "JPEG2000"):
            continue
        data = encode(stored, format, exif=exif(orientation), **options)
        assert upright_size(open_image(data)) == (397, 597)
        whole = decode(data)
        if format != "JPEG":
            assert np.array_equal(whole, np.asarray(image))
        top, left, height, width = box
        assert np.array_equal(
            crop(data, box, (height, width)).permute(1, 2, 0), whole[top : top + height, left : left + width]
        )
        for size in ((90, 110), (200, 230)):  # a JPEG is decoded at 1/2, and whole
            expected = Image.fromarray(whole).crop(_pillow(box)).resize(size[::-1], Image.Resampling.BICUBIC)
            assert psnr(crop(data, box, size).permute(1, 2, 0), expected) > 38


def _pillow(box):
    top, left, height, width = box
    return left, top, left + width, top + height


def test_an_orientation_that_is_none(photo):
    assert np.array_equal(decode(encode(photo, "PNG", exif=exif(9))), np.asarray(photo))


# Fast, and as good

PHOTOGRAPHS = ["astronaut", "chelsea", "coffee", "rocket", "retina", "camera", "grass"]


def photograph(name: str) -> np.ndarray:
    if name in ("china", "flower"):
        return np.asarray({"china": CHINA, "flower": FLOWER}[name])
    return getattr(pytest.importorskip("skimage.data"), name)()


def large(name: str) -> Image.Image:
    """4000 x 3000, tiled with mirrors: more detail than any photograph has."""
    tile = photograph(name)
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]])
    repeats = (-(-3000 // tile.shape[0]), -(-4000 // tile.shape[1]), 1)[: tile.ndim]
    return Image.fromarray(np.tile(tile, repeats)[:3000, :4000])


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["china", "flower", *PHOTOGRAPHS])
def test_reduced_decoding_is_as_good_as_full(name):
    data = encode(large(name), "JPEG", quality=90)
    whole = Image.open(io.BytesIO(data))
    whole.load()
    generator = np.random.default_rng(0)
    # At 224 px the scale is 1/8 with 1.5 to 1.7 left, at 230 px 1/4; the other two are 1/4 and 1/2 with little more.
    for side in (224, 230, 440, 880):
        height = int(generator.integers(max(2700, int(1.5 * 2 * side)), 2900))
        width = int(generator.integers(3500, 4000))
        top, left = int(generator.integers(0, 3000 - height)), int(generator.integers(0, 4000 - width))
        box = (top, left, height, width)
        image = open_image(data)
        pixels = resized_crop(image, box, (side, side), PixelSpec(len(whole.getbands())))
        assert image.size != (4000, 3000)
        expected = whole.crop(_pillow(box)).resize((side, side), Image.Resampling.BICUBIC)
        pixels = pixels.permute(1, 2, 0).squeeze()
        assert psnr(pixels, expected) > 38
        assert abs(float(pixels.float().mean()) - float(np.mean(expected))) < 0.5


def test_reduced_decoding_begins_between_pixels():
    """A crop that begins within a pixel of the reduced image is not that of its neighbours."""
    image = CHINA.resize((2000, 1500), Image.Resampling.BICUBIC)
    data = encode(image, "JPEG", quality=95, subsampling=0)
    whole, size = Image.open(io.BytesIO(data)), (100, 130)
    for offset in range(8):
        pixels = crop(data, (50 + offset, 90 + offset, 1400, 1820), size).permute(1, 2, 0)
        exact, *wrong = (
            whole.crop(_pillow((50 + offset + by, 90 + offset + by, 1400, 1820))).resize(
                size[::-1], Image.Resampling.BICUBIC
            )
            for by in (0, -2, 2)
        )
        assert psnr(pixels, exact) > max(psnr(pixels, other) for other in wrong) + 6


def test_large_images_of_other_formats():
    image = large("china").crop((0, 0, 2000, 1500))
    box, size = (10, 20, 1400, 1900), (160, 200)
    expected = image.crop(_pillow(box)).resize(size[::-1], Image.Resampling.BICUBIC)
    assert psnr(crop(encode(image, "PPM"), box, size).permute(1, 2, 0), expected) > 38


def test_small_crops_differ_from_pillows_by_rounding(photo):
    for channels, mode in ((1, "L"), (3, "RGB")):
        image = photo.convert(mode)
        data = encode(image, "PNG")
        for size in ((50, 70), (200, 300)):
            expected = np.asarray(image.crop((7, 3, 107, 93)).resize(size[::-1], Image.Resampling.BICUBIC), dtype=int)
            pixels = crop(data, (3, 7, 90, 100), size, channels)
            assert pixels.dtype == torch.uint8
            assert pixels.shape == (channels, *size)
            assert np.abs(pixels.permute(1, 2, 0).squeeze().numpy() - expected).max() <= 1


def test_transparent_pixels_do_not_bleed_into_others():
    image = Image.new("RGBA", (200, 200), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 100, 200))
    pixels = crop(encode(image, "PNG"), (0, 0, 200, 200), (50, 50), 4)
    assert pixels[0, pixels[3] > 0].max() == 0


def test_a_pil_image_is_not_changed():
    image = Image.open(io.BytesIO(encode(CHINA, "JPEG")))  # not decoded yet
    first = crop(image, (0, 0, 427, 640), (32, 32))
    assert image.size == CHINA.size
    assert torch.equal(crop(image, (0, 0, 427, 640), (32, 32)), first)


def test_arrays_are_cropped_as_they_are():
    array, spec = np.random.default_rng(0).integers(0, 256, (40, 50, 5), dtype=np.uint8), PixelSpec(5)
    pixels = resized_crop(open_stored(array, spec), (3, 4, 20, 30), (20, 30), spec)
    assert np.array_equal(pixels, array[3:23, 4:34].transpose(2, 0, 1))
    floats = resized_crop(open_stored(array.astype(np.float32) / 255, spec), (3, 4, 20, 30), (10, 15), spec)
    assert floats.dtype == torch.float32
    assert floats.shape == (5, 10, 15)


def test_channels():
    rgb = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert to_pixels(rgb, 1).mode == "L"
    assert to_pixels(rgb.convert("P"), 3).mode == "RGB"
    assert to_pixels(rgb, 4).mode == "RGBA"
    array = np.zeros((4, 6, 5), dtype=np.uint8)
    assert load_tensor(array, PixelSpec(5)).shape == (5, 4, 6)
    assert load_tensor(array, PixelSpec(4)).shape == (4, 6, 5)
    for image, channels, message in [
        (rgb, 5, "^num_channels: 5, but the dataset holds RGB images"),
        (array, 3, r"^num_channels: the image \(array\) has . channel"),
    ]:
        with pytest.raises(ValueError, match=message) as raised:
            load_tensor(image, PixelSpec(channels))
        assert not isinstance(raised.value, BrokenImage)  # the configuration is


# What is broken

ENCODED = {
    **{format: encode(FLOWER.resize((160, 120)), format, **options) for format, options in LOSSLESS.items()},
    "JPEG": encode(FLOWER.resize((160, 120)), "JPEG"),
    "progressive JPEG": encode(FLOWER.resize((160, 120)), "JPEG", progressive=True),
    "GIF": encode(FLOWER.resize((160, 120)), "GIF"),
    "uncompressed TIFF": encode(FLOWER.resize((160, 120)), "TIFF"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ENCODED)
def test_truncated_files(name):
    data = ENCODED[name]
    decode(data)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(BrokenImage, match="^(opening|decoding): "):
            crop(data[: int(len(data) * share)], (0, 0, 120, 160), (40, 40))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_damaged_files_are_decoded_or_refused():
    files = list(originals().values())
    outcomes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        for number in range(400):
            data = damaged(files[number % len(files)], np.random.default_rng(number))
            start = time.perf_counter()
            try:
                image = open_image(data)
                outcomes.append(crop(data, (0, 0, *upright_size(image)), (32, 32)).shape == (3, 32, 32))
            except BrokenImage as error:
                outcomes.append(str(error) != "")
            assert time.perf_counter() - start < 2
    assert len(outcomes) == 400
    assert all(outcomes)


def test_images_by_the_names_of_their_files():
    """Formats that noise could be taken for are tried where the name says so."""
    data = encoded(7, "TGA")
    assert decoding.open_image({"bytes": data, "path": "a/x.TGA"}).format == "TGA"
    with pytest.raises(decoding.BrokenImage):
        decoding.open_image(data)
    for name in ("a.eps", "a.ps", "a.svg", "a.txt", "a", "a.h5"):
        assert not decoding.is_image_file(name)
