"""The output folder of a run: what another run left in it is refused, or deleted with `--overwrite_output_dir`."""

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from ..export.filenames import ERRORS, EVAL_RESULTS_FOLDER, NEEDED, PICTURES, PROCESSOR, RECORD_FILE, RUNTIME_FILES
from ..pretrained import PRETRAINING_FOLDER
from ..utils.files import folder_around
from .checkpoints import checkpoints_in, resumes


METRICS = "metrics.jsonl"
RECONSTRUCTIONS = "reconstructions"
FINISHED = ("model.safetensors", RECORD_FILE)  # one of which every export has, whatever the task
# What runs write, beside checkpoints. Not: `runs`, where each run has a folder of its own; `subset.json`, which is
# written before training begins.
WRITTEN = (
    *(*NEEDED, *PICTURES, PROCESSOR, RECORD_FILE, PRETRAINING_FOLDER, EVAL_RESULTS_FOLDER),
    *(METRICS, RECONSTRUCTIONS, ERRORS, "errors.csv", "predictions.txt", "results.json", "results.md", "run.yaml"),
    *RUNTIME_FILES,
    *("settings.json", "evaluation.yaml", "evaluation_pictures"),
    *(f"corruptions.{kind}" for kind in ("json", "md", "png")),
    *("trainer_state.json", "train_results.json", "eval_results.json", "all_results.json"),
)

logger = logging.getLogger("a2mim")


def check_output_dir(
    output_dir: str | os.PathLike,
    resume_from_checkpoint: str | bool | None,
    overwrite: bool = False,
    source: str | None = None,
    finished: Collection[str] = FINISHED,
):
    """Refuse to train into the folder of another run, unless this run resumes or is to overwrite it.

    Args:
        overwrite: `--overwrite_output_dir`.
        source: what the run starts from, an id on the Hub, a folder or a file, which it must not delete.
        finished: the files that only a finished run leaves.

    Raises:
        ValueError: if `output_dir` is a file or holds a finished model or checkpoints, or if what is to be
            overwritten is needed.
    """
    folder = Path(output_dir)
    if folder.is_file():
        raise ValueError(f"output_dir: {folder} is a file")
    if overwrite:
        if resumes(resume_from_checkpoint):
            raise ValueError(
                "overwrite_output_dir: a run that resumes goes on with what is in its folder; give either "
                "--overwrite_output_dir or --resume_from_checkpoint"
            )
        start = Path(source).resolve() if source is not None and Path(source).exists() else None
        if start and (start == folder.resolve() or any(start.is_relative_to(p.resolve()) for p in _left(folder))):
            raise ValueError(
                f"overwrite_output_dir: would delete {source}, from which this run starts (--model_name_or_path); "
                "name another --output_dir"
            )
    elif not resumes(resume_from_checkpoint):
        models = [name for name in finished if (folder / name).exists()]
        checkpoints = checkpoints_in(folder)
        what = [*(["checkpoints"] if checkpoints else []), *([f"results ({', '.join(models)})"] if models else [])]
        if what:
            go_on = "continue it with --resume_from_checkpoint last, " if checkpoints else ""
            raise ValueError(
                f"output_dir: {folder} holds {' and '.join(what)} of another run; {go_on}name another folder, or "
                "replace it with --overwrite_output_dir"
            )


def check_apart(output_dir: str | os.PathLike, data: dict[str, Collection[str | None]], overwrite: bool = False):
    """Refuse to write figures where images are read from: the next run, and this one when it resumes, would find them
    there.

    Args:
        data: what images are read from, by the argument that names it; what is no local folder is left out.
        overwrite: `--overwrite_output_dir`, which must not delete the images.

    Raises:
        ValueError: naming the two folders.
    """
    output = Path(output_dir).expanduser().resolve()
    for field, named in data.items():
        for name in named:
            folder = Path(name or "").expanduser()
            if name is None or not folder.is_dir():
                continue
            if place := folder_around(output, folder):
                raise ValueError(
                    f"output_dir: {output_dir} lies in {place} (--{field}), where the figures that a run writes "
                    "would become its images; name a folder outside"
                )
            written = [output / RECONSTRUCTIONS, *(_left(output) if overwrite else [])]
            if inside := next((p for p in written if folder.resolve().is_relative_to(p.resolve())), None):
                raise ValueError(f"{field}: {name} lies in {inside}, which the run writes or deletes; move the images")


def clear_output_dir(output_dir: str | os.PathLike):
    """Delete what an earlier run wrote to a folder, its checkpoints among it; files that no run writes stay."""
    left = _left(Path(output_dir))
    if left:
        names = ", ".join(path.name for path in left)
        logger.info("overwriting %s: %d files and folders of an earlier run deleted: %s", output_dir, len(left), names)
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _left(folder: Path) -> list[Path]:
    return sorted(checkpoints_in(folder)) + [folder / name for name in WRITTEN if (folder / name).exists()]
