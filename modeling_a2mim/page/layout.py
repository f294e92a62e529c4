"""The page: one upload, and a tab for each thing that the models can do."""

import logging
from collections.abc import Sequence
from typing import Any

from .classification import ClassifyTab
from .models import PageModel
from .neighbors import NeighborIndex, NeighborsTab
from .reconstruction import ReconstructTab
from .uploads import CSS, KEPT, note


logger = logging.getLogger("a2mim")

TITLE = "A2MIM: what a model makes of an image"


def build_page(models: Sequence[PageModel], index: NeighborIndex | None = None) -> Any:
    """The page, a `gradio.Blocks` that is not launched yet.

    Args:
        models: of `open_models`.
        index: images that were embedded.

    Raises:
        ValueError: if nothing is to be shown, or a model keeps a decision that is not for its classes.
    """
    import gradio as gr

    tabs: list[Any] = []
    if reconstructing := {model.name: model.pretraining for model in models if model.pretraining}:
        tabs.append(ReconstructTab(reconstructing))
    if classifying := {model.name: model.classifier for model in models if model.classifier}:
        tabs.append(ClassifyTab(classifying))
    if index is not None:
        tabs.append(NeighborsTab(index))
    if not tabs:
        raise ValueError("models: none of them reconstructs or classifies")

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, KEPT)) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=1, min_width=250):
                # Not gr.Image, which decodes and encodes anew what the browser is to show.
                upload = gr.File(label="image file", height=150, elem_id="upload")
                gr.HTML(note(f"What is uploaded is deleted after {KEPT // 60} minutes."), padding=False)
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                for part in tabs:
                    with gr.Tab(part.name):
                        part.build(upload)
    return page


def launch(page: Any, **where: Any):
    """Serve a page from now on, without what shares or keeps images, and log its address.
    `where`: of `gradio.Blocks.launch`."""
    import gradio as gr

    # Fonts of the system need no time to load.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, local, public = page.launch(
        css=CSS, theme=theme, footer_links=[], quiet=True, prevent_thread_lock=True, **where
    )
    logger.info("page: %s (Ctrl-C ends it)", " and ".join(filter(None, (local, public))))
