"""What a user should know before pre-training, and what to change when nothing was learned."""

import math

from ..arguments.training import A2MIMTrainingArguments
from ..configuration_a2mim import FEWEST_CELLS
from ..modeling_a2mim import A2MIMForPreTraining


FAR = 10  # times the usual learning rate, or a tenth of it
FEW = 4  # times fewer steps than usual
CROWDED = 0.9  # share of a map's cells that the mask token is in


def before_training(
    model: A2MIMForPreTraining, images: int, args: A2MIMTrainingArguments, from_weights: bool = False
) -> list[str]:
    """What is unusual about a run of pre-training on so many images, each with its numbers and what to do; nothing of
    most runs.

    Args:
        model: as it starts.
        images: how many it trains on.
        args: of training.
        from_weights: whether its encoder has learned before.
    """
    config, site_grid = model.config, model.a2mim.site.layout.grid
    found, batch, per_epoch = [], args.step_batch_size, args.steps_per_epoch(images)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(float(args.num_train_epochs) * per_epoch)
    if steps * FEW < args.USUAL_STEPS:
        found.append(
            f"{steps:,} steps, {steps / per_epoch:.3g} passes over {images:,} images, are few: an encoder needs some "
            f"{args.USUAL_STEPS:,} to reconstruct{_more_steps(args, images, steps)}{_other_decoder(model)}"
        )
    if args.freeze_encoder_steps and not from_weights:
        found.append(
            "the encoder is new, and with --freeze_encoder_steps it learns nothing at first: leave that out, or start "
            "from weights (--model_name_or_path, --pretrained)"
        )
    if batch * 2 > images:
        found.append(
            f"a step takes {batch} of {images:,} images, most of the data; a smaller --per_device_train_batch_size "
            "gives more steps in a pass"
        )
    usual = args.usual_learning_rate()
    if args.optimizes_like_adam and not usual / FAR < args.learning_rate < usual * FAR:
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


def what_to_change(model: A2MIMForPreTraining, args: A2MIMTrainingArguments, images: int | None, steps: int) -> str:
    """Advice after a run of so many steps that has not learned; `images` that were trained on, if that is known."""
    usual, words = args.usual_learning_rate(), []
    if args.optimizes_like_adam and not usual / 3 < args.learning_rate < usual * 3:
        words.append(f"the usual rate is {usual:g} (leave out --learning_rate and --base_learning_rate)")
    more = f", {args.USUAL_STEPS:,} or so" if steps < args.USUAL_STEPS else ""
    words.append(f"train for more steps{more}{_more_steps(args, images, steps)}{_other_decoder(model)}")
    return "; ".join(words)


def _more_steps(args: A2MIMTrainingArguments, images: int | None, steps: int) -> str:
    """How, unless `auto` makes no more than that."""
    if images is None:
        return ""
    epochs = args.usual_epochs(images)
    if epochs * args.steps_per_epoch(images) <= steps:
        return " (give --num_train_epochs or --max_steps)"
    return f" ({epochs} passes: --num_train_epochs auto)"


def _other_decoder(model: A2MIMForPreTraining) -> str:
    if model.config.decoder != "linear" or model.a2mim.plan.isotropic:
        return ""
    return ", and fewer with --decoder multiscale (--recipe small_data)"
