"""Which parameters are decayed, and how fast each learns."""

from timm.optim import param_groups_weight_decay
from torch import nn


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, token_lr_scale: float = 1.0
) -> list[dict]:
    """Groups for an optimiser: decayed weights; norms, biases, layer scales, tokens and position embeddings (timm's
    `no_weight_decay` and everything of one dimension) without decay; and the mask token with its gamma, without decay
    and at `learning_rate * token_lr_scale` (0.1 in the release's CNN settings)."""
    core = model.a2mim
    skip = {f"a2mim.encoder.{name}" for name in getattr(core.encoder, "no_weight_decay", set)()}
    token = core.mask_token
    special = [] if token is None else [p for p in token.parameters() if p.requires_grad]
    ids = {id(p) for p in special}
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)
    groups = [{**group, "params": [p for p in group["params"] if id(p) not in ids]} for group in groups]
    if special:
        groups.append({"params": special, "weight_decay": 0.0, "lr": learning_rate * token_lr_scale})
    return [group for group in groups if group["params"]]
