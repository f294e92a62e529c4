"""Other ways of pre-training the encoder that A2MIM pre-trains, each a module with its own loss: SimMIM, MaskFeat and
MAE (masked images), SimCLR, BYOL, Barlow Twins, MoCo v3, SwAV and DINO (two views of an image), and supervised
training. Losses and heads are those of lightly (`pip install --no-deps lightly lightly_utils`) and transformers where
they have them; the others are here. Heads are smaller than published, as the encoders and the sets are, and SwAV and
DINO get two views without small crops.

BEiT is left out: it needs the tokenizer of DALL-E, whose weights are not in any package.
"""

import abc
import math
import warnings

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.nn import functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from benchmarks.in_memory import random_views, with_classes
from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.decoders import MultiscaleDecoder
from modeling_a2mim.key_layouts import timm_weights
from modeling_a2mim.masking import random_mask, resize_mask
from modeling_a2mim.training.optimization import parameter_groups


WEIGHT_DECAY = 0.05
HIDDEN, OUTPUT = 512, 128  # of projection heads
CROPS = (0.8, 1.0)  # shares of the area that masked and supervised training sees
HOG_CELL, HOG_BINS = 4, 9  # pixels, directions; half a cell of the mask, as published
PROTOTYPES, QUEUE = 64, 512  # of SwAV: clusters, and earlier features that are clustered with those of a batch
DINO_OUTPUT = 1024


# Two views


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A view for contrastive learning, as SimCLR's of grey images: a crop of 20 to 100% of the area, flipped in half
    of all cases; in 80% contrast and brightness changed by up to 40%; in half of all cases blurred by a Gaussian of
    0.1 to 2 px in 64.

    Args:
        pixels: (batch, channels, height, width), float, normalised to about [-1, 1].
    """
    views = random_views(pixels, (0.2, 1.0), generator)
    draw = torch.rand(5, len(views), generator=generator, device=views.device)
    contrast = 1 + 0.4 * (2 * draw[0] - 1)
    change = (draw[2] < 0.8)[:, None, None, None]
    mean = views.mean((1, 2, 3), keepdim=True)
    # Brightness multiplies pixels from 0 for black, which is -1 here.
    jittered = ((views - mean) * contrast.view(-1, 1, 1, 1) + mean + 1) * (1 + 0.4 * (2 * draw[1] - 1)).view(
        -1, 1, 1, 1
    ) - 1
    views = torch.where(change, jittered.clamp(-1, 1), views)
    sigma = (0.1 + 1.9 * draw[4]) * views.shape[-1] / 64
    return torch.where((draw[3] < 0.5)[:, None, None, None], blur(views, sigma), views)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of each image (batch, channels, height, width) with its own `sigma` (batch,) in pixels; the window
    is a tenth of the image to each side."""
    count, channels, height, width = images.shape
    radius = max(1, width // 10)
    place = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-(place**2) / (2 * sigma[:, None] ** 2))
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    rows = F.pad(images.reshape(1, count * channels, height, width), [radius] * 4, mode="reflect")
    rows = F.conv2d(rows, weights[:, :, None], groups=count * channels)
    return F.conv2d(rows, weights[..., None], groups=count * channels).view_as(images)


def nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss of two views (batch, features): each is to be told from all others of both."""
    with torch.autocast(one.device.type, enabled=False):
        views = F.normalize(torch.cat([one, other]).float(), dim=1)
        same = torch.eye(len(views), dtype=torch.bool, device=views.device)
        similarity = (views @ views.T / temperature).masked_fill(same, -torch.inf)
        partners = torch.arange(len(views), device=views.device).roll(len(one))
        return F.cross_entropy(similarity, partners)


def info_nce(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> torch.Tensor:
    """MoCo v3's loss (batch, features): each query is to be told which of the keys is its own; times 2 temperature."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class Method(nn.Module, abc.ABC):
    """A way of pre-training the encoder `a2mim` of `config` for so many `steps`.

    Attributes:
        same_each_step: whether a step depends on nothing but its inputs and weights, and can be a CUDA graph.
    """

    same_each_step = True

    def __init__(self, config: A2MIMConfig, steps: int):
        super().__init__()
        self.config, self.steps, self.count = config, steps, 0

    @abc.abstractmethod
    def inputs(self, pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> tuple:
        """What `forward` takes, of a batch of normalised images; only supervised training uses their labels."""

    def groups(self, learning_rate: float) -> list[dict]:
        """Groups of parameters for the optimiser."""
        return parameter_groups(self, learning_rate, WEIGHT_DECAY)

    def encoder_weights(self) -> dict[str, torch.Tensor]:
        """Those of the encoder, under timm's names."""
        core = self.a2mim
        return {name: core.encoder.state_dict()[name].detach().clone() for name in core.plan.names}


class TwoViews(Method):
    """The encoder with a head on its pooled features."""

    def __init__(self, config: A2MIMConfig, steps: int):
        super().__init__(config, steps)
        self.a2mim = A2MIMModel(config)
        self.head = self.make_head(self.a2mim.encoder.num_features)

    @abc.abstractmethod
    def make_head(self, width: int) -> nn.Module:
        """What projects pooled features of this width."""

    def inputs(self, pixels, labels, generator):
        return augment(pixels, generator), augment(pixels, generator)

    def project(self, view: torch.Tensor) -> torch.Tensor:
        return self.head(self.a2mim(view).pooler_output)


class SimCLR(TwoViews):
    """https://arxiv.org/abs/2002.05709, with the temperature of its runs on CIFAR-10."""

    def make_head(self, width):
        return mlp(width, OUTPUT)

    def forward(self, one, other):
        return nt_xent(self.project(one), self.project(other), 0.5)


def mlp(width: int, output: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, output)
    )


