"""What a user should know before pre-training, and what to change when nothing was learned."""

import math

from .configuration_a2mim import FEWEST_CELLS, A2MIMConfig
from .training_args import A2MIMTrainingArguments


FAR = 10  # times the usual learning rate, or a tenth of it
FEW = 4  # times fewer steps than usual
CROWDED = 0.9  # share of a map's cells that the mask token is in


def before_training(
    config: A2MIMConfig, site_grid: tuple[int, int], images: int, args: A2MIMTrainingArguments
) -> list[str]:
    """What is unusual about a run of pre-training, each with its numbers and what to do; nothing of most runs.

    Args:
        site_grid: (rows, columns) of the feature map that the mask token enters.
        images: to train on.
    """
    found, batch = [], args.step_batch_size
    per_epoch = max(1, images // batch if args.dataloader_drop_last else math.ceil(images / batch))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    if steps * FEW < args.USUAL_STEPS:
        usual = args.usual_epochs(images)
        found.append(
            f"{steps:,} steps, {steps / per_epoch:.3g} passes over {images:,} images, are few: an encoder needs some "
            f"{args.USUAL_STEPS:,} to reconstruct ({usual} passes: --num_train_epochs auto), with --decoder "
            "multiscale a quarter of that"
        )
    if batch * 2 > images:
        found.append(
            f"a step takes {batch} of {images:,} images, most of the data; a smaller --per_device_train_batch_size "
            "gives more steps in a pass"
        )
    usual = args.usual_learning_rate()
    if not usual / FAR < args.learning_rate < usual * FAR:
        found.append(f"a learning rate of {args.learning_rate:g} is far from the usual {usual:g} for {batch} images")
    rows, columns = config.mask_grid
    cell = " x ".join(map(str, config.mask_cell_size))
    if min(rows, columns) < FEWEST_CELLS:
        found.append(
            f"{rows} x {columns} cells of {cell} px are few to mask: give a smaller --mask_patch_size, for at least "
            f"{FEWEST_CELLS} x {FEWEST_CELLS}"
        )
    within = math.prod(max(1.0, cells / places) for cells, places in zip(config.mask_grid, site_grid, strict=True))
    share = 1 - (1 - config.mask_ratio) ** within
    if within > 1 and share > CROWDED:
        found.append(
            f"the mask token enters a map of {site_grid[0]} x {site_grid[1]}, coarser than the mask of {rows} x "
            f"{columns} cells: it is at about {100 * share:.0f}% of the map's places; a larger --mask_patch_size or "
            "an earlier --mask_site leaves more of them as they are"
        )
    return found


def what_to_change(args: A2MIMTrainingArguments, images: int, steps: int) -> str:
    """Advice after a run of so many steps that has not learned."""
    usual, words = args.usual_learning_rate(), []
    if not usual / 3 < args.learning_rate < usual * 3:
        words.append(f"the usual rate is {usual:g} (leave out --learning_rate and --base_learning_rate)")
    if steps < args.USUAL_STEPS:
        words.append(f"train for more steps, {args.USUAL_STEPS:,} or so ({args.usual_epochs(images)} passes)")
    words.append("for few images there is --recipe small_data")
    return "; ".join(words)
