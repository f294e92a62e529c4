"""The same run with several seeds, and the tables and cards of its results."""

import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

from datasets import Image

from ...arguments.data import MULTI, REGRESSION, SINGLE, ClassificationArguments
from ...arguments.model import ClassifierArguments
from ...arguments.training import FineTuningArguments, with_values
from ...data.columns import find_column
from ...data.fingerprints import fingerprint_of_images
from ...data.labels import stored_labels
from ...data.splits import as_source
from ...evaluation.summary import SUMMARY, layer_name, markdown, summarise, summarise_classes
from ...export.folder import write_card
from ...export.hub import push_folder
from ...export.loading import load_classifier, load_pretraining_model
from ...export.provenance import classification_provenance, labels_used
from ...export.record import hardware, read_record, versions
from ...pretrained import CLASSIFIERS, open_pretrained
from ...training.callbacks import BeginCallback
from ...training.checkpoints import checkpoints_in
from ...training.encoder_trainer import EncoderTrainer
from ...training.outputs import check_output_dir, clear_output_dir
from ...training.resuming import flags, run_settings
from ...utils.files import write_json
from ..encoder import build_classifier
from ..start import base_model_of, task_of
from .data import choose_rows
from .labelled_images import LabelledImages


logger = logging.getLogger("a2mim")

RESULTS = "results.json"
SETTINGS = "settings.json"  # of one of several runs
DONE = "eval_results.json"
# Of the model's arguments, those that change nothing of what is trained.
OF_FROZEN = {"add_to_card", "eval_only", "knn", "knn_neighbours", "knn_temperature", "probe_strength"}
# What is trained and evaluated on, beside the images that are there.
CHOSEN = ("labels_per_class", "label_fraction", "max_train_samples", "max_eval_samples", "corruptions")
TABLE = "results.md"
MEANINGS = {
    SINGLE: "AUROC and average precision: of each class against the rest, their means over the classes with images. "
    "Balanced accuracy: the mean recall of these. Precision of a class that is never predicted counts as 0.",
    MULTI: "What has a probability above 1/2 is predicted. Mean average precision: over the classes that some images "
    "have and some have not. Subset accuracy: the share of images all of whose classes are right.",
    REGRESSION: "MAE and RMSE are in the unit of the targets; R2 is the share of their variance that is explained.",
}


def seed_folder(output_dir: str, seed: int) -> Path:
    """Where the run with one of several seeds is."""
    return Path(output_dir, f"seed-{seed}")