class BarlowTwins(TwoViews):
    """https://arxiv.org/abs/2103.03230"""

    def __init__(self, config, steps):
        super().__init__(config, steps)
        from lightly.loss import BarlowTwinsLoss

        self.loss = BarlowTwinsLoss()

    def make_head(self, width):
        from lightly.models.modules import BarlowTwinsProjectionHead

        return BarlowTwinsProjectionHead(width, HIDDEN, HIDDEN)

    def forward(self, one, other):
        return self.loss(self.project(one), self.project(other))


class SwAV(TwoViews):
    """https://arxiv.org/abs/2006.09882, with its queue for small batches, from the step on that fills it."""

    same_each_step = False

    def __init__(self, config, steps):
        super().__init__(config, steps)
        from lightly.loss import SwaVLoss
        from lightly.models.modules import SwaVPrototypes

        self.loss, self.prototypes = SwaVLoss(), SwaVPrototypes(OUTPUT, PROTOTYPES)
        self.queues: list[torch.Tensor] = [torch.empty(0, OUTPUT), torch.empty(0, OUTPUT)]

    def make_head(self, width):
        from lightly.models.modules import SwaVProjectionHead

        return SwaVProjectionHead(width, HIDDEN, OUTPUT)

    def forward(self, *views):
        self.prototypes.normalize()
        features = [F.normalize(self.project(view), dim=1) for view in views]
        waiting = None
        if len(self.queues[0]) == QUEUE:
            with torch.no_grad():
                waiting = [self.prototypes(queue) for queue in self.queues]
        self.queues = [
            torch.cat([own.detach(), queue.to(own)])[:QUEUE] for own, queue in zip(features, self.queues, strict=True)
        ]
        return self.loss([self.prototypes(own) for own in features], [], waiting).sum()


class WithTeacher(TwoViews):
    """A second encoder and head, whose weights are a moving average of the first ones."""

    momentum = 0.99  # at the start; it rises to 1 as half a cosine
    same_each_step = False

    def __init__(self, config, steps):
        super().__init__(config, steps)
        self.teacher, self.teacher_head = A2MIMModel(config), self.make_head(self.a2mim.encoder.num_features)
        self.pairs = [(self.a2mim, self.teacher), (self.head, self.teacher_head)]
        for own, teacher in self.pairs:
            teacher.load_state_dict(own.state_dict())
            teacher.requires_grad_(False)

    def teach(self, *views: torch.Tensor) -> list[torch.Tensor]:
        """What the teacher makes of the views, once it has followed the last step."""
        with torch.no_grad():
            momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * self.count / self.steps) + 1) / 2
            if self.count:
                for own, teacher in self.pairs:
                    for new, old in zip(own.parameters(), teacher.parameters(), strict=True):
                        old.lerp_(new, 1 - momentum)
            self.count += 1
            return [self.teacher_head(self.teacher(view).pooler_output) for view in views]


