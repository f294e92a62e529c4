"""Checkpoints that are either complete or not used.

Trainer writes a checkpoint into a temporary folder, `.incomplete/checkpoint-N`. When all processes are done, a
manifest (`checkpoint.json`: size and CRC-32 of every file) is added, all files are synced to disk, and the folder is
renamed to `checkpoint-N`. A kill at any moment leaves the last complete checkpoint as it was, and a file that is not
as the manifest says (truncated, missing, changed) is found when training resumes.
"""

import json
import logging
import os
import re
import shlex
import shutil
import time
import zlib
from pathlib import Path

from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..configuration_a2mim import A2MIMConfig
from ..export.record import PACKAGES, version
from ..utils.files import RUN_FILE, sync


MANIFEST = "checkpoint.json"
TEMPORARY = ".incomplete"  # the folder's name, which neither Trainer nor this package takes for a checkpoint
FORMAT = 1

logger = logging.getLogger("a2mim")


# Writing


def clear_temporary(run_dir: str | os.PathLike):
    """Remove the temporary folder of `run_dir` that a killed process left, before the next checkpoint is written."""
    temporary = Path(run_dir) / TEMPORARY
    if temporary.exists():
        shutil.rmtree(temporary)


def complete(
    folder: Path,
    target: Path,
    model: PreTrainedModel,
    data: dict | None,
    save_only_model: bool = False,
    run: dict | None = None,
):
    """Write the manifest of `folder`, sync all files to disk, and rename the folder to `target`, which is replaced.

    Args:
        folder: `TEMPORARY/checkpoint-N`, where every process has written its files.
        target: `checkpoint-N`.
        model: whose settings the manifest keeps, for `check_settings`.
        data: the position in the data, kept as it is; must be JSON.
        save_only_model: whether the checkpoint lacks what training needs to go on.
        run: what the run was set to (`resuming.keep`).
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "crc32": _crc32(path)}
        sync(path)
    manifest = {
        "format": FORMAT,
        "saved": _after_all_in(target.parent),
        "versions": {name: version(name) for name in PACKAGES},
        "save_only_model": save_only_model,
        "settings": settings(model),
        "run": run,
        "data": data,
        "files": files,
    }
    manifest = json.loads(json.dumps(manifest))  # as it will be read
    manifest["crc32"] = _crc32_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    sync(folder / MANIFEST)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(path)
    _rename(folder, target)


def _after_all_in(run_dir: Path) -> float:
    """The time in seconds, but later than that of any checkpoint of the run: other machines may have other clocks."""
    return max(time.time(), max(_times(checkpoints_in(run_dir)).values(), default=0.0) + 1e-3)


def _rename(folder: Path, target: Path):
    """Rename `TEMPORARY/checkpoint-N`; after a kill between the two renames, `find_checkpoint` does the second."""
    if target.exists():
        os.rename(target, folder.with_name(f"{folder.name}.old"))
    os.rename(folder, target)
    sync(target.parent)
    remove_leftovers(target.parent)


def remove_leftovers(run_dir: str | os.PathLike):
    """Delete the temporary folder of `run_dir`: checkpoints that are not complete, or were replaced."""
    temporary = Path(run_dir) / TEMPORARY
    if temporary.exists():
        _delete(temporary)


def rotate(run_dir: str | os.PathLike, limit: int | None, keep: list[str | os.PathLike]):
    """Delete checkpoints until `limit` are left: first those that are broken, then those of later steps than the last
    one, which are of a run that went back, then the oldest; never those in `keep`.

    Unlike with Trainer, a checkpoint loses its name before its files, and its age is the one in its manifest, not the
    time at which its folder was modified.
    """
    if limit is None or limit <= 0:
        return
    kept = {Path(folder).resolve() for folder in keep}
    folders = newest_first(run_dir)[::-1]
    whole = [folder for folder in folders if not verify(folder, checksums=False)]
    last = _number(whole[-1]) if whole else 0
    folders.sort(key=lambda folder: (folder in whole, _number(folder) <= last))
    free = [folder for folder in folders if folder.resolve() not in kept]
    for folder in free[: max(0, len(folders) - max(limit, len(kept)))]:
        gone = Path(run_dir) / TEMPORARY / f"{folder.name}.old"
        gone.parent.mkdir(exist_ok=True)
        os.rename(folder, gone)
        _delete(gone)
    remove_leftovers(run_dir)


# Reading


def read_manifest(folder: str | os.PathLike) -> dict:
    """The manifest of a checkpoint, as `complete` wrote it.

    Raises:
        ValueError: if there is none, or if it is damaged or of another format.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        intact = manifest.pop("crc32") == _crc32_of(manifest)
    except FileNotFoundError:
        raise ValueError(
            f"has no {MANIFEST}: it was not completed, or another program wrote it (transformers' own Trainer, say)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} is damaged: {error}") from error
    if not intact:
        raise ValueError(f"{MANIFEST} is damaged: it does not have its own checksum")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} has format {manifest.get('format')}, this version of the package reads {FORMAT}")
    return manifest


