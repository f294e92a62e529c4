"""Faster R-CNN (https://arxiv.org/abs/1506.01497) and Mask R-CNN (https://arxiv.org/abs/1703.06870) of torchvision on
a pre-trained encoder, with a feature pyramid between them.

The heads, their losses and their settings are torchvision's; what is here joins them to `A2MIMBackbone`, to
`save_pretrained` and to the image processors and pipelines of transformers.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_convert
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from transformers.utils import ModelOutput

from ..configuration_a2mim import A2MIMConfig
from ..encoders.meta import NoValues, fill_holes
from ..modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel
from .backbone import A2MIMBackbone, four_stages
from .freezing import PartlyFrozen


ASPECT_RATIOS = (0.5, 1.0, 2.0)  # of the anchors, height / width


COUNTS = ("fpn_channels", "box_channels", "proposals_per_image", "rois_per_image", "detections_per_image")


class A2MIMDetectorConfig(A2MIMConfig):
    r"""
    An encoder and the detector on it. All fields of `A2MIMConfig`, of which those of mask and losses play no part, and

    Args:
        predict_masks (`bool`, defaults to `False`): Mask R-CNN, with a mask of each object; else Faster R-CNN.
        fpn_channels (`int`, defaults to 256): channels of the pyramid, and of the head that predicts masks.
        box_channels (`int`, defaults to 1024): width of the head that classifies boxes.
        head_norm (`bool`, defaults to `False`): BatchNorm in the pyramid and in the heads, and four convolutions
            before the layer that classifies boxes; for heads that learn together with an encoder whose norms learn.
        anchor_scale (`float`, defaults to 8): size of the anchors at each level of the pyramid, in its strides: 32,
            64, ..., 512 px where the strides are 4, 8, ..., 64.
        proposals_per_image (`int`, defaults to 1000): regions that are looked at closely; twice as many in training.
        rois_per_image (`int`, defaults to 512): how many of them the heads learn from, at most.
        score_threshold (`float`, defaults to 0.05): detections below it are dropped.
        nms_threshold (`float`, defaults to 0.5): of two boxes of a class that overlap more than this, one is dropped.
        detections_per_image (`int`, defaults to 100): the most that are kept.

    `out_indices` chooses the feature maps of the encoder. Without, the last one of each resolution, at most four; of
    an isotropic encoder four evenly spread ones, of which `feature_pyramid` makes four resolutions (`A2MIMBackbone`).
    """

    model_type = "a2mim_detector"

    predict_masks: bool = False
    fpn_channels: int = 256
    box_channels: int = 1024
    head_norm: bool = False
    anchor_scale: float = 8.0
    proposals_per_image: int = 1000
    rois_per_image: int = 512
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100

    def _validate(self, unknown: dict[str, Any]) -> None:
        super()._validate(unknown)
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if not self.anchor_scale > 0:
            raise ValueError(f"anchor_scale: must be positive, got {self.anchor_scale}")


@dataclass
class A2MIMObjectDetectionOutput(ModelOutput):
    """
    Args:
        loss: scalar, the sum of `losses`; while training.
        losses: torchvision's terms by their names (`loss_classifier`, `loss_box_reg`, `loss_objectness`,
            `loss_rpn_box_reg`, `loss_mask`), scalars; while training.
        logits: (batch, detections, num_labels + 1), of which softmax makes the scores: that of the class of each
            detection, and the rest for "no object", the last one. Best first; images with fewer detections than others
            are filled up with "no object". `None` while training, as the two that follow.
        pred_boxes: (batch, detections, 4), centre x, centre y, width, height as shares of each image without its
            padding.
        pred_masks: (batch, detections, 28, 28), for each cell of the box the probability of belonging to the object;
            `None` without `config.predict_masks`.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None