class BYOL(WithTeacher):
    """https://arxiv.org/abs/2006.07733"""

    def __init__(self, config, steps):
        super().__init__(config, steps)
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead

        self.loss, self.predictor = NegativeCosineSimilarity(), BYOLPredictionHead(OUTPUT, HIDDEN, OUTPUT)

    def make_head(self, width):
        from lightly.models.modules import BYOLProjectionHead

        return BYOLProjectionHead(width, HIDDEN, OUTPUT)

    def forward(self, one, other):
        targets = self.teach(one, other)
        own = [self.predictor(self.project(view)) for view in (one, other)]
        return (self.loss(own[0], targets[1]) + self.loss(own[1], targets[0])) / 2


class MoCoV3(WithTeacher):
    """https://arxiv.org/abs/2104.02057, with its temperature for ViTs; the projection of patches is not frozen."""

    def __init__(self, config, steps):
        super().__init__(config, steps)
        self.predictor = mlp(OUTPUT, OUTPUT)

    def make_head(self, width):
        return mlp(width, OUTPUT)

    def forward(self, one, other):
        keys = self.teach(one, other)
        queries = [self.predictor(self.project(view)) for view in (one, other)]
        return info_nce(queries[0], keys[1], 0.2) + info_nce(queries[1], keys[0], 0.2)


class DINO(WithTeacher):
    """https://arxiv.org/abs/2104.14294: the teacher's temperature rises from 0.04 to 0.07 in the first 10% of the
    steps, in which the last layer of the head stays as it is for the first third. With BatchNorm in the head, which
    is an option there: without it the outputs of small encoders soon were uniform."""

    def __init__(self, config, steps):
        super().__init__(config, steps)
        from lightly.loss import DINOLoss

        self.loss = DINOLoss(DINO_OUTPUT)

    def make_head(self, width):
        from lightly.models.modules import DINOProjectionHead

        with warnings.catch_warnings():  # torch's old weight norm, in lightly
            warnings.simplefilter("ignore", FutureWarning)
            return DINOProjectionHead(width, HIDDEN, OUTPUT, DINO_OUTPUT, batch_norm=True)

    def forward(self, one, other):
        share = min(1.0, 10 * self.count / self.steps)
        self.head.last_layer.weight_v.requires_grad_(share >= 1 / 3)
        targets = self.teach(one, other)
        return self.loss(targets, [self.project(one), self.project(other)], teacher_temp=0.04 + 0.03 * share)


# Masked images


class A2MIM(Method):
    """The package's model, with the settings of `config`, on crops of shares `crops` of the area."""

    def __init__(self, config, steps, crops: tuple[float, float] = CROPS):
        super().__init__(config, steps)
        self.crops = crops
        self.model = A2MIMForPreTraining(config)
        self.a2mim = self.model.a2mim

    def inputs(self, pixels, labels, generator):
        config, views = self.config, random_views(pixels, self.crops, generator)
        return views, random_mask(len(pixels), config.mask_grid, config.num_masked, generator, pixels.device)

    def groups(self, learning_rate):
        scale = 1.0 if self.config.mask_gamma_init is None else 0.1
        return parameter_groups(self.model, learning_rate, WEIGHT_DECAY, scale)

    def forward(self, views, mask):
        return self.model(views, mask).loss


class NormalisedA2MIM(A2MIM):
    """A2MIM with pixels normalised in each cell of the mask as the target."""

    def __init__(self, config, steps):
        super().__init__(A2MIMConfig.from_dict(config.to_dict(), target="normalised"), steps)


def simmim_config(config: A2MIMConfig) -> A2MIMConfig:
    """SimMIM's settings, with the encoder, the mask and the decoder of `config`."""
    same = ("model_args", "image_size", "mask_patch_size", "num_channels", "decoder")
    return A2MIMConfig.simmim(config.architecture, **{name: getattr(config, name) for name in same})


class SimMIM(A2MIM):
    """https://arxiv.org/abs/2111.09886"""

    def __init__(self, config, steps):
        super().__init__(simmim_config(config), steps)


