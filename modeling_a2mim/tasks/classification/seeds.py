"""The same run with several seeds, and the tables and cards of its results."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from ...arguments.data import MULTI, REGRESSION, SINGLE, ClassificationArguments
from ...arguments.model import ClassifierArguments
from ...arguments.training import FineTuningArguments, with_values
from ...evaluation.summary import SUMMARY, layer_name, markdown, summarise, summarise_classes
from ...export.folder import write_card
from ...export.hub import push_folder
from ...export.loading import load_classifier, load_pretraining_model
from ...export.provenance import classification_provenance, few_labels
from ...export.record import hardware, read_record, versions
from ...pretrained import CLASSIFIERS, open_pretrained
from ...training.checkpoints import checkpoints_in
from ...training.encoder_trainer import EncoderTrainer
from ...training.outputs import check_output_dir, clear_output_dir
from ...utils.files import write_json
from ..encoder import build_classifier
from ..start import base_model_of, task_of
from .labelled_images import LabelledImages


logger = logging.getLogger("a2mim")

RESULTS = "results.json"
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
    """Fine-tune with each seed in a folder of its own, those that a resumed run finds done left out.

    Args:
        fine_tune: makes a trainer of `model_args`, `data_args`, `args` and `images`.
        model_args, data_args, args: as they were parsed.
        images: to train on and to evaluate on.

    Returns:
        Rows of `summary.summarise`.
    """
    rows: list[dict] = []
    folders = [seed_folder(args.output_dir, seed) for seed in data_args.seeds]
    options = args.resume_from_checkpoint, args.overwrite_output_dir, model_args.model_name_or_path
    check_output_dir(args.output_dir, *options, finished=[RESULTS])
    for folder in folders:
        check_output_dir(folder, *options)
    for seed, own_folder in zip(data_args.seeds, folders, strict=True):
        done = Path(own_folder, "eval_results.json")
        if args.resume_from_checkpoint and done.is_file():
            metrics = json.loads(done.read_text())
        else:
            resume = args.resume_from_checkpoint if checkpoints_in(own_folder) else None
            own = {"seed": seed, "output_dir": str(own_folder), "push_to_hub": False, "resume_from_checkpoint": resume}
            trainer = fine_tune(model_args, data_args, with_values(args, **own), images)
            if args.overwrite_output_dir and args.should_save and not rows:
                # All at once: resumed later, the set would take what the earlier one has done for its own.
                clear_output_dir(args.output_dir)
                for folder in folders:
                    clear_output_dir(folder)
            metrics = trainer.run()
        figures = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        common = {"subset": few_labels(data_args) or "all labels", "method": task_of(model_args), "seed": seed}
        layer = {"layer": model_args.probe_layers[0]} if model_args.probe_layers else {}
        rows.append({**common, **layer, **figures})
    return rows


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
    where = classification_provenance(data_args, images.split)
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
        if folders:
            # All have the same card.
            model, _ = build_classifier(model_args, images.names, images.problem_type, args.hub_token)
            for folder in folders:
                add_measured(folder, model, summary, measured_on)
        if model_args.add_to_card:
            source = model_args.model_name_or_path
            root = open_pretrained(source).kind
            measured = (load_classifier if root in CLASSIFIERS else load_pretraining_model)(source)
            add_measured(Path(source), measured, summary, measured_on)
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


def add_measured(folder: Path, model, rows: list[dict], measured_on: str):
    """Write rows into the record and the card of an exported folder, in place of the same ones of an earlier time."""
    record = read_record(str(folder))

    def key(row: dict) -> list:
        return [value for name, value in row.items() if name not in (*SUMMARY.values(), "seeds")]

    new = [key(row) for row in rows]
    record["measured"] = [row for row in record.get("measured", []) if key(row) not in new] + rows
    places = dict.fromkeys([*filter(None, record.get("measured_on", "").split("; ")), measured_on])
    write_card(model, folder, {**record, "measured_on": "; ".join(places)}, record.get("repo_id"))