def verify(folder: str | os.PathLike, checksums: bool = True) -> list[str]:
    """What is wrong with a checkpoint, each time naming the file; nothing if it is complete.

    Args:
        checksums: read every file; else only their sizes are compared.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return [str(error)]
    problems = []
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size < expected["size"]:
                problems.append(f"{name} is truncated: {size} of {expected['size']} bytes")
            elif size > expected["size"]:
                problems.append(f"{name} has {size} bytes instead of {expected['size']}")
            elif checksums and _crc32(path) != expected["crc32"]:
                problems.append(f"{name} does not have the recorded checksum")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:  # a failing disk, say
            problems.append(f"{name} cannot be read: {error}")
    return problems


def resumes(value: str | bool | None) -> bool:
    """Whether `resume_from_checkpoint` says to resume."""
    return value not in (None, False, "") and str(value).lower() != "false"


def find_checkpoint(value: str | bool | None, output_dir: str, thorough: bool = False) -> str | None:
    """The checkpoint to resume from: `value` itself, or the complete one in it that was saved last; with `True` or
    `"last"` that in `output_dir`. `None` if `value` says not to resume, or if it is `True` or `"last"` and
    `output_dir` holds no checkpoint yet, as at the first start of a job that may be started again.

    Args:
        thorough: compare checksums, warn of newer checkpoints that are broken or not gone on from, and finish the
            renaming of the last one if its process was killed meanwhile. Without: compare sizes alone, and change
            nothing.

    Raises:
        ValueError: if there is none; what is wrong with each that is not complete, or cannot be resumed from.
    """
    if not resumes(value):
        return None
    latest = value is True or str(value).lower() in ("true", "last")
    folder = Path(output_dir if latest else str(value))
    if latest and not _begun(folder):
        if thorough:
            logger.info("resume_from_checkpoint %s: %s holds no checkpoint yet: a new run begins", value, folder)
        return None
    if not folder.is_dir():
        there = [path.name for path in newest_first(Path(output_dir))][:3]
        hint = f"; {output_dir} has {', '.join(there)}; `last` is the last one that is whole" if there else ""
        raise ValueError(f"resume_from_checkpoint: there is no folder {folder}{hint}")
    if not latest and _is_checkpoint(folder):
        if problems := _resume_problems(folder, thorough):
            others = (other for other in newest_first(folder.parent) if other.resolve() != folder.resolve())
            other = next((other for other in others if not _resume_problems(other, thorough)), None)
            hint = f"; the last complete one beside it is {other}" if other else ""
            raise ValueError(f"resume_from_checkpoint: {folder} cannot be used: {_listed(problems)}{hint}")
        if thorough and folder.parent.resolve() == Path(output_dir).resolve():
            _warn_of_later(folder)
        return str(folder)
    if thorough:
        _finish_renaming(folder)
    broken: list[str] = []
    for checkpoint in newest_first(folder) if thorough else newest_first(folder, folder / TEMPORARY):
        problems = _resume_problems(checkpoint, thorough)
        if not problems:
            if thorough and broken:
                logger.warning("%s; going on from %s", "; ".join(broken), checkpoint.name)
            return str(checkpoint)
        if checkpoint.parent == folder:
            broken.append(f"{checkpoint.name} cannot be used: {_listed(problems)}")
    if broken:
        raise ValueError(f"resume_from_checkpoint: {folder} holds no complete checkpoint; {'; '.join(broken)}")
    raise ValueError(f"resume_from_checkpoint: {folder} holds no {PREFIX_CHECKPOINT_DIR}-N")


def _warn_of_later(checkpoint: Path):
    paths = newest_first(checkpoint.parent)
    place = next((i for i, path in enumerate(paths) if path.resolve() == checkpoint.resolve()), 0)
    if later := [path.name for path in paths[:place]]:
        logger.warning(
            "resume_from_checkpoint: going on from %s, after which %s had been saved: checkpoints of this run replace "
            "those of the same step, and from its first one on, 'last' is the last of its own",
            *(checkpoint.name, ", ".join(later)),
        )


def _begun(run_dir: Path) -> bool:
    """Whether there is any checkpoint, complete or broken."""
    renaming = any(not verify(path) for path in checkpoints_in(run_dir / TEMPORARY))  # see `_rename`
    return bool(checkpoints_in(run_dir)) or renaming


def settings(model: PreTrainedModel) -> dict:
    """What a model and a checkpoint must share: the class, and the fields of the configuration."""
    config = model.config.to_dict()
    names = [name for name in (*A2MIMConfig.__annotations__, "id2label", "backbone_config") if name in config]
    return {"model": type(model).__name__, **{name: config[name] for name in names}}


def check_settings(checkpoint: str | os.PathLike, model: PreTrainedModel):
    """Refuse to go on with a model of other settings than the checkpoint's, also where the weights fit.

    Raises:
        ValueError: naming what is different, and both values.
    """
    ours = json.loads(json.dumps(settings(model)))  # as JSON gives them back
    theirs = _completed(read_manifest(checkpoint)["settings"], ours)
    compared = _as_pairs(theirs), _as_pairs(ours)
    names = [name for name in theirs if compared[0][name] != compared[1].get(name)]
    if names:
        made = " and ".join(f"{name} {_short(theirs[name])}" for name in names)
        has = " and ".join(_short(ours.get(name)) for name in names)
        file = Path(checkpoint).parent / RUN_FILE
        kept = f" (--config {shlex.quote(str(file))} has them)" if file.exists() else ""
        raise ValueError(
            f"resume_from_checkpoint: {Path(checkpoint).name} was made with {made}, this run has {has}; go on with "
            f"the same settings{kept}, or start another run in another output_dir"
        )


def _completed(theirs: dict, ours: dict) -> dict:
    """Settings of a checkpoint, with the defaults of fields that were added since."""
    fields = [name for name in A2MIMConfig.__annotations__ if name in ours and name not in theirs]
    completed = theirs | {name: getattr(A2MIMConfig, name) for name in fields}
    if theirs.get("backbone_config") and ours.get("backbone_config"):
        completed["backbone_config"] = _completed(theirs["backbone_config"], ours["backbone_config"])
    return completed


def _as_pairs(settings: dict) -> dict:
    """Settings with each image size as (height, width): what is 64 in one file may be 64, 64 in another."""
    pairs = {k: [v, v] if k == "image_size" and isinstance(v, int) else v for k, v in settings.items()}
    return {k: _as_pairs(v) if k == "backbone_config" and isinstance(v, dict) else v for k, v in pairs.items()}


def _finish_renaming(run_dir: Path):
    """Finish a `_rename` that was killed."""
    for folder in checkpoints_in(run_dir / TEMPORARY):
        target = run_dir / folder.name
        if verify(target) and not verify(folder):
            _rename(folder, target)
            return  # there is never more than one


def _resume_problems(folder: Path, checksums: bool) -> list[str]:
    problems = verify(folder, checksums)
    if not problems and read_manifest(folder)["save_only_model"]:
        return ["it holds the model alone (--save_only_model), with which a new run can start (--model_name_or_path)"]
    return problems


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is, or was meant to be, a checkpoint itself."""
    named = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.resolve().name)
    marked = any((folder / name).exists() for name in (MANIFEST, "trainer_state.json"))
    return bool(named) or (marked and not checkpoints_in(folder))


