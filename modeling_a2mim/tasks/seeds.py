"""How an encoder is judged: classifiers trained once or with several seeds, and frozen features; tables of results."""

import copy
import json
import logging
from pathlib import Path

import torch
from transformers import set_seed

from ..arguments.data import ClassificationArguments
from ..arguments.model import ClassifierArguments
from ..arguments.training import FineTuningArguments
from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.transforms import FineTuneTransform
from ..evaluation.frozen import evaluate_frozen
from ..evaluation.summary import SUMMARY, markdown, summarise, summarise_classes
from ..export.folder import timm_pretrained_cfg, write_card
from ..export.hub import push_folder
from ..export.loading import load_classifier, load_pretraining_model
from ..export.record import hardware, read_record, versions
from ..pretrained import CLASSIFIERS, open_pretrained
from ..training.checkpoints import checkpoints_in
from ..training.outputs import check_output_dir, clear_output_dir
from ..utils.files import finite
from .classification import (
    choose_rows,
    chosen_corruptions,
    evaluation_samples,
    fine_tune,
    judge_classifier,
    keep_subset,
    new_classifier,
)
from .classification_trainer import make_class_weights
from .labelled_images import NO_VALIDATION, LabelledImages
from .problem_types import check_problem_type


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


def run(model_args: ClassifierArguments, data_args: ClassificationArguments, args: FineTuningArguments) -> dict:
    """Do what the arguments say, once or with each of `data_args.seeds`; returns the metrics (means over seeds).

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    if model_args.linear_probe and model_args.probe_layers and args.push_to_hub:
        raise ValueError("probe_layers: timm knows no classifier on an inner layer; leave --push_to_hub out")
    if model_args.add_to_card and not (data_args.seeds or model_args.knn):
        raise ValueError("add_to_card: give --seeds, over which the means are written")
    if data_args.corruptions is not None:
        chosen_corruptions(data_args.corruptions)
    if model_args.eval_only:
        return judge_classifier(model_args, data_args, args)
    if data_args.problem_type in (MULTI, REGRESSION):
        check_problem_type(data_args.problem_type, model_args, data_args, args)
    images = LabelledImages.load(data_args, args.hub_token)
    if images.validation is None and (data_args.corruptions or model_args.knn or data_args.seeds):
        raise ValueError(NO_VALIDATION)
    images.check()
    if model_args.knn:
        rows = judge_frozen(model_args, data_args, args, images)
    elif data_args.seeds is None:
        return fine_tune(model_args, data_args, args, images).run()
    else:
        rows = fine_tune_often(model_args, data_args, args, images)
    return report(rows, model_args, data_args, args, images)


def judge_frozen(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> list[dict]:
    """k-NN and logistic regression on frozen features, for each seed and layer: rows of `metrics.summarise`. An
    encoder that was not pre-trained has other weights for each seed."""
    if args.class_weights is not None:
        logger.info("class_weights: are for the logistic regression; neighbours do not know of them")
    seeds = data_args.seeds or [args.seed if args.data_seed is None else args.data_seed]
    name, drawn = data_args.few_labels() or "all labels", {}
    for seed in seeds:
        rows = choose_rows(data_args, images, seed)
        if rows is not None and args.should_save:
            keep_subset(str(seed_folder(args, data_args, seed)), rows, data_args, images, seed)
        drawn[name, seed] = range(len(images.train)) if rows is None else rows
    if model_args.architecture is None:
        if data_args.few_labels() is None:  # each seed would give the same
            drawn = {(name, seeds[0]): drawn[name, seeds[0]]}
        return _judge(model_args, data_args, args, images, drawn)
    found = []
    for key, rows in drawn.items():
        set_seed(key[1])
        found += _judge(model_args, data_args, args, images, {key: rows})
    return found


def _judge(model_args, data_args, args, images: LabelledImages, subsets: dict) -> list[dict]:
    class_weights = args.class_weights
    if class_weights == ["balanced"]:
        class_weights = "balanced"
    elif class_weights is not None:
        class_weights = dict(enumerate(make_class_weights(class_weights, None, images.names)))
    model, _ = model_args.build(images.names, token=args.hub_token)
    model.to(args.device)
    transform = FineTuneTransform(timm_pretrained_cfg(model.a2mim), train=False, max_pixels=data_args.max_image_pixels)
    return evaluate_frozen(
        model,
        data_args.samples(images.train, transform, args.seed, images.column),
        evaluation_samples(model, data_args, images, args.seed),
        subsets,
        [-1] if model_args.probe_layers is None else model_args.probe_layers,
        neighbours=model_args.knn_neighbours,
        temperature=model_args.knn_temperature,
        strength=model_args.probe_strength,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        dtype=torch.bfloat16 if args.bf16 else None,
        names=images.names,
        class_weights=class_weights,
    )


# Several seeds


def seed_folder(args: FineTuningArguments, data_args: ClassificationArguments, seed: int) -> Path:
    return Path(args.output_dir, f"seed-{seed}") if data_args.seeds else Path(args.output_dir)


def fine_tune_often(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> list[dict]:
    """Fine-tune with each seed in a folder of its own, those that a resumed run finds done left out: rows of
    `metrics.summarise`."""
    rows = []
    folders = [seed_folder(args, data_args, seed) for seed in data_args.seeds]
    options = args.resume_from_checkpoint, args.overwrite_output_dir, model_args.model_name_or_path
    check_output_dir(args.output_dir, *options, finished=[RESULTS])
    for folder in folders:
        check_output_dir(folder, *options)
    for seed in data_args.seeds:
        own = copy.copy(args)
        own.seed, own.output_dir, own.push_to_hub = seed, str(seed_folder(args, data_args, seed)), False
        done = Path(own.output_dir, "eval_results.json")
        if args.resume_from_checkpoint and done.is_file():
            metrics = json.loads(done.read_text())
        else:
            if not checkpoints_in(own.output_dir):
                own.resume_from_checkpoint = None
            trainer = fine_tune(model_args, data_args, own, images)
            if args.overwrite_output_dir and args.should_save and not rows:
                # All at once: resumed later, the set would take what the earlier one has done for its own.
                for folder in (args.output_dir, *folders):
                    clear_output_dir(folder)
            metrics = trainer.run()
        figures = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        method = model_args.task
        rows.append({"subset": data_args.few_labels() or "all labels", "method": method, "seed": seed, **figures})
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
    where = data_args.provenance()
    place = where.get("evaluated_on") or where.get("evaluation_data")
    measured_on = f"on {len(images.validation):,} images of {place}, mean ± half a 95% interval over seeds"
    if args.should_save:
        print(f"\n{table}\n")
        record = {
            "architecture": model_args.architecture,
            "base_model": model_args.base_model(),
            "task": model_args.task,
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
        Path(args.output_dir, RESULTS).write_text(json.dumps(finite(record), indent=1) + "\n")
        parts = [table, f"{measured_on[0].upper()}{measured_on[1:]}. {MEANINGS[images.problem_type]}"]
        parts += [markdown(by_class)] if by_class else []
        Path(args.output_dir, TABLE).write_text("\n\n".join(parts) + "\n")
        folders = [] if model_args.knn else [seed_folder(args, data_args, seed) for seed in data_args.seeds]
        folders = [
            folder for folder in folders if (folder / "README.md").is_file()
        ]  # probes of inner layers have none
        if folders:
            model, _ = new_classifier(model_args, images, args.hub_token)  # all have the same card
            for folder in folders:
                add_measured(folder, model, summary, measured_on)
        if model_args.add_to_card:
            folder = model_args.model_name_or_path
            root = open_pretrained(folder).kind
            model = (load_classifier if root in CLASSIFIERS else load_pretraining_model)(folder)
            add_measured(Path(folder), model, summary, measured_on)
        if args.push_to_hub and folders:
            name = args.hub_model_id or Path(args.output_dir).resolve().name
            private, pictures = args.hub_private_repo, args.hub_pictures
            push_folder(folders[0], name, private=private, token=args.hub_token, pictures_of_data=pictures)
    logger.info("results are in %s", Path(args.output_dir, RESULTS))
    found: dict[str, list[float]] = {}
    several = len({row.get("layer") for row in rows}) > 1
    for row in rows:
        layer = f", layer {row['layer']}" if several else ""
        for name, words in SUMMARY.items():
            if name in row:
                found.setdefault(f"{row['method']}{layer}: {words}", []).append(row[name])
    return {name: sum(values) / len(values) for name, values in found.items()}


def add_measured(folder: Path, model, rows: list[dict], measured_on: str):
    """Write rows into the record and the card of an exported folder, in place of the same ones of an earlier time."""
    record = read_record(folder)

    def key(row: dict) -> list:
        return [value for name, value in row.items() if name not in (*SUMMARY.values(), "seeds")]

    new = [key(row) for row in rows]
    record["measured"] = [row for row in record.get("measured", []) if key(row) not in new] + rows
    places = dict.fromkeys([*filter(None, record.get("measured_on", "").split("; ")), measured_on])
    write_card(model, folder, {**record, "measured_on": "; ".join(places)}, record.get("repo_id"))
