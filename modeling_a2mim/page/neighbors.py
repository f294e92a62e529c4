"""The tab that shows which of many embedded images are like an upload."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..analysis.comparison import check_device
from ..data.decoding import BrokenImage
from ..data.display import display_image, stored_channels
from ..inference.embedding import Embedder, embedder, nearest, read_embeddings
from ..inference.images import InferenceImages, open_every_image
from .uploads import SHOWN, SHOWN_IMAGE, answer, as_seen, figures, note


MOST = 48  # neighbors that are shown
SAME = 0.99  # cosine similarity of the stored vector of an image and its vector now, at least


class NeighborIndex:
    """Images that were embedded, their vectors, and the model that made them.

    Args:
        path: of the embeddings, written by `a2mim embed`.
        images: those that were embedded, as they were named then.
        sources, names: of models, one of which made them.
        device: where the model is to run.
        options: of `open_every_image`.

    Attributes:
        model: name of the model that made them.

    Raises:
        ValueError: naming `embeddings`, if none of the models made them; naming `images`, if they are others than
            those that were embedded; naming `device`, if it cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        images: Sequence[str],
        sources: Sequence[str],
        names: Sequence[str],
        device: str = "cpu",
        **options: Any,
    ):
        check_device(device)
        self.files, self.vectors, metadata = read_embeddings(path)
        if not self.files:
            raise ValueError(f"embeddings: {path} holds no image that could be read")
        self.model, self.embedder = _maker(path, metadata, sources, names, device)
        self.images = InferenceImages(open_every_image(images, **options), self.embedder.transform)
        row_of = {self.images.name(row): row for row in range(len(self.images))}
        if missing := [name for name in self.files if name not in row_of]:
            raise ValueError(
                f"images: {len(missing):,} of {len(self.files):,} images of {path} are not there, such as "
                f"{missing[0]}; name them as for a2mim embed"
            )
        self.rows = [row_of[name] for name in self.files]
        again, _, _ = self.find(self.images.stored(self.rows[0]), 1)  # which warms up the model as well
        first = np.asarray(self.vectors[0], dtype=np.float32)
        alike = float(nearest(first[None], again, 1)[1][0, 0])
        if first.any() and not alike >= SAME:
            raise ValueError(
                f"images: {self.files[0]} is another image than the one of that name in {path}: the cosine similarity "
                f"of their vectors is {alike:.3f}"
            )

    def find(self, image: Any, count: int) -> tuple[np.ndarray, Image.Image, list[tuple[int, float]]]:
        """The nearest images of one.

        Args:
            image: stored, see `data.decoding.open_image`.
            count: of neighbors.

        Returns:
            (1, features), its vector; what the model sees of it; and of each neighbor its index in `files` and the
            cosine similarity, in [-1, 1], the nearest first.

        Raises:
            ValueError: if there is no image that the model takes.
        """
        if isinstance(image, ValueError):
            raise image
        pixels, seen = as_seen(self.embedder.model, self.embedder.transform, image)
        vector = self.embedder.embed(pixels)
        indices, similarities = nearest(self.vectors, vector, count)
        return vector, seen, list(zip(indices[0].tolist(), similarities[0].tolist(), strict=True))

    def thumbnail(self, index: int) -> Image.Image:
        """A small copy of one of `files`, in RGB the right way up; a grey area where it can no longer be read."""
        stored = self.images.stored(self.rows[index])
        try:
            if isinstance(stored, ValueError):
                raise stored
            image = display_image(stored, stored_channels(self.embedder.model.config))
        except BrokenImage:
            return Image.new("RGB", (SHOWN, SHOWN), "grey")
        image.thumbnail((SHOWN, SHOWN))
        return image


def _maker(
    path: str | os.PathLike, metadata: dict[str, Any], sources: Sequence[str], names: Sequence[str], device: str
) -> tuple[str, Embedder]:
    """The model that made embeddings, by its weights and its transform, and its name."""
    others = []
    for source, name in zip(sources, names, strict=True):
        try:
            found = embedder(
                source, metadata["layer"], normalize=metadata["normalize"], dtype=metadata["dtype"], device=device
            )
        except ValueError as error:
            others.append(f"{name} ({error})")
            continue
        different = [key for key in ("weights", "transform", "dim") if found.description[key] != metadata[key]]
        if not different:
            return name, found
        others.append(f"{name} (other {', '.join(different)})")
    raise ValueError(
        f"embeddings: {path} was written with the model {metadata['model']}, {metadata['architecture']}; none of "
        f"those given is that one: {'; '.join(others)}"
    )


class NeighborsTab:
    """What is shown below "Neighbors"."""

    name = "Neighbors"

    def __init__(self, index: NeighborIndex):
        self.index = index

    def build(self, upload: Any):
        """As `ReconstructTab.build`."""
        import gradio as gr

        most = min(MOST, len(self.index.files))
        gr.HTML(
            note(
                f"The nearest of {len(self.index.files):,} images by the cosine similarity of what "
                f"{self.index.model} makes of them."
            ),
            padding=False,
        )
        with gr.Row():
            seen = gr.Image(label="as the model sees it", **SHOWN_IMAGE, height=200, min_width=140)
            count = gr.Slider(1, max(most, 2), value=min(8, most), step=1, label="neighbors", scale=3)
        found = gr.HTML(note("Upload an image."), padding=False)

        inputs, outputs = [upload, count], [seen, found]

        gr.on(
            [upload.change, count.change],
            self.run,
            inputs,
            outputs,
            trigger_mode="always_last",
            api_visibility="private",
        )

    def run(self, file: str | None, count: float) -> list[Any]:
        """What the model sees, and the nearest images with their captions, or what is wrong, as HTML."""

        def shown(file: str) -> list[Any]:
            _, seen, near = self.index.find(file, int(count))
            images = [(self.index.thumbnail(i), f"{similarity:.3f} {self.index.files[i]}") for i, similarity in near]
            return [seen, figures(images)]

        return answer(file, shown, [None])