def checkpoints_in(folder: str | os.PathLike) -> list[Path]:
    """Every `checkpoint-N` in a folder, complete or not."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
    paths = Path(folder).iterdir() if Path(folder).is_dir() else []
    return [path for path in paths if pattern.fullmatch(path.name) and path.is_dir()]


def newest_first(*folders: str | os.PathLike) -> list[Path]:
    """What `checkpoints_in` gives for these folders, the one that was saved last first: that of the last step, unless
    a run went back to an earlier one."""
    paths = [path for folder in folders for path in checkpoints_in(folder)]
    times = _times(paths)
    return sorted(paths, key=lambda path: (times[_number(path)], _number(path)), reverse=True)


def _times(paths: list[Path]) -> dict[int, float]:
    """When the checkpoint of each step was saved, in seconds. One that does not say so, as it is broken, has the place
    of its step."""
    times: dict[int, float] = {}
    for path in sorted(paths, key=_number):  # of the same step, the first in `paths` counts
        try:
            saved = read_manifest(path)["saved"]
        except ValueError:
            saved = max(times.values(), default=0.0)
        times.setdefault(_number(path), saved)
    return times


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _listed(problems: list[str], most: int = 8) -> str:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return ", ".join([*problems[:most], *more])


def _short(value, most: int = 80) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _crc32(path: Path) -> str:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _crc32_of(manifest: dict) -> str:
    return f"{zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):08x}"


def _delete(folder: Path):
    try:
        shutil.rmtree(folder)
    except OSError as error:  # the files are of no use: no reason to end a run
        logger.warning("%s could not be deleted: %s", folder, error)
