"""Multi-order interaction strength: how much pairs of patches work together, by how much else of the image is shown.

Li et al., 2023 (https://arxiv.org/abs/2205.13943), section 3, after Deng et al., 2022 (https://arxiv.org/abs/2111.06236).
"""

import argparse
import itertools
import logging
import os
import runpy
from collections.abc import Mapping
from dataclasses import asdict, fields

from ..export.record import versions
from ..utils.files import write_json
from ..utils.plotting import LONGEST_LABEL, new_figure, short_names
from ..utils.tables import markdown_table
from .comparison import DTYPES, Images, load_models, model_names
from .measurement import interaction_strength
from .results import ResultFiles
from .strength import InteractionSettings, InteractionStrength, rounded


logger = logging.getLogger("a2mim")

RESULTS = ResultFiles("interactions.json", "interactions.png", ".npz", goes_on=True)


def compare(args: argparse.Namespace):
    """What the command does with its arguments.

    Raises:
        ValueError: naming the argument that cannot be.
    """
    names = [field.name for field in fields(InteractionSettings)]
    settings = InteractionSettings(**{name: getattr(args, name) for name in names})
    if args.labels == "predicted" and args.label_column_name is not None:
        raise ValueError("label_column_name: has no effect with --labels predicted; leave one of them out")
    RESULTS.check(args.out, model_names(args), args.overwrite)
    models = load_models(args, "classifier")
    images = Images.open(args, labelled=args.labels != "predicted", models=models)
    classes = [images.classes(named, args.labels) for named in models]
    args.out.mkdir(parents=True, exist_ok=True)
    if args.overwrite:
        RESULTS.remove(args.out, [named.name for named in models])
    results = {}
    for named, known in zip(models, classes, strict=True):
        samples, counterpart = itertools.tee(images.samples(named))
        results[named.name] = interaction_strength(
            named.model,
            (sample["pixel_values"] for sample in samples),
            None if known is None else (known[int(sample["labels"])] for sample in counterpart),
            **asdict(settings),
            batch_size=args.batch_size,
            dtype=DTYPES[args.dtype],
            interval_width=args.interval_width,
            resume=args.out / RESULTS.of_model(named.name),
            description=named.name,
            total=len(images),
        )
    record = {"models": {name: result.to_dict() for name, result in results.items()}}
    (first, base), *others = results.items()
    if args.interval_width is None:  # with it, some models may have needed fewer images
        record["differences"] = {
            f"{name} - {first}": {
                "strength": rounded(result.strength - base.strength),
                "interval": rounded(result.difference_interval(base)),
            }
            for name, result in others
        }
    write_json(args.out / RESULTS.record, {**record, "versions": versions()})
    interaction_figure(results, args.out / RESULTS.figure)
    print(interaction_table(results))
    logger.info("written to %s", args.out)


def interaction_table(results: Mapping[str, InteractionStrength]) -> str:
    """J(m) of several models with its 95% interval, as a table in Markdown."""
    rows = []
    for place, order in enumerate(next(iter(results.values())).orders):
        values = [(result.strength[place], *result.strength_interval()[place]) for result in results.values()]
        rows.append([order, *(f"{mean:.3f} ({low:.3f}, {high:.3f})" for mean, low, high in values)])
    return markdown_table(["order m", *results], rows, spaced=True)


def interaction_figure(results: Mapping[str, InteractionStrength], path: str | os.PathLike):
    """Draw J(m) of several models over the share of the other patches that are shown, with the 95% intervals as bands,
    to a PNG file."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for label, result in zip(short_names(list(results), LONGEST_LABEL), results.values(), strict=True):
        shown = 100 * result.orders / (result.settings.players - 2)
        (line,) = axes.plot(shown, result.strength, marker="o", markersize=3, label=label)
        axes.fill_between(shown, *result.strength_interval().T, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("order m / (n - 2): other patches that are shown, %")
    axes.set_ylabel("interaction strength J(m), 1 on average")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title="95% interval over images as band", title_fontsize="small")
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.interactions", run_name="__main__")
