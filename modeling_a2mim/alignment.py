"""Whether the cells of a feature map lie where the image's do: changed pixels have to change the cells over them.

Shapes cannot tell. Hiera, for one, holds its tokens in another order than the image until its last stage.
"""

import math
from typing import Any

import torch
from torch import nn

from .encoders import EncoderPlan, Site
from .masking import pixel_mask, resize_mask


# See benchmarks/results/architectures.json: maps laid out like the image reach TODO
LEAST_ALIGNMENT = 0.75


def choose_site(encoder: nn.Module, plan: EncoderPlan, config) -> tuple[Site, float]:
    """The first of the plan's sites whose cells lie where the image's do, and how well (`alignment`). An encoder
    without values yet (on the meta device) gets the preferred one, and NaN.

    Raises:
        ValueError: if there is none.
    """
    if any(parameter.is_meta for parameter in encoder.parameters()):
        return plan.sites[0], math.nan
    found = {}
    for site in plan.sites:
        found[site] = alignment(encoder, site, config)
        if not found[site] < LEAST_ALIGNMENT:  # also where an encoder that overflows tells nothing
            return site, found[site]
    raise ValueError(
        f"mask_site: the cells of {plan.sites[0].module!r} in {config.architecture} do not lie where the image's do: "
        f"with one of them changed, {found[plan.sites[0]]:.0%} of the others change less, where half would by chance; "
        "choose an earlier module, such as the patch embedding"
    )


class _Reached(Exception):
    """Ends a forward at the module that was looked for; carries its output."""


@torch.no_grad()
def alignment(encoder: nn.Module, site: Site, config) -> float:
    """How well the cells of a site lie where the image's do: 1 is perfectly, 0.5 is what chance gives.

    The pixels of one cell of the mask are changed, and the cells of the site are ranked by how much they change.
    Returns the probability that a cell under the mask changes more than another (the area under the ROC curve), the
    mean of some places of the mask: of few, or of more where those leave a doubt.
    """
    grid = tuple(map(min, zip(site.layout.grid, config.mask_grid, strict=True)))
    if math.prod(grid) == 1:
        return 1.0  # one cell lies nowhere else
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, config.num_channels, *config.input_size, generator=generator)
    masks = torch.eye(math.prod(grid)).view(-1, *grid)[torch.randperm(math.prod(grid), generator=generator)]
    areas = []
    for some in (masks[:3], masks[3:15]):
        if not len(some):
            continue
        images = torch.cat([image[None], torch.where(pixel_mask(some, config.input_size), other, image)])
        output = run_until(encoder, site.module, images.to(next(encoder.parameters())))
        maps = site.layout.to_map(output, site.layout.grid).double()
        change = (maps[1:] - maps[:1]).square().sum(1).flatten(1).cpu()
        if not change.isfinite().all():
            return math.nan
        masked = resize_mask(some, site.layout.grid).flatten(1).bool()
        count, ranks = masked.sum(1), change.argsort(1).argsort(1).double()
        area = ((ranks * masked).sum(1) - count * (count - 1) / 2) / (count * (~masked).sum(1))
        areas += area.tolist()
        if min(areas) > 0.95:
            break
    return sum(areas) / len(areas)


def run_until(encoder: nn.Module, module: str, pixel_values: torch.Tensor) -> Any:
    """The output of a module of the encoder in evaluation mode; what comes after it does not run."""

    def stop(module, args, output):
        raise _Reached(output)

    training, handle = encoder.training, encoder.get_submodule(module).register_forward_hook(stop)
    try:
        encoder.eval().forward_features(pixel_values)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
        encoder.train(training)
    raise AssertionError(f"{module} was not reached")
