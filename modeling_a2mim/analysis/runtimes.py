"""Models for other runtimes: what of a folder is exported, the images to calibrate and to compare with, and the files
that are written."""

import contextlib
import copy
import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from datasets import Image
from PIL import Image as PillowImage

from .. import __version__
from ..arguments.data import SINGLE, ClassificationArguments
from ..data.columns import find_column
from ..data.dataset import ImageSamples
from ..data.labels import labelled, same_classes
from ..data.loading import load_images
from ..data.sources import RowSource
from ..data.splits import class_names, load_labelled_split
from ..export.agreement import TOLERANCE, Agreement
from ..export.folder import timm_pretrained_cfg
from ..export.int8 import quantize
from ..export.onnx import check_packages, opset_of, session, write_onnx
from ..export.runtime_evaluation import PYTORCH, evaluate_runtimes, pytorch
from ..export.runtime_metadata import DECISION, prepare, processor_preprocessing, runtime_metadata
from ..export.runtime_model import RuntimeModel, free_sizes
from ..export.torch_program import write_program
from ..modeling_a2mim import A2MIMPreTrainedModel, find_core
from ..pretrained import folder_or_id
from ..utils.files import atomic_files, write_json
from ..utils.value_range import STORED
from .comparison import NamedModel, ProcessorTransform, holds_classifier, load_model, read_config


logger = logging.getLogger("a2mim")

DENSE = ("Segmentation", "Detection", "Detector")  # in names of classes of transformers
BATCH = 32
CALIBRATED = 128  # images whose ranges are measured; more hardly change them
DRAWN = 0  # seed of these
SIMILAR = 0.02  # of a normalised pixel: half a step of 255


@dataclass
class RuntimeSource:
    """A model to be exported.

    Args:
        model: the function of it.
        transform: a stored image to `pixel_values`.
        channels, size: of the images.
        stride: pixels per cell of the last map, for images of other sizes.
        metadata: see `runtime_metadata`.
        classes, problem_type: of a classifier.
    """

    model: RuntimeModel
    transform: Callable
    channels: int
    size: tuple[int, int]
    stride: int
    metadata: dict[str, str]
    classes: list[str] | None = None
    problem_type: str = SINGLE


def open_for_runtime(source: str, dynamic_size: bool = False, **hub_kwargs: Any) -> RuntimeSource:
    """The classifier in a folder or repository, or else its encoder. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming the source, if it holds no such model: segmenters and detectors among them.
    """
    source = folder_or_id(source)
    data = read_config(source, **hub_kwargs)
    classifier = _classifies(source, data, **hub_kwargs)
    named = load_model(source, kind="classifier" if classifier else "encoder", **hub_kwargs)
    own: Any = named.model.config
    if isinstance(named.model, A2MIMPreTrainedModel):
        core = find_core(named.model)
        preprocessing, stride, architecture = timm_pretrained_cfg(core), core.plan.stride, core.config.architecture
        if dynamic_size:
            free_sizes(named.model)
    else:
        processor = cast(ProcessorTransform, named.transform).processor
        blank = PillowImage.new("RGB", (64, 64))
        input_size = list(named.transform(blank)["pixel_values"].shape)
        try:
            preprocessing = processor_preprocessing(processor, input_size)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{source}: its image processor, {type(processor).__name__}, does what the metadata of a file cannot "
                f"say: {error}"
            ) from error
        patch = getattr(own, "patch_size", None)
        stride, architecture = patch if isinstance(patch, int) else 32, own.model_type
    problem_type = (own.problem_type or SINGLE) if classifier else SINGLE
    classes, decision = (named.classes, data.get(DECISION)) if classifier else (None, None)
    stored = data.get(STORED) or getattr(own, STORED, None)
    metadata = runtime_metadata(preprocessing, architecture, __version__, classes, problem_type, decision, stored)
    channels, *size = preprocessing["input_size"]
    _check_metadata(named, metadata, channels)
    model = RuntimeModel(named.model, classifier)
    return RuntimeSource(model, named.transform, channels, tuple(size), stride, metadata, classes, problem_type)


