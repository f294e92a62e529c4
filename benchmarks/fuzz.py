"""Broken images through the pipeline of pre-training: each must be decoded or skipped with a reason, within 2 s.

Photographs of scikit-learn in many kinds of JPEG, PNG, WebP, TIFF and GIF are damaged at random (see `damaged`), with
an undamaged file after every ten, which must decode. A child process decodes, so that a crash or an endless loop in a
codec is noticed, and known by its number, which is the seed of the damage as well. A quarter more files that are
no photographs (`fuzz_arrays.py`: TIFF of every type, NumPy, DICOM, and some others) follow, whole and by a crop.

    python benchmarks/fuzz.py [--count 10000]
"""

import argparse
import collections
import io
import itertools
import json
import multiprocessing
import os
import platform
import re
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import PIL
import pydicom
import tifffile
import torch
import torchvision
from PIL import Image, features
from sklearn.datasets import load_sample_images
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz_arrays import array_originals  # noqa: E402
from modeling_a2mim import A2MIMConfig  # noqa: E402
from modeling_a2mim.data.decoding import (  # noqa: E402
    BrokenImage,
    as_array,
    open_stored,
    resized_crop,
    upright_size,
)
from modeling_a2mim.data.pixel_spec import PixelSpec, read_values  # noqa: E402
from modeling_a2mim.data.transforms import PreTrainTransform, seeded  # noqa: E402
from modeling_a2mim.utils.value_range import ValueRange  # noqa: E402


