"""BatchNorm needs several values a channel: with a single value, torch raises, in whatever step that comes. Such a
BatchNorm is found before training."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


TAKES_SINGLE_VALUES = "takes_single_values"  # of modules that can be trained on a single value


def single_value_norms(model: nn.Module, inputs: dict, world: int = 1) -> list[str]:
    """The names of the BatchNorms that have one value a channel when the model trains on `inputs`.

    Args:
        model: in whatever mode, and left in it; its weights and statistics stay as they are.
        inputs: of `model.forward`, for one image, without labels.
        world: processes, over which `SyncBatchNorm` takes its statistics.
    """
    training, found = model.training, []
    model.train()  # in which some keep their BatchNorms in evaluation mode
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and (module.training or module.running_mean is None)
        and not getattr(module, TAKES_SINGLE_VALUES, False)
        and not (isinstance(module, nn.SyncBatchNorm) and world > 1)
    }
    model.train(training)
    if not norms:
        return []

    def look(name):
        def hook(module, args):
            if args[0].numel() == args[0].shape[1]:
                found.append(name)

        return hook

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in norms.items()]
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.eval()
            model(**{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()})
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return list(dict.fromkeys(found))


def check_batch_norms(model: nn.Module, inputs: dict, images: int, batch_size: int, world: int = 1):
    """Refuse to train with batches of one image, if BatchNorms have one value a channel then.

    Args:
        model, inputs, world: as `single_value_norms`.
        images: in an epoch.
        batch_size: images of a process in a batch.

    Raises:
        ValueError: naming `per_device_train_batch_size` and the first such module.
    """
    names = single_value_norms(model, inputs, world)
    if not names:
        return
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    if batch_size == 1:
        why, instead = "a batch", "give at least 2"
    elif images == world:
        why, instead = f"each batch of {images} images in all", "more images are needed"
    else:
        why = f"the smallest batch of {images} images in batches of {batch_size}"
        instead = "give another, or leave incomplete batches out (--dataloader_drop_last True)"
    raise ValueError(
        f"per_device_train_batch_size: {why} has one image, of which the BatchNorm {names[0]}{more} sees one value a "
        f"channel, and cannot learn from that; {instead}, or a larger --image_size"
    )
