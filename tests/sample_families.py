"""One encoder of each of 60 families of timm, small enough to be run, for tests and benchmarks."""

from typing import Any

import torch
from torch import nn

from modeling_a2mim import A2MIMConfig


# The smallest of each family that has one under 30M parameters, at 128 px or at the size that the encoder needs.
SIZES = {"convmixer_768_32": 126, "crossvit_tiny_240": 240, "efficientformer_l1": 224}
# And with fewer and narrower layers, where they are arguments.
FEW = [1, 1, 1, 1]
NARROW = {"embed_dim": 24, "depths": FEW, "num_heads": [1, 2, 4, 8]}
ARGUMENTS = {
    "coat_tiny": {"serial_depths": FEW, "parallel_depth": 1},
    "convit_tiny": {"depth": 3, "local_up_to_layer": 2},
    "crossvit_tiny_240": {"depth": [[1, 1, 0], [1, 1, 0], [1, 1, 0]]},
    "deit_tiny_distilled_patch16_224": {"depth": 3},
    "dpn48b": {"k_sec": FEW},
    "edgenext_xx_small": {"depths": [1, 1, 3, 1]},
    "efficientformer_l1": {"depths": [1, 1, 1, 2]},
    "efficientformerv2_s0": {"depths": FEW},
    "efficientvim_m1": {"depths": [1, 1, 1]},
    "efficientvit_m0": {"depth": [1, 1, 1]},
    "fastvit_t8": {"layers": FEW},
    "hiera_tiny_224": {"embed_dim": 24, "stages": [1, 1, 2, 1]},
    "inception_next_atto": {"depths": FEW},
    "legacy_seresnet18": {"layers": FEW},
    "levit_128s": {"depth": [1, 1, 1]},
    "resnetv2_18": {"layers": FEW},
    "rexnet_100": {"depth_mult": 0.5},
    "sam2_hiera_tiny": {"embed_dim": 24, "stages": [1, 1, 2, 1], "global_att_blocks": [3]},
    "shvit_s1": {"depth": [1, 1, 1]},
    "swiftformer_xs": {"layers": FEW},
    "swinv2_cr_tiny_224": NARROW,
    "swinv2_tiny_window16_256": NARROW,
    "tiny_vit_5m_224": {"depths": [1, 1, 2, 1]},
    "twins_svt_small": {"embed_dims": [16, 32, 64, 128], "num_heads": [1, 2, 4, 8], "depths": [1, 1, 2, 1]},
    "visformer_tiny": {"depth": [1, 1, 1]},
    "vit_tiny_patch16_dinov3_qkvb": {"depth": 3},
    "xcit_nano_12_p8_224": {"depth": 4},
}
NAMES = [
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "deit_tiny_distilled_patch16_224",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "gcvit_xxtiny",
    "ghostnet_050",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "mobilevit_xxs",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "test_mambaout",
    "test_coatnet",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "lcnet_035",
    "mvitv2_tiny",
    "test_nfnet",
    "pit_ti_224",
    "pvt_v2_b0",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "resnetv2_18",
    "rexnet_100",
    "legacy_seresnet18",
    "shvit_s1",
    "starnet_s050",
    "swiftformer_xs",
    "swinv2_tiny_window16_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "twins_svt_small",
    "visformer_tiny",
    "test_vit_relpos",
    "ese_vovnet19b_slim_dw",
    "test_efficientnet",
    "xcit_nano_12_p8_224",
    "test_byobnet",
]

# Variances of a channel, as shares of the mean of its layer, below which a random network of many layers would only
# enlarge what float32 rounds.
LEAST_VARIANCE = {"convmixer_768_32": 1.3, "efficientvit_m0": 1.0, "levit_128s": 1.3}


def sample_config(name: str, **kwargs) -> A2MIMConfig:
    """The configuration of one of `NAMES`."""
    size = SIZES.get(name, 128)
    cell = next(d for d in (32, 18, 30) if size % d == 0)
    settings = {"image_size": size, "mask_patch_size": cell, "model_args": ARGUMENTS.get(name, {}), **kwargs}
    return A2MIMConfig.for_architecture(name, **settings)


def awake_sample(cls: type, name: str) -> Any:
    """A model of `cls` (a class of this package) with one of `NAMES`, and weights by `awaken`; a classifier has 3
    classes. The same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(sample_config(name, num_labels=3))
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    size = tuple(model.config.input_size)
    images = nn.functional.interpolate(images, size, mode="bilinear")
    images = images + 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    return awaken(model, images, LEAST_VARIANCE.get(name, 0.3))


@torch.no_grad()
def awaken(model: nn.Module, images: torch.Tensor, least_variance: float = 0.3) -> nn.Module:
    """Give a new model weights as a trained one has them, so that its outputs depend on all of its parts: what timm
    starts at one value (zeros that hide a block, scales of 1e-6, norms, biases) is drawn, and running statistics are
    those of `images`. Returns the model, changed, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.min() == parameter.max():
            if parameter.flatten()[0] == 0 and parameter.ndim < 2:  # biases, and scales that hide a block
                nn.init.uniform_(parameter, 0.05, 0.3, generator=generator)
            elif parameter.ndim < 2 or parameter.numel() == max(parameter.shape):  # norms and layer scales
                nn.init.uniform_(parameter, 0.8, 1.2, generator=generator)
            else:  # tokens and positions
                nn.init.normal_(parameter, std=0.1, generator=generator)
        elif parameter.ndim > 1 and parameter.std(correction=0) * (width := parameter[0].numel() ** 0.5) < 0.05:
            nn.init.normal_(parameter, std=1 / width, generator=generator)  # of classifiers that start near zero
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
        norm.train()
    model(images)
    for norm in norms:  # or rounding grows in each channel that hardly varies
        norm.running_var.clamp_(min=least_variance * norm.running_var.mean().item())
    return model.eval()