class DetectorHeads(nn.Module):
    """Pyramid, region proposals and the heads for boxes and masks.

    Args:
        config: of the detector.
        channels, strides: of the maps of the backbone.
    """

    def __init__(self, config: A2MIMDetectorConfig, channels: list[int], strides: list[int]):
        super().__init__()
        width, norm = config.fpn_channels, nn.BatchNorm2d if config.head_norm else None
        self.pyramid = FeaturePyramidNetwork(channels, width, LastLevelMaxPool(), norm_layer=norm)
        levels = [str(level) for level in range(len(strides))]
        sizes = [(config.anchor_scale * stride,) for stride in [*strides, 2 * strides[-1]]]
        with torch.device("cpu"):  # anchors are no buffers: on the meta device they would be lost
            anchors = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))
        box_head = TwoMLPHead(width * 7**2, config.box_channels)
        if norm is not None:
            box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [config.box_channels], norm_layer=norm)
        options, outputs = {}, config.num_labels + 1  # torchvision's class 0 is the background
        if config.predict_masks:
            options = {
                "mask_roi_pool": MultiScaleRoIAlign(levels, 14, 2),
                "mask_head": MaskRCNNHeads(width, [width] * 4, 1, norm_layer=norm),
                "mask_predictor": MaskRCNNPredictor(width, width, outputs),
            }
        self.pyramid.out_channels = width
        proposals = {f"rpn_{step}_nms_top_n_test": config.proposals_per_image for step in ("pre", "post")}
        proposals |= {f"rpn_{step}_nms_top_n_train": 2 * config.proposals_per_image for step in ("pre", "post")}
        detector = (MaskRCNN if config.predict_masks else FasterRCNN)(
            self.pyramid,
            rpn_anchor_generator=anchors,
            rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=2 if norm else 1),
            box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
            box_head=box_head,
            box_predictor=FastRCNNPredictor(config.box_channels, outputs),
            box_batch_size_per_image=config.rois_per_image,
            box_score_thresh=config.score_threshold,
            box_nms_thresh=config.nms_threshold,
            box_detections_per_img=config.detections_per_image,
            **proposals,
            **options,
        )
        # Its transform stays behind: images come normalised and resized, as everywhere in this package.
        self.rpn, self.roi_heads = detector.rpn, detector.roi_heads

    def forward(
        self, maps: tuple[torch.Tensor, ...], images: ImageList, targets: list[dict] | None
    ) -> tuple[list[dict], dict]:
        """(detections of each image, losses) as torchvision gives them; while training, the first are empty."""
        levels = self.pyramid(OrderedDict((str(i), features) for i, features in enumerate(maps)))
        proposals, proposal_losses = self.rpn(images, levels, targets)
        detections, losses = self.roi_heads(levels, proposals, images.image_sizes, targets)
        return detections, {**losses, **proposal_losses}


