"""Whether the cells of a feature map lie where the image's do: changed pixels have to change the cells over them.

Shapes cannot tell. Hiera, for one, holds its tokens in another order than the image until its last stage.
"""

import math
from typing import Any, NoReturn

import torch
from torch import nn

from .encoders.layout import Site
from .encoders.meta import TimmEncoder
from .encoders.plan import EncoderPlan
from .masking import pixel_mask, resize_mask


# With random weights Hiera's stages reach 0.0 at 224 px; of timm's other encoders up to 30M parameters, all but one
# (repvit_m2_3) reach 0.32 and more.
LEAST_ALIGNMENT = 0.3
PLACES = 8


def choose_site(encoder: TimmEncoder, plan: EncoderPlan, config: Any) -> tuple[Site, float]:
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
        if not found[site] < LEAST_ALIGNMENT:  # also NaN, where the encoder overflows
            return site, found[site]
    raise ValueError(
        f"mask_site: the cells of {plan.sites[0].module!r} in {config.architecture} do not lie where the image's do: "
        f"changed pixels change other cells (alignment {found[plan.sites[0]]:.2f}); choose an earlier module, such as "
        "the patch embedding"
    )


class _Reached(Exception):
    """Ends a forward at the module that was looked for; carries its output."""


@torch.no_grad()
def alignment(encoder: TimmEncoder, site: Site, config: Any) -> float:
    """How well the cells of a site lie where the image's do, from 0 (elsewhere) to 1.

    The pixels of one cell of the mask are changed. Returned is the share of the change at the site that lies under
    that cell, relative to the share of as many cells that change most; the mean over some places. A change that
    spreads over the whole map, as through plain convolutions or attention with random weights, tells nothing and gives
    about 1: then the order of timm is taken as it is.
    """
    grid = tuple(map(min, zip(site.layout.grid, config.mask_grid, strict=True)))
    generator = torch.Generator().manual_seed(0)
    image, other = torch.randn(2, config.num_channels, *config.input_size, generator=generator)
    places = torch.randperm(math.prod(grid), generator=generator)[:PLACES]
    masks = torch.eye(math.prod(grid))[places].view(-1, *grid)
    images = torch.cat([image[None], torch.where(pixel_mask(masks, config.input_size), other, image)])
    output = run_until(encoder, site.module, images.to(next(encoder.parameters())))
    maps = site.layout.to_map(output, site.layout.grid).double()
    change = (maps[1:] - maps[:1]).square().sum(1).flatten(1).cpu()
    masked = resize_mask(masks, site.layout.grid).flatten(1).bool()
    under = (change * masked).sum(1)
    most = torch.stack([c.topk(int(m.sum())).values.sum() for c, m in zip(change, masked, strict=True)])
    return (under / most).mean().item()


def run_until(encoder: TimmEncoder, module: str, pixel_values: torch.Tensor) -> Any:
    """The output of a module of the encoder in evaluation mode; what comes after it does not run."""

    def stop(module: nn.Module, args: Any, output: Any) -> NoReturn:
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
