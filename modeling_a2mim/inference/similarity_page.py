"""A self-contained HTML page of images that are alike: no scripts, nothing from elsewhere, images inside the file."""

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.decoding import BrokenImage
from ..data.display import display_image
from ..utils.files import atomic_write


SIDE = 224  # pixels of the longer side of a thumbnail
SMALL = 64  # pixels: images up to that stay as they are, in PNG, and are shown enlarged with sharp pixels
GENERATOR = '<!doctype html>\n<meta name="generator" content="a2mim embed">\n'  # how a page begins

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --faint: #59636e; --line: #d1d9e0; --mark: #0757ba;
  --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #f0f6fc; --faint: #9da7b1; --line: #3d444d;
  --mark: #6cb6ff; --card: #161b22; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; color: var(--faint); font-size: .9rem; max-width: 48rem; overflow-wrap: anywhere; }
section { margin: .75rem 0; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem;
  background: var(--card); }
h3 { font-size: .9rem; margin: 0 0 .5rem; color: var(--faint); font-weight: 600; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .75rem; }
@media (min-width: 45rem) { .images { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); } }
figure { margin: 0; min-width: 0; }
.box { display: flex; align-items: center; justify-content: center; aspect-ratio: 1; border: 1px solid var(--line);
  border-radius: .25rem; background: var(--back); overflow: hidden; }
.query .box { border: 3px solid var(--mark); }
img { max-width: 100%; max-height: 100%; object-fit: contain; }
img.small { width: 100%; height: 100%; image-rendering: pixelated; }
figcaption { font-size: .75rem; line-height: 1.35; margin-top: .25rem; }
figcaption b { display: block; font-size: .85rem; font-variant-numeric: tabular-nums; }
.query b { color: var(--mark); }
figcaption span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
  overflow-wrap: anywhere; color: var(--faint); }
.broken { padding: .5rem; font-size: .75rem; color: var(--faint); overflow: hidden; }
"""


@dataclass
class Shown:
    """An image on the page: as it is stored (see `data.decoding.open_image`), or the BrokenImage that says why it
    cannot be; its file; its cosine similarity, `None` for the image that others are compared with."""

    stored: Any
    file: str
    similarity: float | None = None


@dataclass
class Group:
    """Images that are shown together, with a line above them."""

    heading: str
    images: Iterable[Shown]


def write_page(
    path: str | os.PathLike,
    title: str,
    lines: Iterable[str],
    parts: Iterable[tuple[str, Iterable[Group]]],
    channels: Sequence[int] | None = None,
):
    """Write the page; groups are read as they are written, so that only one image is in memory.

    Args:
        path: of the file; it is complete or as it was.
        title: plain text, as all texts here.
        lines: below the title.
        parts: the heading of each part, and its groups.
        channels: of images that are no photographs, as `display_image`.
    """
    escaped = html.escape(title)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(
            f'{GENERATOR}<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f"<title>{escaped}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escaped}</h1>\n"
        )
        file.writelines(f"<p>{html.escape(line)}</p>\n" for line in lines)
        for heading, groups in parts:
            file.write(f"<h2>{html.escape(heading)}</h2>\n")
            for group in groups:
                file.write(f'<section>\n<h3>{html.escape(group.heading)}</h3>\n<div class="images">\n')
                file.writelines(_figure(shown, channels) for shown in group.images)
                file.write("</div>\n</section>\n")
        file.write("</body>\n</html>\n")


def _figure(shown: Shown, channels: Sequence[int] | None) -> str:
    name = html.escape(shown.file)
    value = "query" if shown.similarity is None else f"{shown.similarity:.4f}"
    try:
        data, is_small = thumbnail(shown.stored, channels)
        image = f'<img{" class=small" if is_small else ""} src="{data}" alt="{name}">'
    except BrokenImage as error:
        image = f'<div class="broken">cannot be shown: {html.escape(str(error))}</div>'
    return (
        f'<figure{" class=query" if shown.similarity is None else ""}><div class="box">{image}</div>'
        f'<figcaption title="{name}"><b>{value}</b><span>{name.replace("/", "/<wbr>")}</span></figcaption></figure>\n'
    )


def thumbnail(stored: Any, channels: Sequence[int] | None = None) -> tuple[str, bool]:
    """A stored image as a `data:` URI, upright, in RGB of 8 bits, and whether it is a small one (`SMALL`).

    Args:
        stored, channels: as `display_image`.

    Raises:
        BrokenImage: if it cannot be decoded.
    """
    if isinstance(stored, BrokenImage):
        raise stored
    image = display_image(stored, channels)
    is_small = max(image.size) <= SMALL
    if not is_small:
        image = image.copy()  # which may be the caller's
        image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    kind, file = ("png" if is_small else "jpeg"), io.BytesIO()
    image.save(file, kind, **({} if is_small else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", is_small


def is_page(path: Path) -> bool:
    """Whether a file is such a page."""
    with open(path, "rb") as file:
        return file.read(len(GENERATOR)) == GENERATOR.encode()