def _classifies(source: str, data: dict[str, Any], **hub_kwargs: Any) -> bool:
    """Raises ValueError for what is neither a classifier nor an encoder."""
    made = (data.get("architectures") or [""])[0]
    if any(word in made for word in DENSE):
        raise ValueError(
            f"{source}: holds a {made}; only classifiers and encoders can be exported to another runtime so far"
        )
    return holds_classifier(source, data, **hub_kwargs)


def _check_metadata(named: NamedModel, metadata: dict[str, str], channels: int):
    """Warn, if an image prepared by what the metadata say is not what the model was evaluated with."""
    if STORED in metadata:
        logger.info("the model takes stored values, which become numbers in [0, 1] as %s in the metadata says", STORED)
        return
    if channels not in (1, 3, 4):
        logger.info("the model takes %d channels: images must be brought to it as arrays, not by Pillow", channels)
        return
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    image = PillowImage.fromarray(noise.squeeze()).resize((301, 223), PillowImage.Resampling.BICUBIC)
    ours = named.transform(image)["pixel_values"].numpy()
    try:
        difference = float(np.abs(prepare(image, metadata)[0] - ours).max())
    except ValueError as error:
        logger.warning("%s; the metadata say so, but the example in the documentation does not do it", error)
        return
    if difference > SIMILAR:
        logger.warning(
            "an image prepared by Pillow as the metadata say differs by up to %.3f from what the model was evaluated "
            "with (normalised pixels)",
            difference,
        )


# Images


def calibration_batches(source: RuntimeSource, images: str, count: int) -> Iterator[np.ndarray]:
    """Batches of one image, drawn from all that a source has (`data.loading.load_images`).

    Raises:
        ValueError: naming `calibration_images` or the source of the images.
    """
    if count < 1:
        raise ValueError(f"calibration_images: must be at least 1, got {count}")
    dataset = load_images(images, "train", every_file=True, needs="images")
    column = find_column(dataset, Image, None, "calibration")
    chosen = np.sort(np.random.default_rng(DRAWN).choice(len(dataset), min(count, len(dataset)), replace=False))
    return (batch for batch, _ in _batches(source, dataset, column, None, chosen.tolist(), 1))


