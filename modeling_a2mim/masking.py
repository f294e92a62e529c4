"""What is masked, what masked pixels become, and where the mask token enters a timm encoder.

Masks are boolean, (batch, rows, columns), one value per cell of the image: True = 1 = masked.
This is the only module that knows how timm lays out an encoder.
"""

import difflib
import math
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F


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

    Accepts (batch, rows, columns) of any resolution, or flat (batch, cells) as transformers' masked-image models do,
    of the grid (rows, columns) or any whole multiple of it.

    Raises:
        ValueError: if the shape fits neither.
    """
    mask = bool_masked_pos.bool()
    if mask.ndim == 2:
        factor = math.isqrt(max(mask.shape[1] // math.prod(grid), 1))
        rows, columns = grid[0] * factor, grid[1] * factor
        if rows * columns == mask.shape[1]:
            mask = mask.view(-1, rows, columns)
    if mask.ndim != 3 or mask.shape[0] != batch_size:
        raise ValueError(
            f"bool_masked_pos: expected ({batch_size}, {grid[0]}, {grid[1]}) or ({batch_size}, {math.prod(grid)}) "
            f"for this model, got {tuple(bool_masked_pos.shape)}"
        )
    return mask


def resize_mask(mask: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bring a mask (batch, rows, columns) to the resolution of a feature map: a cell of the map is masked if any part
    of it is."""
    if mask.shape[1:] == torch.Size(grid):
        return mask
    return F.adaptive_max_pool2d(mask[:, None].float(), grid)[:, 0] > 0


def pixel_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
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


