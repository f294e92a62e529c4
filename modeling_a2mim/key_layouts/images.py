"""The preprocessor_config.json of a model of transformers: what its images are like, as fields of `A2MIMConfig`."""

import json
import tempfile
from pathlib import Path
from typing import Any


BYTE = 1 / 255  # the factor that brings bytes to [0, 1]
# From which side on ConvNeXt's processor resizes without cropping, in pixels.
CONVNEXT_UNCROPPED = 384
OLD_NAME = "FeatureExtractor"  # of image processors


def image_fields(config: dict[str, Any], processor: dict[str, Any] | None, channels: int) -> dict[str, Any]:
    """`image_mean`, `image_std` and `crop_pct`, with `size`, (height, width) in pixels, of what the model then sees.

    What the file leaves out is what the image processor of the model has: that which the file names, or that of the
    model's type. Its defaults of three channels are none for other numbers of channels.

    Args:
        config: the config.json.
        processor: the preprocessor_config.json, `None` if there is none: then there are no `size` and `crop_pct`.
        channels: of the images.

    Raises:
        ValueError: naming `model_name_or_path`, if transformers does not know the processor, or it does to images what
            is not done here.
    """
    found = _processor(config, processor)
    if found is None:
        return {}
    if not found.do_rescale or abs(found.rescale_factor - BYTE) > 1e-6:
        factor = found.rescale_factor if found.do_rescale else 1
        raise ValueError(
            f"model_name_or_path: rescale_factor is {factor!r} in its preprocessor_config.json, and images have "
            "pixels in [0, 1] here: write 1/255 there, and image_mean and image_std for such pixels"
        )
    fields: dict[str, Any] = {}
    for name, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
        values = list(getattr(found, name)) if found.do_normalize else [neutral] * channels
        if len(values) == channels or name in (processor or {}):
            fields[name] = values
    return fields | _geometry(found, processor or {})


def _processor(config: dict[str, Any], processor: dict[str, Any] | None) -> Any:
    """As transformers makes it from the two files, which know sizes in several forms; `None` if there is none for
    models of this type, and no file."""
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": config["model_type"]}), encoding="utf-8")
        # Without what names code beside the file.
        known = {name: value for name, value in (processor or {}).items() if name != "auto_map"}
        if str(known.get("image_processor_type")).endswith(OLD_NAME):  # as earlier releases wrote it
            known["image_processor_type"] = known["image_processor_type"].removesuffix(OLD_NAME) + "ImageProcessor"
        Path(folder, "preprocessor_config.json").write_text(json.dumps(known), encoding="utf-8")
        try:
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            if not known:
                return None
            raise ValueError(
                f"model_name_or_path: transformers cannot read its preprocessor_config.json: {str(error)[:200]}; "
                "without image_processor_type there, that of the model's type is used"
            ) from error


def _geometry(found: Any, processor: dict[str, Any]) -> dict[str, Any]:
    """`crop_pct` and `size`. Images that are squeezed to a square, not cropped, are seen whole: 1.0."""
    if not found.do_resize or not {"size", "crop_size"} & processor.keys():
        return {}
    size = found.size
    if not (size.shortest_edge or (size.height and size.width)):
        return {}
    resized = (size.shortest_edge, size.shortest_edge) if size.shortest_edge else (size.height, size.width)
    if getattr(found, "do_center_crop", None) and found.crop_size:
        seen = (found.crop_size.height, found.crop_size.width)
    elif getattr(found, "crop_pct", None) and resized[0] < CONVNEXT_UNCROPPED:
        return {"crop_pct": found.crop_pct, "size": resized}
    else:
        seen = resized
    share = min(seen) / min(resized)
    if share > 1:
        raise ValueError(
            f"model_name_or_path: crop_size is {seen[0]} x {seen[1]} in its preprocessor_config.json, larger than the "
            f"{min(resized)} px that images are resized to"
        )
    return {"crop_pct": share, "size": seen}