def labelled_batches(source: RuntimeSource, images: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All images of a labelled source, read as `--validation_dir` is, with the model's own classes.

    Raises:
        ValueError: naming `evaluate`, if the model is no classifier of one class for each image, or the source has
            classes that the model has not.
    """
    if source.classes is None or source.problem_type != SINGLE:
        what = "an encoder" if source.classes is None else f"for {source.problem_type}"
        raise ValueError(f"evaluate: is for classifiers of one class for each image; this model is {what}")
    dataset = load_labelled_split(ClassificationArguments(validation_dir=images), False)
    column, _ = class_names(dataset)
    dataset = same_classes(cast(datasets.Dataset, dataset), column, source.classes, "evaluate", "those of the model")
    dataset = labelled(dataset, column, "evaluate", "evaluate on")
    image_column = find_column(dataset, Image, None, "evaluate")
    return _batches(source, dataset, image_column, column, list(range(len(dataset))), BATCH)


def _batches(
    source: RuntimeSource,
    dataset: datasets.Dataset | RowSource,
    column: str,
    label: str | None,
    rows: list[int],
    size: int,
) -> Iterator[tuple[np.ndarray, Any]]:
    samples = ImageSamples(dataset, source.transform, column, label)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        found = samples.__getitems__(batch)
        if label:  # else any image will do
            broken = set(samples.broken)
            found = [sample for row, sample in zip(batch, found, strict=True) if row not in broken]
        if not found:
            continue
        images = torch.stack([sample["pixel_values"] for sample in found]).numpy()
        yield images, np.array([int(sample["labels"]) for sample in found]) if label else None


# Files


@dataclass
class RuntimeFiles:
    """What was written, and what it was found to be."""

    paths: list[Path]
    agreement: Agreement
    figures: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def _new_files(path: Path, names: list[str], overwrite: bool) -> Iterator[Path]:
    """A temporary folder whose files become those beside `path`; after an error nothing is left.

    Raises:
        ValueError: naming `out`, if there are such files already, or no such folder can be.
    """
    there = [path.parent / name for name in names if (path.parent / name).exists()]
    if folders := [each for each in there if each.is_dir()]:
        raise ValueError(f"out: {folders[0]} is a folder")
    if there and not overwrite:
        raise ValueError(f"out: {there[0]} is there already; --overwrite replaces it")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        with atomic_files(path.parent) as temporary:
            yield temporary
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, or not there
                folder.rmdir()
        raise


def export_onnx(
    source: RuntimeSource,
    path: Path,
    *,
    opset: int | None = None,
    dynamic_size: bool = False,
    tolerance: float = TOLERANCE,
    int8: bool = False,
    calibration: str | None = None,
    calibration_images: int = CALIBRATED,
    evaluate: str | None = None,
    overwrite: bool = False,
) -> RuntimeFiles:
    """Write a model as ONNX, beside it in 8-bit integers if asked for, and `..._check.json`, which says how they
    compare with PyTorch.

    Args:
        source: the model.
        path: of the file, which ends in `.onnx`.
        opset, tolerance: of `write_onnx`.
        dynamic_size: whether it takes images of other sizes.
        int8: whether there is one of 8-bit integers, `..._int8.onnx`.
        calibration: images that set its ranges; without them, activations are quantized as they come.
        calibration_images: how many of them.
        evaluate: labelled images for the accuracy of all.
        overwrite: whether files that are there are replaced.

    Raises:
        ValueError: naming the argument that cannot be. Nothing is written then.
    """
    check_packages()
    small, check = (path.with_name(path.stem + end) for end in ("_int8.onnx", "_check.json"))
    names = [path.name, *([small.name] if int8 else []), check.name]
    # Read before anything else, as they may be wrong.
    labels = None if evaluate is None else labelled_batches(source, evaluate)
    images = None if calibration is None else list(calibration_batches(source, calibration, calibration_images))
    with _new_files(path, names, overwrite) as folder:
        reference = copy.deepcopy(source.model) if evaluate is not None else None
        stride = source.stride if dynamic_size else None
        agreement, traced = write_onnx(
            source.model,
            folder / path.name,
            source.channels,
            source.size,
            source.metadata,
            opset=opset,
            stride=stride,
            tolerance=tolerance,
        )
        written = {"opset": opset_of(folder / path.name), "tolerance": tolerance}
        figures: dict[str, Any] = {"float32": {**asdict(agreement), **written}}
        if traced.multiple is not None:
            figures["float32"]["size_multiple"] = traced.multiple
        runtimes = {} if reference is None else {PYTORCH: pytorch(reference)}
        runtimes["onnx float32"] = session(folder / path.name)
        if int8:
            layers = quantize(folder / path.name, folder / small.name, images)
            figures["int8"] = {"layers": dict(layers), "calibration_images": 0 if images is None else len(images)}
            runtimes["onnx int8"] = session(folder / small.name)
        if labels is not None:
            figures["evaluation"] = evaluate_runtimes(runtimes, labels)
        elif images is not None:
            figures["on_calibration_images"] = evaluate_runtimes(runtimes, ((batch, None) for batch in images))
        versions = {name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
        figures["versions"] = {"a2mim": __version__, "python": platform.python_version(), **versions}
        write_json(folder / check.name, figures)
        del runtimes
    if overwrite and not int8 and small.is_file():
        small.unlink()
        logger.info("removed: %s, of what was there before; --int8 writes it anew", small)
    return RuntimeFiles([path.with_name(name) for name in names], agreement, figures)


def export_program(
    source: RuntimeSource,
    path: Path,
    *,
    dynamic_size: bool = False,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> RuntimeFiles:
    """Write a model as a program of `torch.export`. Arguments and errors as of `export_onnx`."""
    stride = source.stride if dynamic_size else None
    with _new_files(path, [path.name], overwrite) as folder:
        agreement, _ = write_program(
            source.model,
            folder / path.name,
            source.channels,
            source.size,
            source.metadata,
            stride=stride,
            tolerance=tolerance,
        )
    return RuntimeFiles([path], agreement)