def repeat(
    fine_tune: Callable[..., EncoderTrainer],
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> list[dict]:
    """Fine-tune with each seed in a folder of its own, those that a resumed run finds done, with the same settings,
    left out.

    Args:
        fine_tune: makes a trainer of `model_args`, `data_args`, `args` and `images`.
        model_args, data_args, args: as they were parsed.
        images: to train on and to evaluate on.

    Returns:
        Rows of `summary.summarise`.

    Raises:
        ValueError: naming a setting that the runs that are done have not, or the folder that holds what would be lost.
    """
    rows: list[dict] = []
    folders = {seed: seed_folder(args.output_dir, seed) for seed in data_args.seeds}
    options = args.resume_from_checkpoint, args.overwrite_output_dir, model_args.model_name_or_path
    check_output_dir(args.output_dir, *options, finished=[RESULTS])
    earlier = [*folders.values(), *(Path(args.output_dir).glob("seed-*") if args.overwrite_output_dir else ())]
    for folder in dict.fromkeys(earlier):
        check_output_dir(folder, *options)
    settings = {seed: settings_of(model_args, data_args, args, images, seed) for seed in folders}
    done = [seed for seed, own in folders.items() if Path(own, DONE).is_file()] if args.resume_from_checkpoint else []
    for seed in done:
        check_settings(folders[seed], settings[seed])
    for seed, own_folder in folders.items():
        if seed in done:
            logger.info("seed %d: done before, in %s", seed, own_folder)
            metrics = json.loads(Path(own_folder, DONE).read_text())
        else:
            resume = args.resume_from_checkpoint if checkpoints_in(own_folder) else None
            own = {"seed": seed, "output_dir": str(own_folder), "push_to_hub": False, "resume_from_checkpoint": resume}
            trainer = fine_tune(model_args, data_args, with_values(args, **own), images)
            if args.overwrite_output_dir and args.should_save and not rows:
                # All at once: resumed later, the set would take what the earlier one has done for its own.
                clear_output_dir(args.output_dir)
                for folder in dict.fromkeys(earlier):
                    clear_output_dir(folder)
            if args.should_save:
                trainer.add_callback(BeginCallback(partial(write_json, own_folder / SETTINGS, settings[seed])))
            metrics = trainer.run()
        figures = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        common = {"subset": labels_used(data_args), "method": task_of(model_args), "seed": seed}
        layer = {"layer": model_args.probe_layers[0]} if model_args.probe_layers else {}
        rows.append({**common, **layer, **figures})
    return rows


def settings_of(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
    seed: int,
) -> dict[str, dict]:
    """What the run with a seed is set to, as JSON without paths (see `run_settings`), with what a run that resumes
    from a checkpoint is told by the checkpoint: the encoder's settings, and which images there are."""
    found = run_settings(args, flags(model_args, data_args), None, None)
    for name in ("seed", "data_seed"):  # each run has its own
        del found["training"][name]
    names = [f.name for f in fields(ClassifierArguments) if f.name not in OF_FROZEN]
    found["model"] = {name: getattr(model_args, name) for name in names} | found["model"]  # which has no paths
    rows = choose_rows(data_args, images, seed)
    chosen = {name: getattr(data_args, name) for name in CHOSEN}
    chosen["label_subset"] = None if rows is None else checksum(rows)
    chosen["training_data"] = identity(data_args, images, images.train)
    chosen["evaluation_data"] = identity(data_args, images, images.validation)
    found["data"] |= chosen
    return json.loads(json.dumps(found))


def identity(data_args: ClassificationArguments, images: LabelledImages, split) -> str:
    """What tells the images of a split and their labels from others."""
    column = find_column(split, Image, data_args.image_column_name, "image_column_name")
    source = as_source(data_args, split).select(column)
    return f"{fingerprint_of_images(source)} {checksum(stored_labels(split, images.column))}"


def checksum(values: list | None) -> str:
    """Of numbers or words, the same in each process."""
    return f"{zlib.crc32(repr(values).encode()):08x}"


def check_settings(folder: Path, settings: dict[str, dict]):
    """Refuse results of a run of other settings.

    Raises:
        ValueError: naming the first setting that differs, and both values.
    """
    path = folder / SETTINGS
    if not path.is_file():
        logger.warning("%s: done by an older version, which kept no settings to compare", folder)
        return
    kept = json.loads(path.read_text())
    for section, values in settings.items():
        for name, now in values.items():
            then = kept.get(section, {}).get(name, now)
            if then != now:
                raise ValueError(
                    f"{name}: {folder.name} was done with {then}, this run has {now}; go on with {then}, or start "
                    "another run in another --output_dir"
                )


def report(
    rows: list[dict],
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> dict:
    """Print a table of results, write it with all of them to `results.md` and `results.json`, and put it into the
    cards; returns the means."""
    summary = summarise(rows)
    by_class = summarise_classes(rows, images.names, images.counts(images.validation) or [0] * len(images.names))
    table = markdown(summary)
    where = classification_provenance(data_args, images.split, images.seen)
    place = where.get("evaluated_on") or where.get("evaluation_data")
    measured_on = f"on {len(images.validation):,} images of {place}, mean ± half a 95% interval over seeds"
    if args.should_save:
        print(f"\n{table}\n")
        record = {
            "architecture": model_args.architecture,
            "base_model": base_model_of(model_args),
            "task": task_of(model_args),
            **({"probe_layers": model_args.probe_layers} if model_args.probe_layers else {}),
            **where,
            **images.provenance(),
            **({"class_weights": args.class_weights} if args.class_weights else {}),
            "results": rows,
            "summary": summary,
            "by_class": by_class,
            "hardware": hardware(args.device, args.world_size),
            "versions": versions(),
        }
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        write_json(Path(args.output_dir, RESULTS), record)
        parts = [table, f"{measured_on[0].upper()}{measured_on[1:]}. {MEANINGS[images.problem_type]}"]
        parts += [markdown(by_class)] if by_class else []
        Path(args.output_dir, TABLE).write_text("\n\n".join(parts) + "\n")
        folders = [] if model_args.knn else [seed_folder(args.output_dir, seed) for seed in data_args.seeds]
        folders = [
            folder for folder in folders if (folder / "README.md").is_file()
        ]  # probes of inner layers have none
        told = "; ".join(filter(None, [f"{len(images.validation):,} of {place}", options_of(model_args, args)]))
        data = identity(data_args, images, images.validation)
        if folders:
            # All have the same card.
            model, _ = build_classifier(model_args, images.names, images.problem_type, args.hub_token)
            for folder in folders:
                add_measured(folder, model, summary, measured_on, told, data)
        if model_args.add_to_card:
            source = model_args.model_name_or_path
            root = open_pretrained(source).kind
            measured = (load_classifier if root in CLASSIFIERS else load_pretraining_model)(source)
            add_measured(Path(source), measured, summary, measured_on, told, data)
        if args.push_to_hub and folders:
            name = args.hub_model_id or Path(args.output_dir).resolve().name
            private, pictures = args.hub_private_repo, args.hub_pictures
            push_folder(folders[0], name, private=private, token=args.hub_token, pictures_of_data=pictures)
    logger.info("results are in %s", Path(args.output_dir, RESULTS))
    found: dict[str, list[float]] = {}
    several = len({row.get("layer") for row in rows}) > 1
    for row in rows:
        layer = f", layer {layer_name(row['layer'])}" if several else ""
        for name, words in SUMMARY.items():
            if name in row:
                found.setdefault(f"{row['method']}{layer}: {words}", []).append(row[name])
    return {name: sum(values) / len(values) for name, values in found.items()}


def options_of(model_args: ClassifierArguments, args: FineTuningArguments) -> str:
    """What changes the figures of `--knn` and is not the default, in words."""
    given = {
        "knn_neighbours": (model_args.knn_neighbours, ClassifierArguments.knn_neighbours),
        "knn_temperature": (model_args.knn_temperature, ClassifierArguments.knn_temperature),
        "probe_strength": (model_args.probe_strength, None),
        "class_weights": (" ".join(map(str, args.class_weights or ())), ""),
    }
    return ", ".join(f"{name} {value}" for name, (value, usual) in given.items() if value != usual)


def add_measured(folder: Path, model, rows: list[dict], measured_on: str, images: str, data: str):
    """Write rows into the record and the card of an exported folder, in place of the same ones of an earlier time.

    Args:
        images: what was evaluated on, and how, in words.
        data: the same as a checksum, for data that words do not tell apart.
    """
    record = read_record(str(folder))

    def key(row: dict) -> list:
        return [value for name, value in row.items() if name not in (*SUMMARY.values(), "seeds")]

    rows = [{"images": images, **row} for row in rows]
    earlier, new = record.get("measured", []), [key(row) for row in rows]
    of = record.get("measured_data", [])
    of = of if len(of) == len(earlier) else [data] * len(earlier)  # of an older version
    kept = [(row, own) for row, own in zip(earlier, of, strict=True) if key(row) not in new or own != data]
    record["measured"] = [row for row, _ in kept] + rows
    record["measured_data"] = [own for _, own in kept] + [data] * len(rows)
    places = dict.fromkeys([*filter(None, record.get("measured_on", "").split("; ")), measured_on])
    write_card(model, folder, {**record, "measured_on": "; ".join(places)}, record.get("repo_id"))