@dataclass(frozen=True)
class Layout:
    """How a tensor of an encoder holds a feature map: `kind` is "NCHW", "NHWC" or "NLC" (`prefix` tokens first)."""

    kind: str
    channels: int
    grid: tuple[int, int]
    prefix: int = 0

    def to_map(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The feature map of `x` as (batch, channels, rows, columns); prefix tokens are dropped."""
        if self.kind == "NCHW":
            return x
        if self.kind == "NHWC":
            return x.permute(0, 3, 1, 2)
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, grid)

    def spread(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask (batch, rows, columns), shaped so that it broadcasts over a tensor of this layout."""
        if self.kind == "NCHW":
            return mask[:, None]
        if self.kind == "NHWC":
            return mask[..., None]
        return F.pad(mask.flatten(1), (self.prefix, 0))[..., None]


class MaskToken(nn.Module):
    """The learned token, put where cells are masked into the output of one module of the encoder.

    add:     z <- gamma * z + token   at masked positions (gamma only where configured, else 1)
    replace: z <- token               at masked positions (SimMIM)

    It works as a forward hook, so that the encoder stays timm's. Without a mask the hook returns nothing, and the
    encoder computes exactly what it does in timm.
    """

    def __init__(self, config, layout: Layout):
        super().__init__()
        self.layout = layout
        self.mode = config.mask_token_mode
        self.gamma_init = config.mask_gamma_init
        self.token = nn.Parameter(torch.empty(layout.channels))
        self.gamma = nn.Parameter(torch.empty(layout.channels)) if self.gamma_init is not None else None
        # What the next forward of the site uses, and what it uses when gradient checkpointing runs it again.
        self.state: tuple[torch.Tensor, tuple[int, int]] | None = None
        self.state_in_backward: tuple[torch.Tensor, tuple[int, int]] | None = None

    def hook(self, module: nn.Module, args: Any, z: torch.Tensor) -> torch.Tensor | None:
        """Forward hook of the site; a bound method, so that deepcopy and pickle rebind it."""
        state = self.state
        if state is None and self.state_in_backward is not None and torch._C._current_graph_task_id() != -1:
            state = self.state_in_backward  # only inside a backward: one that failed has left its state behind
        if state is None:
            return None
        mask, grid = state
        shape = (-1, 1, 1) if self.layout.kind == "NCHW" else (-1,)
        grid = {"NCHW": z.shape[2:], "NHWC": z.shape[1:3], "NLC": grid}[self.layout.kind]
        mask = self.layout.spread(resize_mask(mask, tuple(grid)))
        token = self.token.to(z.dtype).view(shape)
        if self.mode == "replace":
            return torch.where(mask, token, z)
        scaled = z if self.gamma is None else z * self.gamma.to(z.dtype).view(shape)
        return torch.where(mask, scaled + token, z)

    def remember(self, state: tuple[torch.Tensor, tuple[int, int]] | None):
        """Checkpointed segments run again during backward, the hook among them: called when the gradient of a forward
        arrives at its encoder, this gives the token the mask of that very forward back until the backward ends."""
        self.state_in_backward = state
        torch.autograd.Variable._execution_engine.queue_callback(lambda: setattr(self, "state_in_backward", None))


@dataclass(frozen=True)
class EncoderPlan:
    """What was found out about an encoder before any of its weights were made."""

    create_args: dict[str, Any]  # keyword arguments of timm.create_model, except num_classes
    site: str  # name of the module whose output the mask token enters
    site_layout: Layout
    map_layout: Layout  # of forward_features
    stride: int  # pixels per cell of the last feature map
    head_norm: str | None  # name of the norm that the head applies after pooling

    def create(self, num_classes: int = 0) -> nn.Module:
        """Make the timm encoder."""
        return timm.create_model(**self.create_args, pretrained=False, num_classes=num_classes)


def scale_grid(layout: Layout, size: tuple[int, int], planned: tuple[int, int]) -> tuple[int, int]:
    """The grid of a token layout for an image of another size than the planned one."""
    return tuple(g * s // p for g, s, p in zip(layout.grid, size, planned, strict=True))


def is_isotropic(config) -> bool:
    """Whether the encoder keeps one resolution from its first to its last feature map."""
    encoder = _meta_encoder(_create_args(config))
    return len({info["reduction"] for info in encoder.feature_info}) == 1


def plan_encoder(config, decoded: bool = True) -> EncoderPlan:
    """Find out, without making weights, how to build an encoder and where its mask token goes.

    The encoder is built and run on the meta device, and the outputs of all its modules are looked at. `decoded` says
    whether the last feature map will be decoded, so that its cells have to cover the image.

    Raises:
        ValueError: naming the field (`architecture`, `model_args`, `image_size`, `mask_site`) that does not work.
    """
    args, encoder, calls, output = _trace(config)
    features = encoder.feature_info
    strides = [int(info["reduction"]) for info in features]
    final = _find_layout(output, config.input_size, strides[-1:], encoder)
    if final is None:
        raise ValueError(
            f"architecture: {config.architecture} ends in no feature map that a decoder could read "
            f"(forward_features gives {_describe(output)})"
        )
    if decoded:
        _check_cover(config, encoder, final, strides[-1])
    site, layout = _find_site(config, encoder, calls, strides)
    return EncoderPlan(args, site, layout, final, strides[-1], _head_norm(encoder, output, final, config))


def _create_args(config, sized: bool = False) -> dict[str, Any]:
    args = {"model_name": config.architecture, **config.model_args}
    if config.num_channels != 3:
        args["in_chans"] = config.num_channels
    if sized:
        args["img_size"] = list(config.input_size)
    return args


def _meta_encoder(args: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return timm.create_model(**args, pretrained=False, num_classes=0).eval()
    except Exception as error:
        given = {k: v for k, v in args.items() if k != "model_name"}
        raise ValueError(f"model_args: timm cannot build {args['model_name']} with {given}: {error}") from error


def _trace(config):
    """Build and run the encoder on the meta device. Returns (arguments of timm.create_model, encoder, the output of
    each module by name in the order of completion, output of forward_features)."""
    height, width = config.input_size
    failures = []
    for sized in (False, True):
        args = _create_args(config, sized)
        try:
            encoder = _meta_encoder(args)
        except ValueError as error:
            if not sized:
                raise
            failures.append(error)
            continue
        calls: dict[str, Any] = {}

        def record(name, calls=calls):
            def hook(module, args, result):
                calls.pop(name, None)
                calls[name] = result

            return hook

        handles = [module.register_forward_hook(record(name)) for name, module in encoder.named_modules()]
        try:
            with torch.no_grad(), torch.device("meta"):
                output = encoder.forward_features(torch.empty(1, config.num_channels, height, width))
            return args, encoder, calls, output
        except Exception as error:  # timm refuses sizes with many kinds of errors; the first is reported below
            failures.append(error)
        finally:
            for handle in handles:
                handle.remove()
    raise ValueError(
        f"image_size: {config.architecture} cannot take images of {height} x {width} px with {config.num_channels} "
        f"channel(s): {failures[0]}"
    )


def _check_cover(config, encoder, final: Layout, stride: int):
    """Cells that leave a border of the image out lie elsewhere than the decoder's; only an encoder that does so at its
    own size is taken as it is."""
    size = config.input_size
    if all(g * stride >= s for g, s in zip(final.grid, size, strict=True)):
        return
    if tuple((getattr(encoder, "pretrained_cfg", None) or {}).get("input_size", ())[1:]) != size:
        fits = [s // stride * stride + extra for s in size for extra in (0, stride)]
        raise ValueError(
            f"image_size: {config.architecture} sees only {final.grid[0] * stride} x {final.grid[1] * stride} of "
            f"{size[0]} x {size[1]} px; use a multiple of {stride}, such as {', '.join(map(str, sorted(set(fits))))}"
        )


def _find_layout(output, size, strides, encoder, channels: int | None = None) -> Layout | None:
    """The layout of a module's output, if it is a feature map of one of the given strides (of a batch of 1)."""
    if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4) or output.shape[0] != 1:
        return None
    # A grid is its image divided by the stride, rounded either way.
    grids = {(f(size[0] / s), f(size[1] / s)) for s in strides for f in (math.floor, math.ceil)}
    found = []
    if output.ndim == 4:
        _, a, b, c = output.shape
        found = [Layout("NCHW", a, (b, c)), Layout("NHWC", c, (a, b))]
        if getattr(encoder, "output_fmt", "NCHW") == "NHWC":  # only to decide where rows = columns = channels
            found.reverse()
        found = [layout for layout in found if layout.grid in grids]
    else:
        _, length, width = output.shape
        candidates = sorted((length - rows * columns, (rows, columns)) for rows, columns in grids)
        found = [Layout("NLC", width, grid, prefix) for prefix, grid in candidates if 0 <= prefix <= 16]
    return next((layout for layout in found if channels in (None, layout.channels)), None)


def _find_site(config, encoder, calls, strides) -> tuple[str, Layout]:
    """The module whose output the token enters, and the layout of that output."""
    features = encoder.feature_info
    isotropic = len(set(strides)) == 1
    modules = dict(encoder.named_modules())
    site = config.mask_site
    expected = None  # (channels, stride) where timm declares them
    if site is None and isotropic:
        site = "stem"
    elif site is None:
        site = -2
    if isinstance(site, int):
        if not -len(features) <= site < len(features):
            raise ValueError(
                f"mask_site: {config.architecture} has {len(features)} feature maps, there is no index {site}"
            )
        expected = (features[site]["num_chs"], strides[site])
        name = features[site]["module"]
    elif site == "stem":
        name = next((n for n in ("patch_embed", "stem") if n in calls), features[0]["module"])
    elif site in modules:
        name = site
    else:
        close = difflib.get_close_matches(site, modules, n=3) or [info["module"] for info in features]
        raise ValueError(f"mask_site: {config.architecture} has no module {site!r}; for example {', '.join(close)}")

    # Gradient checkpointing runs the children of a Sequential without it, and its hooks: hook its last child instead.
    while isinstance(modules.get(name), nn.Sequential) and len(modules[name]):
        name = f"{name}.{list(modules[name]._modules)[-1]}"
    channels, allowed = (expected[0], [expected[1]]) if expected else (None, sorted(set(strides)))
    layout = _find_layout(calls.get(name), config.input_size, allowed, encoder, channels)
    if layout is None and not isinstance(config.mask_site, str):
        name, layout = _search_site(config, encoder, calls, strides, expected)
    if layout is None:
        usable = [n for n in modules if n and _find_layout(calls.get(n), config.input_size, allowed, encoder)]
        raise ValueError(
            f"mask_site: what {config.architecture}'s {name!r} gives is no feature map, {_describe(calls.get(name))}; "
            f"try one of {', '.join(usable[:8]) or 'nothing in this encoder'}"
        )
    return name, layout


def _search_site(config, encoder, calls, strides, expected) -> tuple[str | None, Layout | None]:
    """Where timm's own names lead nowhere: a module with parameters that gives a map of the wanted kind. The first one
    for a stem, the last one for a stage, and none inside a module that already ends in the final resolution."""
    channels, stride = expected or (encoder.feature_info[0]["num_chs"], strides[0])
    modules = dict(encoder.named_modules())
    last = [n for n in calls if n and _find_layout(calls[n], config.input_size, strides[-1:], encoder)]
    found = []
    for name in calls:
        layout = name and _find_layout(calls[name], config.input_size, [stride], encoder, channels)
        inside = expected and strides[-1] != stride and any(name.startswith(f"{outer}.") for outer in last)
        if not layout or inside or isinstance(modules[name], nn.Sequential):
            continue
        if any(True for _ in modules[name].parameters()):
            found.append((name, layout))
    if not found:
        return None, None
    return found[-1] if expected else found[0]


def _head_norm(encoder, output, layout: Layout, config) -> str | None:
    """The norm that the head applies after pooling (ConvNeXt and its kin), if it works on the whole map as well."""
    norm = getattr(getattr(encoder, "head", None), "norm", None)
    if not config.decoder_norm or not isinstance(norm, nn.LayerNorm) or norm.weight is None:
        return None
    try:
        with torch.no_grad():
            same = norm(output).shape == output.shape
    except RuntimeError:
        return None
    return "head.norm" if same and tuple(norm.weight.shape) == (layout.channels,) else None


def _describe(output) -> str:
    if isinstance(output, torch.Tensor):
        return f"a tensor {tuple(output.shape)}"
    return "it is never called" if output is None else f"a {type(output).__name__}"


def supports_gradient_checkpointing(encoder: nn.Module) -> bool:
    """Whether timm can checkpoint this encoder."""
    if not hasattr(encoder, "set_grad_checkpointing"):
        return False
    try:
        encoder.set_grad_checkpointing(enable=True)
        encoder.set_grad_checkpointing(enable=False)
    except AssertionError:  # how timm says no
        return False
    return True


def classifier_parameters(encoder: nn.Module) -> set[str]:
    """Names of the parameters of timm's classifier (a distilled encoder has two)."""
    found = encoder.get_classifier()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    own = {id(p) for head in heads for p in head.parameters()}
    return {name for name, p in encoder.named_parameters() if id(p) in own}
