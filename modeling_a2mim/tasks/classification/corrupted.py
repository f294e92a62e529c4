"""How much worse a classifier is on corrupted images: figures, files and a table."""

from pathlib import Path

from ...arguments.training import FineTuningArguments
from ...data.dataset import ImageSamples
from ...evaluation.corruptions import CORRUPTIONS, check_corruptions, plot_corruptions
from ...evaluation.robustness import corruption_table, evaluate_corruptions
from ...export.folder import timm_pretrained_cfg
from ...utils.files import write_json


def try_corruptions(
    model, samples: ImageSamples, args: FineTuningArguments, corruptions: list[str]
) -> tuple[dict[str, float], list[dict]]:
    """Accuracies of a classifier on corrupted images, as metrics and as rows of a table; writes `corruptions.json`,
    `corruptions.md` and what they look like, `corruptions.png`, to `args.output_dir`."""
    result = evaluate_corruptions(
        model,
        samples,
        timm_pretrained_cfg(model.a2mim),
        chosen_corruptions(corruptions),
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    table = corruption_table(result)
    if args.should_save:
        print(f"\n{table}\n")
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "corruptions.json", result)
        (folder / "corruptions.md").write_text(table + "\n")
        example = samples.first(1)[0]["pixel_values"]
        figure = plot_corruptions(
            example, model.config.image_mean, model.config.image_std, list(result["corruptions"])
        )
        figure.save(folder / "corruptions.png")
    names = ("clean_accuracy", "mean_corruption_accuracy", "relative_robustness")
    rows = [
        {"corruption": name.replace("_", " ")}
        | {f"severity {s}": f"{v:.3f}" for s, v in zip(result["severities"], found["accuracy"], strict=True)}
        | {"mean": f"{found['mean']:.3f}"}
        for name, found in result["corruptions"].items()
    ]
    return {f"eval_{name}": result[name] for name in names if result[name] is not None}, rows


def chosen_corruptions(given: list[str]) -> list[str]:
    """The types that `--corruptions` names; `all` stands for every one.

    Raises:
        ValueError: naming `corruptions`, if there is no such type, one is named twice, or `all` beside some.
    """
    if "all" in given and len(given) > 1:
        raise ValueError("corruptions: give either all or some types")
    chosen = list(CORRUPTIONS) if given == ["all"] else given
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"corruptions: {' '.join(chosen)} names one of them twice")
    check_corruptions(chosen)
    return chosen