class HogTarget(A2MIM):
    """What is predicted of masked cells is the histogram of oriented gradients, by mean squared error."""

    def __init__(self, config, steps, **options):
        super().__init__(config, steps, **options)
        decoder, stride = self.model.decoder, self.model.stride
        last = decoder.predict if isinstance(decoder, MultiscaleDecoder) else decoder
        predict = nn.Conv2d(last.in_channels, HOG_BINS * (stride // HOG_CELL) ** 2, last.kernel_size, padding="same")
        nn.init.trunc_normal_(predict.weight, std=0.02)
        nn.init.zeros_(predict.bias)
        if last is decoder:
            self.model.decoder = predict
        else:
            decoder.predict = predict
        self.model.stride = stride // HOG_CELL

    def forward(self, views, mask):
        core, stages = self.a2mim, getattr(self.model.decoder, "indices", None)
        last, maps = core.encode(views, mask, stages is not None, decoded=True)
        features = core.feature_map(last, tuple(views.shape[-2:]))
        target = hog(views)
        found = self.model.decode(
            features if stages is None else [*(maps[i] for i in stages), features], target.shape[-2:]
        )
        hidden = resize_mask(mask, tuple(target.shape[-2:]))[:, None]
        return ((found - target).square() * hidden).sum() / hidden.sum() / HOG_BINS


class MaskFeat(HogTarget):
    """https://arxiv.org/abs/2112.09133: SimMIM's masking, and the histogram of oriented gradients."""

    def __init__(self, config, steps):
        super().__init__(simmim_config(config), steps)


def hog(images: torch.Tensor) -> torch.Tensor:
    """Histograms of oriented gradients (Dalal and Triggs, 2005) of grey images (batch, 1, height, width), those of
    skimage.feature.hog with `HOG_BINS` directions, cells of `HOG_CELL` px and blocks of one cell (L2).

    Returns:
        (batch, directions, height / cell, width / cell)
    """
    x = images[:, 0]
    rows, columns = torch.zeros_like(x), torch.zeros_like(x)
    rows[:, 1:-1] = x[:, 2:] - x[:, :-2]
    columns[..., 1:-1] = x[..., 2:] - x[..., :-2]
    direction = torch.rad2deg(torch.atan2(rows, columns)) % 180
    chosen = (direction / (180 / HOG_BINS)).long().clamp(max=HOG_BINS - 1)
    histograms = F.one_hot(chosen, HOG_BINS).movedim(-1, 1) * torch.hypot(rows, columns)[:, None]
    histograms = F.avg_pool2d(histograms, HOG_CELL)
    return histograms / (histograms.square().sum(1, keepdim=True) + 1e-10).sqrt()


class MAE(Method):
    """https://arxiv.org/abs/2111.06377, of transformers, for a ViT: normalised pixels, 75% masked."""

    def __init__(self, config, steps):
        super().__init__(config, steps)
        encoder = A2MIMModel(config).encoder
        width, heads = encoder.embed_dim, encoder.blocks[0].attn.num_heads
        inner = {
            "decoder_hidden_size": width // 2,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": heads,
        }
        settings = ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=len(encoder.blocks),
            num_attention_heads=heads,
            intermediate_size=encoder.blocks[0].mlp.fc1.out_features,
            layer_norm_eps=1e-6,
            image_size=config.image_size,
            patch_size=encoder.patch_embed.patch_size[0],
            num_channels=config.num_channels,
            decoder_intermediate_size=2 * width,
            norm_pix_loss=True,
            **inner,
        )
        self.model = ViTMAEForPreTraining(settings)

    def inputs(self, pixels, labels, generator):
        side = self.model.config.image_size // self.model.config.patch_size
        noise = torch.rand(len(pixels), side**2, generator=generator, device=pixels.device)
        return random_views(pixels, CROPS, generator), noise

    def groups(self, learning_rate):
        return param_groups_weight_decay(self.model, WEIGHT_DECAY)

    def forward(self, views, noise):
        return self.model(views, noise=noise).loss

    def encoder_weights(self):
        weights, _ = timm_weights(self.model.config.to_dict(), self.model.state_dict())
        return {name: weight.detach().clone() for name, weight in weights.items()}


class Supervised(Method):
    """The encoder with timm's classifier, on all labels."""

    def __init__(self, config, steps, classes: int):
        super().__init__(config, steps)
        self.model = A2MIMForImageClassification(with_classes(config, classes))
        self.a2mim = self.model.a2mim

    def inputs(self, pixels, labels, generator):
        return random_views(pixels, CROPS, generator), labels

    def groups(self, learning_rate):
        return parameter_groups(self.model, learning_rate, WEIGHT_DECAY)

    def forward(self, views, labels):
        return self.model(views, labels=labels).loss


METHODS = {
    "A2MIM": A2MIM,
    "A2MIM normalised": NormalisedA2MIM,
    "SimMIM": SimMIM,
    "SimCLR": SimCLR,
    "BYOL": BYOL,
    "Barlow Twins": BarlowTwins,
    "MoCo v3": MoCoV3,
    "SwAV": SwAV,
    "DINO": DINO,
    "MaskFeat": MaskFeat,
    "MAE": MAE,
    "supervised": Supervised,
}