class A2MIMForObjectDetection(PartlyFrozen, A2MIMPreTrainedModel):
    """Faster R-CNN (https://arxiv.org/abs/1506.01497) or, with `config.predict_masks`, Mask R-CNN
    (https://arxiv.org/abs/1703.06870) on a timm encoder; the heads and losses are torchvision's.

    Args:
        config: the encoder and the detector; `num_labels` without the background.

    Raises:
        ValueError: naming the field of the configuration that it cannot be built with.
    """

    config: A2MIMDetectorConfig
    config_class = A2MIMDetectorConfig
    base_model_prefix = "backbone"

    def __init__(self, config: A2MIMDetectorConfig):
        super().__init__(config)
        if not config.num_labels:
            raise ValueError("num_labels: a detector needs at least one class")
        self.num_labels = config.num_labels
        if config.out_indices is None and config.out_features is None:
            config.out_indices, config.feature_pyramid = choose_stages(config)
        self.backbone = A2MIMBackbone(config)
        stages = self.backbone.a2mim.encoder.feature_info
        self.channels = list(self.backbone.channels)
        self.strides = [stages[index]["reduction"] for index in config.out_indices]
        if self.backbone.pyramid is not None:
            self.strides = [stride * 2**level for stride, level in zip(self.strides, (-2, -1, 0, 1), strict=True)]
        if len(set(self.strides)) < len(self.strides):
            raise ValueError(f"out_indices: {config.out_indices} are maps of the same resolution: {self.strides} px")
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.heads = DetectorHeads(config, self.channels, self.strides)
        self._heads_are_made = not next(self.heads.parameters()).is_meta
        self.post_init()

    def initialize_weights(self) -> None:
        super().initialize_weights()
        if not self._heads_are_made:  # from_pretrained has no weights for heads of another number of classes
            fill_holes(self.heads, lambda: DetectorHeads(self.config, self.channels, self.strides))

    def freeze_batch_norm(self) -> Self:
        """Let the encoder's BatchNorm keep its statistics, scales and shifts while everything else trains."""
        for module in self.frozen_parts():
            module.requires_grad_(False)
        return self.keep_frozen()

    def frozen_parts(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, _BatchNorm)]

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        return_dict: bool | None = None,
    ) -> A2MIMObjectDetectionOutput | tuple:
        r"""
        Args:
            pixel_values: (batch, channels, height, width), normalised images, padded at the right and at the bottom
                to one size.
            pixel_mask: (batch, height, width), 1 where an image is and 0 where it is padded; without, all are full.
            labels: for training, of each image a dict of `boxes` (objects, 4), float x0, y0, x1, y1 in pixels of
                `pixel_values`, `class_labels` (objects,), and with `config.predict_masks` `masks` (objects, height,
                width), 1 = object.

        Returns:
            [`A2MIMObjectDetectionOutput`]: the losses while training, else the detections.

        Raises:
            ValueError: if the images have another number of channels, or labels are missing.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        needed = {"boxes", "class_labels", *(("masks",) if self.config.predict_masks else ())}
        if self.training and (labels is None or any(needed - set(label) for label in labels)):
            raise ValueError(f"labels: training needs {', '.join(sorted(needed))} of each image")
        height, width = pixel_values.shape[-2:]
        sizes = [(height, width)] * len(pixel_values)
        if pixel_mask is not None:
            sizes = [(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in pixel_mask]
        if (height, width) != self.config.input_size:  # whole cells at every level
            divisor = int(max(self.strides))
            pixel_values = F.pad(pixel_values, (0, -width % divisor, 0, -height % divisor))
        targets = None if not self.training else [self._target(label, pixel_values) for label in labels]
        images = ImageList(pixel_values, sizes)
        detections, losses = self.heads(self.backbone(pixel_values).feature_maps, images, targets)
        if self.training:
            output = A2MIMObjectDetectionOutput(loss=sum(losses.values()), losses=losses)
        else:
            output = self._output(detections, sizes, pixel_values)
        return output if return_dict else output.to_tuple()

    def _target(self, label: dict[str, torch.Tensor], pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """A label as torchvision takes it: classes from 1 on."""
        target = {"boxes": label["boxes"].float(), "labels": label["class_labels"].long() + 1}
        if self.config.predict_masks:
            (height, width), (rows, columns) = pixel_values.shape[-2:], label["masks"].shape[-2:]
            target["masks"] = F.pad(label["masks"], (0, width - columns, 0, height - rows))
        return target

    def _output(
        self, detections: list[dict], sizes: list[tuple[int, int]], like: torch.Tensor
    ) -> A2MIMObjectDetectionOutput:
        batch, count = len(detections), max(len(found["scores"]) for found in detections)
        scores = like.new_zeros(batch, count, self.num_labels + 1, dtype=torch.float32)
        scores[..., -1] = 1.0
        boxes = like.new_zeros(batch, count, 4, dtype=torch.float32)
        masks = like.new_zeros(batch, count, 28, 28, dtype=torch.float32) if self.config.predict_masks else None
        for i, (found, (height, width)) in enumerate(zip(detections, sizes, strict=True)):
            number = torch.arange(len(found["scores"]), device=like.device)
            scores[i, number, found["labels"] - 1] = found["scores"].float()
            scores[i, number, -1] = 1 - found["scores"].float()
            share = found["boxes"].float() / found["boxes"].new_tensor([width, height, width, height])
            boxes[i, number] = box_convert(share, "xyxy", "cxcywh")
            if masks is not None:
                masks[i, number] = found["masks"][:, 0].float()
        return A2MIMObjectDetectionOutput(logits=scores.log(), pred_boxes=boxes, pred_masks=masks)

    def post_process_object_detection(
        self,
        outputs: A2MIMObjectDetectionOutput,
        threshold: float = 0.5,
        target_sizes: torch.Tensor | list[tuple[int, int]] | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """As `DetrImageProcessor.post_process_object_detection`, with masks where the model predicts them.

        Args:
            outputs: of the model in evaluation mode.
            threshold: detections whose scores are not above it are left out.
            target_sizes: (height, width) of each image in which boxes and masks are wanted, such as its original one.
                Without, boxes are shares of the image, and there are no masks.

        Returns:
            Of each image a dict of `scores` (detections,), `labels` (detections,), `boxes` (detections, 4) as x0, y0,
            x1, y1, and `masks` (detections, height, width), bool.
        """
        probabilities = outputs.logits.softmax(-1)[..., :-1]
        scores, labels = probabilities.max(-1) if probabilities.shape[1] else (probabilities.sum(-1),) * 2
        results = []
        for i, (score, label, box) in enumerate(zip(scores, labels, outputs.pred_boxes, strict=True)):
            kept = score > threshold
            box = box_convert(box[kept], "cxcywh", "xyxy")
            result = {"scores": score[kept], "labels": label[kept].long(), "boxes": box}
            if target_sizes is not None:
                height, width = (int(size) for size in target_sizes[i])
                result["boxes"] = box * box.new_tensor([width, height, width, height])
                if outputs.pred_masks is not None:
                    masks = outputs.pred_masks[i][kept][:, None]
                    result["masks"] = paste_masks_in_image(masks, result["boxes"], (height, width))[:, 0] > 0.5
            results.append(result)
        return results


def choose_stages(config: A2MIMConfig) -> tuple[list[int], bool]:
    """Which feature maps of an encoder a pyramid is made of, and whether they all have one resolution."""
    with torch.device("meta"), NoValues():
        core = A2MIMModel(config)
    return four_stages(core, distinct=True), core.plan.isotropic


__all__ = ["A2MIMDetectorConfig", "A2MIMForObjectDetection", "A2MIMObjectDetectionOutput"]
