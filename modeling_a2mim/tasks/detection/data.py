"""What a detector is trained and evaluated on: images with their boxes and masks, batches, and a figure of both."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from matplotlib.font_manager import findfont
from PIL import Image
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid
from transformers import DetrImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

from ...configuration_a2mim import A2MIMConfig
from ...data.decoding import MAX_PIXELS, BrokenImage, load_turned, take_as_shown
from ...data.pixel_spec import PixelSpec
from ...models.detection import A2MIMForObjectDetection
from ...utils.labels import label_names
from ...utils.plotting import to_pil_image
from .annotations import Annotations
from .scan import Sized


DROPPED = "dropped_boxes"  # key of a batch, and of the logs: boxes that no training image shows anything of
CLIPPED = "clipped_boxes"  # the same of boxes that are cut off, as they reach out of their image
TRUTH = "truth"  # key of a batch for evaluation: what is in its images, in their own pixels
LEAST_SIDE = 1.0  # pixels of a box after resizing; what is smaller is not trained on
SIDE_SHOWN, LEAST_SCORE = 320, 0.5  # pixels of an image in predictions.png, and least score of what it shows


class Resize:
    """To which size images are brought. Their aspect ratio stays; what is missing to a batch is padded.

    Args:
        canvas: (height, width) that every image is fitted into and padded to, enlarged if need be.
        shortest_edge: of the image; from several, training draws, and evaluation takes the last. Instead of `canvas`.
        longest_edge: the most that the longer edge may have then.
    """

    def __init__(self, canvas: tuple[int, int], shortest_edge: Sequence[int] | None = None, longest_edge: int = 1333):
        self.canvas = None if shortest_edge else (canvas[0], canvas[1])
        self.shortest_edge, self.longest_edge = list(shortest_edge or []), longest_edge

    def size(self, height: int, width: int, train: bool) -> tuple[int, int]:
        """(height, width) that an image of this size gets; the same as the image processor's in evaluation."""
        if self.canvas is not None:
            height, width = get_image_size_for_max_height_width((height, width), *self.canvas)
            return max(height, 1), max(width, 1)
        choice = int(torch.randint(len(self.shortest_edge), ())) if train and len(self.shortest_edge) > 1 else -1
        return get_size_with_aspect_ratio((height, width), self.shortest_edge[choice], self.longest_edge)

    def processor(self, config: A2MIMConfig) -> DetrImageProcessor:
        """The image processor that does the same for users."""
        normalise: dict[str, Any] = {"image_mean": list(config.image_mean), "image_std": list(config.image_std)}
        if self.canvas is None:
            size = {"shortest_edge": self.shortest_edge[-1], "longest_edge": self.longest_edge}
            return DetrImageProcessor(size=size, **normalise)
        height, width = self.canvas
        size, padded = {"max_height": height, "max_width": width}, {"height": height, "width": width}
        return DetrImageProcessor(size=size, pad_size=padded, **normalise)


class DetectionTransform:
    """A stored image and its stored objects to a sample; random flips and sizes while training.

    Args:
        config: channels and normalisation.
        annotations: how objects are stored.
        resize: the sizes of images.
        train: whether to flip, to draw sizes, and to leave crowds out.
        flip: share of images that are mirrored left to right.
        max_pixels: larger images are refused.
    """

    takes_label = True

    def __init__(
        self,
        config: A2MIMConfig,
        annotations: Annotations,
        resize: Resize,
        train: bool = True,
        flip: float = 0.5,
        max_pixels: int = MAX_PIXELS,
    ):
        self.spec, self.train = PixelSpec.from_config(config, max_pixels), train
        self.annotations, self.resize = annotations, resize
        self.flip = v2.RandomHorizontalFlip(flip if train else 0.0)
        self.finish = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(config.image_mean), list(config.image_std))]
        )

    def __call__(self, image, objects) -> dict:
        """
        Args:
            image: as `decoding.open_stored` takes it.
            objects: as `Annotations.read` takes them, or `Sized`. If they are in pixels of the image as it is
                stored, and it is shown turned (EXIF), they are turned with it.

        Returns:
            `pixel_values`, float32 (channels, height, width); `labels`, as `A2MIMForObjectDetection` takes them;
            `dropped_boxes` and `clipped_boxes`, numbers; and for evaluation `truth`: the `Objects`, with the `size` of
            the image.

        Raises:
            BrokenImage: if there is no image that can be used, or the objects are none, or of an image of another
                size.
        """
        image, stored, turn = load_turned(image, self.spec)
        pixels = tv_tensors.Image(image)
        original = (pixels.shape[-2], pixels.shape[-1])
        known = self._read(objects, original, stored, turn)
        kept = torch.from_numpy(~known.crowd)
        sample = {
            "pixel_values": pixels,
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(known.boxes).float()[kept], format="XYXY", canvas_size=original
            ),
            "class_labels": torch.from_numpy(known.classes)[kept],
        }
        if self.annotations.masks:
            sample["masks"] = tv_tensors.Mask(known.decoded_masks(*original)[kept])
        size = list(self.resize.size(*original, self.train))
        geometric = {name: value for name, value in sample.items() if name != "class_labels"}
        geometric = self.flip({name: resize(value, size) for name, value in geometric.items()})
        sample |= {name: value.as_subclass(torch.Tensor) for name, value in geometric.items()}
        sides = sample["boxes"][:, 2:] - sample["boxes"][:, :2]
        large = (sides >= LEAST_SIDE).all(1)
        result = {
            "pixel_values": self.finish(sample.pop("pixel_values")),
            "labels": {name: value[large] for name, value in sample.items()},
            DROPPED: known.dropped + int((~large).sum()),
            CLIPPED: known.clipped,
        }
        return result if self.train else {**result, TRUTH: {"objects": known, "size": original}}

    def _read(self, objects, original: tuple[int, int], stored: tuple[int, int], turn: tuple[bool, bool, bool]):
        """The objects in pixels of the image the right way up, whose size is `original`; as it is stored, `stored`."""
        size = None
        if isinstance(objects, Sized):
            objects, height, width = objects
            size = (height, width) if height and width else None
        if size is None or stored == original:
            take_as_shown(turn)
        size = size or original
        if size == stored != original:
            return self.annotations.read(objects, *stored).turned(turn, *stored)
        if size != original and (self.annotations.box_format != "yolo" or self.annotations.masks):
            sizes = " x ".join(map(str, size)), " x ".join(map(str, original))
            raise BrokenImage("its objects are in pixels of an image of {}, it has {}".format(*sizes))
        return self.annotations.read(objects, *original)


