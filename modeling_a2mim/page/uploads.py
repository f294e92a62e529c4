"""From an uploaded file to what a model sees of it, and back to the page: images, and messages.

Gradio's own image component is not used for uploads: it converts what is not 8-bit RGB, and shows nothing of a format
that the browser does not know. A file arrives as it is, and goes through the transform of training.
"""

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..analysis.comparison import ProcessorTransform
from ..data.pixel_spec import PixelSpec
from ..utils.plotting import to_pil_image


KEPT = 15 * 60  # seconds that an upload and what is shown of it stay on the server
SHOWN = 256  # pixels of the shorter side, to which small images are enlarged
# Of gr.Image: to look at, as it is, without buttons that share, download or fill the screen.
SHOWN_IMAGE: dict[str, Any] = {"interactive": False, "format": "png", "buttons": [], "elem_classes": "a2mim-image"}

CSS = """
.a2mim-decision { font-size: 1.6rem; font-weight: 600; overflow-wrap: anywhere; line-height: 1.3; }
.a2mim-note { color: var(--body-text-color); opacity: 0.75; overflow-wrap: anywhere; margin: 0; }
.a2mim-error { border: 1px solid var(--error-border-color); background: var(--error-background-fill); padding: 0.6rem;
  border-radius: 4px; overflow-wrap: anywhere; color: var(--body-text-color); }
.a2mim-bars { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr max-content; gap: 0.3rem 0.6rem;
  align-items: center; margin-top: 0.8rem; }
.a2mim-bars .name { overflow-wrap: anywhere; max-width: 12rem; }
.a2mim-bars .track { position: relative; height: 1rem; background: var(--border-color-primary); border-radius: 3px; }
.a2mim-bars .fill { height: 100%; background: var(--neutral-400); border-radius: 3px; }
.a2mim-bars .chosen { font-weight: 700; }
.a2mim-bars .chosen + .track .fill { background: var(--color-accent); }
.a2mim-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 0.8rem; }
.a2mim-grid figure { margin: 0; }
.a2mim-grid img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--border-color-primary);
  image-rendering: pixelated; }
.a2mim-grid figcaption { font-size: 0.85rem; overflow-wrap: anywhere; color: var(--body-text-color); }
.a2mim-image label[data-testid="block-label"] { position: static; }
#upload .download { display: none; }
.a2mim-bars .tick { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--body-text-color); }
"""


def note(text: str) -> str:
    """A sentence as HTML, whatever is in it."""
    return f'<p class="a2mim-note">{html.escape(text)}</p>'


def figures(images: Sequence[tuple[Image.Image, str]]) -> str:
    """Images with their captions as HTML, in a grid as wide as the screen allows. They are part of it: no file of them
    is on the server."""
    cells = []
    for image, caption in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        data, text = base64.b64encode(file.getvalue()).decode(), html.escape(caption)
        cells.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )
    return f'<div class="a2mim-grid">{"".join(cells)}</div>'


def alert(text: str) -> str:
    """The same of what went wrong."""
    return f'<div class="a2mim-error" role="alert">{html.escape(text)}</div>'


def answer(file: str | None, run: Callable[[str], Sequence[Any]], empty: Sequence[Any]) -> list[Any]:
    """What a tab shows of a file, the last of which is HTML; where the file cannot be used, why.

    Args:
        file: that was uploaded; `None` if there is none.
        run: gives what the tab shows, and raises ValueError with a reason.
        empty: what it shows of no file, without the last.
    """
    if file is None:
        return [*empty, note("Upload an image.")]
    try:
        return list(run(file))
    except FileNotFoundError:
        text = f"uploads are deleted after {KEPT // 60} minutes, and this one was; upload it again"
    except (ValueError, OSError) as error:
        text = str(error)
    return [*empty, alert(f"{Path(file).name}: {text}")]


def enlarged(image: Image.Image) -> Image.Image:
    """A small image with larger pixels."""
    scale = max(1, SHOWN // min(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def as_seen(
    model: nn.Module, transform: Callable, file: str | os.PathLike | Image.Image
) -> tuple[torch.Tensor, Image.Image]:
    """What a model sees of a file: (1, channels, height, width) on the model's device, and the same as an image.

    Args:
        model: whose configuration tells how images are normalised, where `transform` does not.
        transform: a stored image to `pixel_values`.
        file: of the image.

    Raises:
        ValueError: if the file is no image that the model takes.
    """
    pixels = transform(file)["pixel_values"]
    known: Any = transform.processor if isinstance(transform, ProcessorTransform) else model.config
    normalised = getattr(known, "do_normalize", True)  # which is a field of processors
    spec: PixelSpec | None = getattr(transform, "spec", None)
    looks: dict[str, Any] = {"channels": getattr(model.config, "display_channels", None)}
    looks["like"] = pixels if spec is not None and spec.value_range is not None else None
    statistics = (known.image_mean, known.image_std) if normalised else ()
    shown = to_pil_image(pixels, *statistics, **looks)
    return pixels[None].to(next(model.parameters()).device), enlarged(shown)
