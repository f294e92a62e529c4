"""A picture of what a model reconstructs: original, masked, reconstruction, and the reconstruction pasted."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from ..masking import fill_masked, pixel_mask
from ..modeling_a2mim import A2MIMForPreTraining


COLUMNS = ("original", "masked", "reconstruction", "pasted")


def to_picture(image: torch.Tensor, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Image.Image:
    """An image (channels, height, width), normalised with `mean` and `std`, in RGB; of images that are neither grey
    nor RGB the first channel is shown."""
    mean, std = (image.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    shown = (image * std + mean).clamp(0, 1)[: 3 if len(image) == 3 else 1]
    return Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())


@torch.no_grad()
def reconstruct(
    model: A2MIMForPreTraining, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The four images of each sample, (batch, channels, height, width) with values in [0, 1].

    Args:
        model: in whatever mode; it is run in evaluation mode and put back.
        pixel_values: (batch, channels, height, width), normalised.
        bool_masked_pos: (batch, rows, columns), 1 = masked.
    """
    config, training = model.config, model.training
    pixel_values = pixel_values.to(model.device, torch.float32)
    model.eval()
    try:
        output = model(pixel_values, bool_masked_pos.to(model.device))
    finally:
        model.train(training)
    mask, prediction = output.bool_masked_pos, output.reconstruction.float()
    # Where the encoder sees the masked pixels (SimMIM), grey shows which ones they are.
    fill = "zero" if config.mask_fill == "none" else config.mask_fill
    images = {
        "original": pixel_values,
        "masked": fill_masked(pixel_values, mask, fill),
        "reconstruction": prediction,
        "pasted": torch.where(pixel_mask(mask, pixel_values.shape[-2:]), prediction, pixel_values),
    }
    mean = pixel_values.new_tensor(config.image_mean).view(-1, 1, 1)
    std = pixel_values.new_tensor(config.image_std).view(-1, 1, 1)
    return {name: (image * std + mean).clamp(0, 1).cpu() for name, image in images.items()}


def reconstruction_picture(
    model: A2MIMForPreTraining, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, max_images: int = 8
) -> Image.Image:
    """One row for each image (at most `max_images`), one labelled column for each of `COLUMNS`. Images smaller than
    112 px are enlarged; of images that are neither grey nor RGB the first channel is shown."""
    images = reconstruct(model, pixel_values[:max_images], bool_masked_pos[:max_images])
    count, _, height, width = images["original"].shape
    scale, gap, header = max(1, 112 // min(height, width)), 4, 16
    cell = (width * scale, height * scale)
    sheet = Image.new("RGB", (len(COLUMNS) * (cell[0] + gap) + gap, header + count * (cell[1] + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(COLUMNS):
        left = gap + column * (cell[0] + gap)
        draw.text((left, 2), name, fill="black")
        for row in range(count):
            tile = to_picture(images[name][row]).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(tile, (left, header + gap + row * (cell[1] + gap)))
    return sheet