def pad_batch(samples: list[dict], canvas: tuple[int, int] | None = None) -> dict:
    """Samples of `DetectionTransform` to a batch: images and masks padded with zeros, at the right and at the bottom,
    to `canvas` (height, width) or, without, to the largest of each.

    Returns:
        `pixel_values` (batch, channels, height, width), `pixel_mask` (batch, height, width) with 1 = image, `labels`
        of each image, the sums of `dropped_boxes` and `clipped_boxes`, and for evaluation `truth` of each image.
    """
    sizes = [sample["pixel_values"].shape[-2:] for sample in samples]
    height, width = canvas or (max(h for h, _ in sizes), max(w for _, w in sizes))

    def padded(maps: torch.Tensor) -> torch.Tensor:
        return F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]))

    batch = {
        "pixel_values": torch.stack([padded(sample["pixel_values"]) for sample in samples]),
        "pixel_mask": torch.stack([padded(torch.ones(size, dtype=torch.int64)) for size in sizes]),
        "labels": [
            {name: padded(value) if name == "masks" else value for name, value in sample["labels"].items()}
            for sample in samples
        ],
        **{name: sum(sample.get(name, 0) for sample in samples) for name in (DROPPED, CLIPPED)},
    }
    return {**batch, TRUTH: [s[TRUTH] for s in samples]} if TRUTH in samples[0] else batch


def draw_predictions(
    model: A2MIMForObjectDetection, samples: list[dict], canvas: tuple[int, int] | None = None
) -> Image.Image:
    """Images with what is in them, each beside the same image with what the model finds.

    Args:
        model: in evaluation mode.
        samples: of `DetectionTransform` for evaluation.
        canvas: as in `pad_batch`.
    """
    batch, config = pad_batch(samples, canvas), model.config
    with torch.no_grad():
        outputs = model(batch["pixel_values"].to(model.device), batch["pixel_mask"].to(model.device))
    names = label_names(config)
    looks = config.image_mean, config.image_std, config.display_channels
    tiles = []
    for i, sample in enumerate(samples):
        seen = sample["pixel_values"]
        pixels = pil_to_tensor(to_pil_image(seen, *looks, None if config.value_range is None else seen))
        scale = SIDE_SHOWN / max(pixels.shape[-2:])
        height, width = (max(1, round(side * scale)) for side in pixels.shape[-2:])
        size = [height, width]
        one = type(outputs)(**{name: value[i : i + 1] for name, value in outputs.items()})
        (found,) = model.post_process_object_detection(one, LEAST_SCORE, [(height, width)])
        known = {name: value for name, value in sample["labels"].items() if name != "class_labels"}
        known |= {"labels": sample["labels"]["class_labels"], "boxes": known["boxes"] * scale}
        if "masks" in known:
            known["masks"] = resize(tv_tensors.Mask(known["masks"]), size).bool()
        pixels = resize(tv_tensors.Image(pixels), size)
        tiles += [_drawn(pixels, objects, names) for objects in (known, found)]
    grid = make_grid([F.pad(t, (0, SIDE_SHOWN - t.shape[2], 0, SIDE_SHOWN - t.shape[1])) for t in tiles], nrow=4)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def _drawn(pixels: torch.Tensor, objects: dict[str, torch.Tensor], names: list[str]) -> torch.Tensor:
    """uint8 (3, height, width) with boxes, and masks if there are some; a class has the same colour everywhere."""
    objects = {name: value.cpu() for name, value in objects.items()}
    labels, image = objects["labels"].tolist(), pixels.as_subclass(torch.Tensor)
    if not labels:
        return image
    hues = [Image.new("HSV", (1, 1), (c * 97 % 256, 220, 255)).convert("RGB") for c in labels]
    colours = [tuple(cast(Iterable[int], hue.getpixel((0, 0)))) for hue in hues]
    texts = [names[c] for c in labels]
    if "scores" in objects:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, objects["scores"].tolist(), strict=True)]
    if "masks" in objects:
        image = draw_segmentation_masks(image, objects["masks"], alpha=0.45, colors=colours)
    font = findfont("DejaVu Sans")  # comes with matplotlib
    style = {"colors": colours, "label_background_colors": colours, "fill_labels": True, "label_colors": "black"}
    return draw_bounding_boxes(image, objects["boxes"], texts, width=2, font=font, font_size=14, **style)
