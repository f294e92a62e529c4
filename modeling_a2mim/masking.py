"""What is masked, what masked pixels become, and the mask token that enters a feature map of the encoder.

Masks are boolean, (batch, rows, columns), one value per cell of the image: True = 1 = masked.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.module_tracker import ModuleTracker

from .encoders.layout import FeatureLayout, tensors_in


def random_mask(
    batch_size: int,
    grid: tuple[int, int],
    num_masked: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Mask `num_masked` cells of each image, uniformly at random. Returns a bool tensor (batch, rows, columns)."""
    scores = torch.rand(batch_size, math.prod(grid), generator=generator, device=device)
    chosen = scores.topk(num_masked, dim=1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
    return mask.view(batch_size, *grid)


def as_grid(bool_masked_pos: torch.Tensor, batch_size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Bring a mask given by a user to a bool tensor (batch, rows, columns).

    Accepts (batch, rows, columns) of the grid or of cells that are whole multiples or fractions of the grid's, or flat
    (batch, cells) as transformers' masked-image models do, of the grid or any whole multiple of it: bool or integers,
    not 0 = masked, or floats of 0 and 1.

    Raises:
        ValueError: if it is no tensor, its shape fits neither, or floats are between or beyond 0 and 1.
    """
    expected = f"expected ({batch_size}, {grid[0]}, {grid[1]}) or ({batch_size}, {math.prod(grid)}) for this model"
    if not isinstance(bool_masked_pos, torch.Tensor):
        raise ValueError(f"bool_masked_pos: {expected}, as a tensor; got {type(bool_masked_pos).__name__}")
    mask = bool_masked_pos.bool()
    if mask.ndim == 2:
        factor = math.isqrt(max(mask.shape[1] // math.prod(grid), 1))
        rows, columns = grid[0] * factor, grid[1] * factor
        if rows * columns == mask.shape[1]:
            mask = mask.reshape(-1, rows, columns)
    # Where its cells do not share the grid's borders, masked pixels and masked features would not be the same.
    sides = list(zip(mask.shape[1:], grid, strict=True)) if mask.ndim == 3 and mask.numel() > 0 else []
    fits = sides and (all(a % b == 0 for a, b in sides) or all(b % a == 0 for a, b in sides))
    if not fits or mask.shape[0] != batch_size:
        shape = tuple(bool_masked_pos.shape)
        raise ValueError(f"bool_masked_pos: {expected}, or a multiple or fraction of both sides; got {shape}")
    # The values of floats alone are looked at, which on a GPU waits for it, and cannot be done while compiling.
    looks = bool_masked_pos.is_floating_point() and not torch.compiler.is_compiling()
    if looks and not torch.equal(mask.to(bool_masked_pos.dtype), bool_masked_pos.reshape(mask.shape)):
        raise ValueError("bool_masked_pos: expected 0 and 1, 1 = masked, got others; of a probability, give p > 0.5")
    return mask


def resize_mask(mask: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """Bring a mask (batch, rows, columns) to the resolution of a feature map: a cell of the map is masked if any part
    of it is."""
    if mask.shape[1:] == torch.Size(grid):
        return mask
    return F.adaptive_max_pool2d(mask[:, None].float(), grid)[:, 0] > 0


def pixel_mask(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring a mask (batch, rows, columns) to (batch, 1, height, width) in pixels, by the nearest cell."""
    return F.interpolate(mask[:, None].float(), size=size, mode="nearest") > 0


def fill_masked(pixel_values: torch.Tensor, mask: torch.Tensor, fill: str = "mean") -> torch.Tensor:
    """Replace the masked pixels of normalised images (batch, channels, height, width).

    `"mean"`: by the mean of each image's channels over all of its pixels, masked ones included (section 4.1 of the
    paper: zeros would shift the statistics that convolutions and BatchNorm see); `"zero"`; `"none"`: by themselves.
    """
    if fill == "none":
        return pixel_values
    value = pixel_values.mean((2, 3), keepdim=True) if fill == "mean" else pixel_values.new_zeros(())
    return torch.where(pixel_mask(mask, pixel_values.shape[-2:]), value, pixel_values)


class MaskToken(nn.Module):
    """The learned token, put where cells are masked into the output of one module of the encoder.

    add:     z <- gamma * z + token   at masked positions (gamma only where configured, else 1)
    replace: z <- token               at masked positions (SimMIM)

    It works as a forward hook, so that the encoder stays timm's. Without a mask the hook returns nothing, and the
    encoder computes exactly what it does in timm.

    Args:
        config: `A2MIMConfig`, of which `mask_token_mode` and `mask_gamma_init` count.
        layout: of the output of that module.
    """

    def __init__(self, config: Any, layout: FeatureLayout):
        super().__init__()
        self.layout = layout
        self.mode = config.mask_token_mode
        self.gamma_init = config.mask_gamma_init
        self.token = nn.Parameter(torch.empty(layout.channels))
        self.gamma = nn.Parameter(torch.empty(layout.channels)) if self.gamma_init is not None else None
        # The mask and the grid of the site's tokens: in a forward, and where gradient checkpointing runs it again.
        self.state: tuple[torch.Tensor, tuple[int, int]] | None = None
        self.state_in_backward: tuple[torch.Tensor, tuple[int, int]] | None = None

    def hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of the site; a bound method, so that deepcopy and pickle rebind it."""
        state = self.state
        if state is None and self.state_in_backward is not None:
            if not torch.compiler.is_compiling() and ModuleTracker().is_bw:
                state = self.state_in_backward
            else:  # of a backward that has ended
                self.state_in_backward = None
        if state is None:
            return None
        z, (mask, grid) = self.layout.pick(output), state
        shape = (-1, 1, 1) if self.layout.kind == "NCHW" else (-1, 1) if self.layout.kind == "NCL" else (-1,)
        own: dict[str, tuple[int, ...]] = {"NCHW": z.shape[2:], "NHWC": z.shape[1:3]}
        mask = self.layout.spread(resize_mask(mask, tuple(own.get(self.layout.kind, grid))))
        token = self.token.to(z.dtype).view(shape)
        if self.mode == "replace":
            return self.layout.put(output, torch.where(mask, token, z))
        scaled = z if self.gamma is None else z * self.gamma.to(z.dtype).view(shape)
        return self.layout.put(output, torch.where(mask, scaled + token, z))

    def restore_in_backward(self, outputs: Any) -> None:
        """For gradient checkpointing, which runs segments of the encoder, the hook among them, again in backward: when
        the gradient arrives at the outputs of this forward, its mask (or that it had none) becomes valid again.

        Args:
            outputs: of the encoder, while `state` is still that of its forward.
        """
        state = self.state
        for _, output in tensors_in(outputs):
            if output.requires_grad:
                output.register_hook(lambda gradient: setattr(self, "state_in_backward", state))