SLOWEST = 2.0  # seconds for one file
HANGING = 60.0  # seconds until the child is given up
PRISTINE_EVERY = 10
MOST_MEGABYTES = 1024
DEEP = ("png 16 bit", "tiff 16 bit", "tiff float")  # beside the photographs, but not of 8 bits
FIRST_CHANNEL = PixelSpec(1, channels=(1,), value_range=ValueRange((0.0,), (4095.0,)), pages="first")
OF_CHANNELS = replace(FIRST_CHANNEL, pages=None)
CHANNELS_ALONE = ("NumPy channels", "NumPy deflate")  # three axes, which may be pages wherever --pages is given
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def originals() -> dict[str, bytes]:
    """Undamaged files, small but for one JPEG that is decoded at reduced scale."""
    photo = Image.fromarray(load_sample_images().images[0]).crop((100, 100, 300, 250))
    grey, palette, alpha = photo.convert("L"), photo.convert("P"), photo.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    frames = {"save_all": True, "append_images": [photo.rotate(20), photo.rotate(40)]}
    kinds = {
        "jpeg": (photo, "JPEG", {}),
        "jpeg progressive": (photo, "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg grey": (grey, "JPEG", {}),
        "jpeg CMYK": (photo.convert("CMYK"), "JPEG", {}),
        "jpeg rotated": (photo, "JPEG", {"exif": rotated}),
        "jpeg large": (photo.resize((1600, 1200)), "JPEG", {"restart_marker_rows": 8}),
        "png": (photo, "PNG", {}),
        "png palette": (palette, "PNG", {"transparency": bytes(range(0, 250, 10))}),
        "png RGBA": (alpha, "PNG", {}),
        "png 16 bit": (deep, "PNG", {}),
        "png 1 bit": (photo.convert("1"), "PNG", {"exif": rotated}),
        "png animated": (photo, "PNG", frames),
        "webp": (photo, "WEBP", {"exif": rotated}),
        "webp lossless": (photo, "WEBP", {"lossless": True}),
        "webp alpha": (alpha, "WEBP", {}),
        "webp animated": (photo, "WEBP", frames),
        "tiff": (photo, "TIFF", {}),
        "tiff lzw": (photo, "TIFF", {"compression": "tiff_lzw"}),
        "tiff deflate": (alpha, "TIFF", {"compression": "tiff_adobe_deflate", "exif": rotated}),
        "tiff jpeg": (photo, "TIFF", {"compression": "jpeg"}),
        "tiff fax": (photo.convert("1"), "TIFF", {"compression": "group4"}),
        "tiff 16 bit": (deep, "TIFF", {"compression": "packbits"}),
        "tiff float": (Image.fromarray(np.asarray(grey) / np.float32(255)), "TIFF", {}),
        "gif": (palette, "GIF", {}),
        "gif animated": (photo, "GIF", frames),
    }
    return {name: encode(*kind) for name, kind in kinds.items()}


def encode(image: Image.Image, format: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def damaged(data: bytes, generator: np.random.Generator) -> bytes:
    """One to three of: bits flipped anywhere or in the header; a range overwritten, doubled or left out; the end cut
    off; a number in the header, or a field that says how large something is, made another one."""
    data = bytearray(data)
    for _ in range(generator.integers(1, 4)):
        kind = generator.choice(["bits", "header bits", "range", "double", "drop", "cut", "number", "field", "field"])
        start, length = int(generator.integers(len(data))), int(2 ** generator.uniform(0, 12))
        if kind in ("bits", "header bits"):
            end = len(data) if kind == "bits" else min(len(data), 200)
            for place in generator.integers(0, end, generator.integers(1, 20)):
                data[place] ^= 1 << int(generator.integers(8))
        elif kind == "range":
            fill = generator.integers(0, 256, length, dtype=np.uint8).tobytes()
            data[start : start + length] = generator.choice([bytes(length), b"\xff" * length, fill])[
                : len(data) - start
            ]
        elif kind == "double":
            data[start:start] = data[start : start + length]
        elif kind == "drop":
            del data[start : start + length]
        elif kind == "cut":
            del data[start:]
        else:
            places = list(size_fields(data)) if kind == "field" else []
            place, code = places[generator.integers(len(places))] if places else (int(generator.integers(300)), None)
            code = code or str(generator.choice(["<H", ">H", "<I", ">I"]))
            most = 256 ** struct.calcsize(code)
            value = generator.choice([*(e for e in EXTREMES if e < most), int(2 ** generator.uniform(0, 17)) % most])
            value = generator.choice(np.frombuffer(b"0123456789,()<|", np.uint8)) if code == "B" else value
            if place + struct.calcsize(code) <= len(data):
                struct.pack_into(code, data, place, int(value))
        if len(data) < 2:
            break
    if data.startswith(b"\x89PNG") and generator.random() < 0.8:
        mend_checksums(data)  # or nearly every damaged PNG would be refused for them
    return bytes(data)


def size_fields(data: bytearray) -> Iterator[tuple[int, str]]:
    """Places, and `struct` codes, of fields with sizes: of the image, of chunks and segments, of TIFF's tags."""
    if data.startswith(b"\xff\xd8"):
        for match in re.finditer(b"\xff[\xc0-\xcf\xda\xdb\xdd-\xef]", data):
            yield match.start() + 2, ">H"
            if match[0][1] in (0xC0, 0xC2):
                yield from ((match.start() + 5, ">H"), (match.start() + 7, ">H"))
    elif data.startswith(b"\x89PNG"):
        yield from ((16, ">I"), (20, ">I"))
        yield from ((match.start() - 4, ">I") for match in re.finditer(b"IHDR|PLTE|tRNS|IDAT|fcTL|fdAT|eXIf", data))
    elif data.startswith(b"GIF8"):
        yield from ((6, "<H"), (8, "<H"))
        for match in re.finditer(b"\x2c\0\0\0\0", data):
            yield from ((match.start() + 5, "<H"), (match.start() + 7, "<H"))
    elif data.startswith(b"RIFF"):
        yield 4, "<I"
        for match in re.finditer(b"VP8[ LX]|ANIM|ANMF|ALPH|EXIF", data):
            yield from ((match.start() + 4, "<I"), *((match.start() + k, "<H") for k in (9, 11, 12, 14, 15)))
    elif data[:4] in (b"II*\0", b"MM\0*") and len(data) > 8:
        order = "<" if data[:2] == b"II" else ">"
        table = struct.unpack_from(order + "I", data, 4)[0]
        if table + 2 <= len(data):
            count = struct.unpack_from(order + "H", data, table)[0]
            yield from ((table + 2 + 12 * k + 8, order + "I") for k in range(min(count, 40)))
            yield from ((table + 2 + 12 * k, order + "H") for k in range(min(count, 40)))
    elif data.startswith(b"II+\0"):
        table = struct.unpack_from("<Q", data, 8)[0]
        if table + 8 <= len(data):
            yield from ((table + 8 + 20 * k + 12, "<Q") for k in range(min(data[table], 40)))
    elif data.startswith(b"\x93NUMPY"):
        yield 8, "<H"
        yield from ((match.start(), "B") for match in re.finditer(rb"\d|[<>|iuf(,)]", data[:128]))
    elif data.startswith(b"PK"):
        for match in re.finditer(b"PK\1\2", data):
            yield from ((match.start() + k, "<I") for k in (20, 24, 42))
        yield from ((match.start(), "B") for match in re.finditer(rb"\d", data[40:170]))
    elif data[128:132] == b"DICM":
        for match in re.finditer(rb"\x28\0[\x02-\x52]\0|\xe0\x7f\x10\0|\x02\0.\0", data[:2000]):
            yield from ((match.start() + k, "<H") for k in (2, 6, 8))
            yield match.start() + 8, "<I"
    elif data[344:348] == b"n+1\0":
        yield from ((k, "<H") for k in (40, 42, 44, 46, 48, 70, 72))
        yield from ((k, "<I") for k in (108, 112, 116))


def mend_checksums(data: bytearray) -> None:
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + struct.unpack_from(">I", data, place)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4


def attempt(transform: PreTrainTransform, data: bytes, number: int) -> tuple[str, str]:
    """(decoded, skipped or failed; why)"""
    try:
        with seeded(0, number), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            sample = transform({"bytes": data, "path": None})
    except BrokenImage as error:
        return "skipped", str(error)
    except Exception as error:
        other = str(error).startswith("num_channels: the image")  # as a photograph of other channels would
        return "skipped" if other else "failed", f"{type(error).__name__}: {error}"
    pixels = sample["pixel_values"]
    wrong = pixels.shape != (3, 224, 224) or pixels.dtype != torch.float32 or not pixels.isfinite().all()
    return ("failed", f"{tuple(pixels.shape)}, {pixels.dtype}, or not finite") if wrong else ("decoded", "")


def attempt_array(data: bytes, number: int, spec: PixelSpec = FIRST_CHANNEL) -> tuple[str, str]:
    """As `attempt`, of a file that is no photograph, read by `spec`: all of it, and a crop."""
    generator = np.random.default_rng(number)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            image = open_stored({"bytes": data, "path": None}, spec)
            height, width = upright_size(image)
            rows, columns = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
            box = (
                int(generator.integers(height - rows + 1)),
                int(generator.integers(width - columns + 1)),
                rows,
                columns,
            )
            image = as_array(image) if isinstance(image, Image.Image) else image
            whole = read_values(image, spec)
            crop = resized_crop(image, box, (224, 224), spec)
    except BrokenImage as error:
        return "skipped", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    good = whole.shape == (1, height, width) and crop.shape == (1, 224, 224)
    good &= bool(whole.isfinite().all() and crop.isfinite().all())
    return ("decoded", "") if good else ("failed", f"{tuple(whole.shape)}, {tuple(crop.shape)}, or not finite")


def run_child(arrays: bool, numbers: range, connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff speaks
    torch.set_num_threads(1)
    transform = PreTrainTransform(A2MIMConfig.resnet("resnet50"))
    files = array_originals() if arrays else originals()
    names = list(files)
    for name in names[:20]:  # imports
        attempt_array(files[name], 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        generator = np.random.default_rng(number)
        pristine = number % (PRISTINE_EVERY + 1) == PRISTINE_EVERY
        name = names[generator.integers(len(names))]
        data = files[name] if pristine else damaged(files[name], generator)
        connection.send((number, name))
        start = time.perf_counter()
        alone = arrays or name in DEEP
        spec = OF_CHANNELS if name in CHANNELS_ALONE else FIRST_CHANNEL
        outcome, reason = attempt_array(data, number, spec) if alone else attempt(transform, data, number)
        seconds = time.perf_counter() - start
        if pristine and outcome != "decoded":
            outcome, reason = "failed", f"undamaged, but {outcome}: {reason}"
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        group = f"{name.split()[0]}{' (arrays)' if alone and not arrays else ''}"
        connection.send(("pristine" if pristine else group, outcome, reason, seconds, peak))


def run(total: int, arrays: bool) -> Iterator[tuple[int, str, tuple]]:
    """(number, kind of file, (group, outcome, reason, seconds, megabytes at most so far)) of each. A child that dies
    fails the file that it was at, and another goes on behind it."""
    context, number = multiprocessing.get_context("spawn"), 0
    while number < total:
        ours, theirs = context.Pipe()
        child = context.Process(target=run_child, args=(arrays, range(number, total), theirs))
        child.start()
        theirs.close()
        name = "(start)"
        try:
            while number < total:
                message = ours.recv() if ours.poll(HANGING) else None
                if message is None:
                    child.kill()
                    raise EOFError
                if len(message) == 2:
                    number, name = message
                else:
                    yield number, name, message
                    number += 1
        except EOFError:
            child.join()
            why = f"the process ended with {child.exitcode} (-9: took more than {HANGING:.0f} s)"
            yield number, name, (name.split()[0], "failed", why, 0.0, 0)
            if name == "(start)":
                return
            number += 1
        child.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="damaged photographs; and 5/4 as many arrays")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()

    total = args.count + args.count // PRISTINE_EVERY
    counts = collections.defaultdict(collections.Counter)
    reasons, failures, slowest, peak = collections.Counter(), [], (0.0, None, None), 0
    arrays = total * 5 // 4
    both = itertools.chain(run(total, False), run(arrays, True))
    for number, name, (group, outcome, reason, seconds, megabytes) in tqdm(both, total=total + arrays, unit="file"):
        counts[group][outcome] += 1
        peak, slowest = max(peak, megabytes), max(slowest, (seconds, number, name))
        if outcome == "skipped":
            reasons[re.sub(r"0x[0-9a-f]+|b'.*'|[-\d.]+", "_", reason)[:90]] += 1
        if outcome == "failed":
            failures.append(f"number {number} ({name}): {reason}")
    if slowest[0] > SLOWEST:
        failures.append(f"number {slowest[1]} ({slowest[2]}): {slowest[0]:.1f} s")

    if peak > MOST_MEGABYTES:
        failures.append(f"{peak} MB over the start")

    print("\n| file | decoded | skipped | failed |\n|---|---|---|---|")
    for group, found in sorted(counts.items()):
        print(f"| {group} | {found['decoded']} | {found['skipped']} | {found['failed']} |")
    print(f"\nslowest: {slowest[0]:.2f} s (number {slowest[1]}, {slowest[2]}); memory: {peak} MB over the start\n")
    for reason, count in reasons.most_common(15):
        print(f"{count:6} {reason}")
    print("\n".join(failures))

    if args.output:
        record = {
            "command": " ".join(["python", "benchmarks/fuzz.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, {platform.system()}",
            "versions": {
                m.__name__: m.__version__ for m in (torch, torchvision, PIL, tifffile, imagecodecs, pydicom, np)
            }
            | {codec: features.version(codec) for codec in ("jpg", "zlib", "libtiff", "webp")}
            | {"python": platform.python_version()},
            "files": {group: dict(found) for group, found in sorted(counts.items())},
            "reasons": dict(reasons.most_common()),
            "slowest": {"seconds": round(slowest[0], 3), "number": slowest[1], "file": slowest[2]},
            "peak_megabytes": peak,
            "failures": failures,
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
