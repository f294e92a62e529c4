"""Detectors: torchvision's on any encoder, saved, loaded, and read by the image processors of transformers."""

import pytest
import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou
from transformers import DetrImageProcessor

from modeling_a2mim.models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection

from ..families import FAMILIES, checkpointed


SMALL = {"fpn_channels": 16, "box_channels": 32, "rois_per_image": 32, "proposals_per_image": 50, "image_size": 64}
AFTER_THE_LAST_MAP = tuple(f"a2mim.encoder.{name}." for name in ("norm", "head.norm", "conv_head", "bn2"))
pytestmark = pytest.mark.usefixtures("one_thread")


def detector(family="convnext", **kwargs):
    fields = {**SMALL, **FAMILIES[family], "num_labels": 3, "predict_masks": True, "score_threshold": 0.0, **kwargs}
    return A2MIMForObjectDetection(A2MIMDetectorConfig.for_encoder(**fields))


def labels():
    """Of two images: two rectangles that fill their boxes, and nothing."""
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 5:30, 5:30] = 1
    masks[1, 20:60, 30:50] = 1
    some = {"boxes": torch.tensor([[5.0, 5, 30, 30], [30, 20, 50, 60]]), "class_labels": torch.tensor([0, 2])}
    none = {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.long), "masks": masks[:0]}
    return [{**some, "masks": masks}, none]


@pytest.mark.few(2)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_comes_back_from_a_folder(family, tmp_path):
    model, images = detector(family), torch.randn(2, 3, 64, 64)
    output = model(images, labels=labels())
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg", "loss_mask"}
    assert set(output.losses) == names
    assert torch.equal(output.loss, sum(output.losses.values()))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.heads.parameters())
    encoder = dict(model.backbone.named_parameters())
    # What comes after the last map has nothing to learn here; everything else has.
    without = [name for name, p in encoder.items() if p.grad is None]
    assert len(without) <= 3, without
    assert all(name.startswith(AFTER_THE_LAST_MAP) for name in without), without
    model.save_pretrained(tmp_path)
    loaded, info = A2MIMForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded.config) is A2MIMDetectorConfig
    assert loaded.config.out_indices == model.config.out_indices
    with torch.no_grad():
        ours, theirs = model.eval()(images), loaded.eval()(images)
    # The same weights at other places in memory: convolutions differ in the last bits, which may swap a close pair.
    scores = [output.logits.softmax(-1)[..., :-1].sum(-1) for output in (ours, theirs)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)
    assert ours.logits.shape[::2] == (2, 4)
    assert ours.pred_masks.shape == (*ours.logits.shape[:2], 28, 28)


def test_it_is_the_mask_r_cnn_of_torchvision():
    torch.manual_seed(1)
    theirs = MaskRCNN(
        resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
        ),
        num_classes=4,
        min_size=64,
        max_size=64,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        box_batch_size_per_image=16,
        box_detections_per_img=10,
        **{f"rpn_{step}_nms_top_n_train": 100 for step in ("pre", "post")},
        **{f"rpn_{step}_nms_top_n_test": 50 for step in ("pre", "post")},
    )
    config = A2MIMDetectorConfig.for_encoder(
        architecture="resnet18",
        num_labels=3,
        predict_masks=True,
        image_size=64,
        rois_per_image=16,
        detections_per_image=10,
        proposals_per_image=50,
    )
    ours = A2MIMForObjectDetection(config)
    places = {"backbone.body.": "backbone.a2mim.encoder.", "backbone.fpn.": "heads.pyramid."}
    places |= {"rpn.": "heads.rpn.", "roi_heads.": "heads.roi_heads."}
    weights = {
        next(new + name.removeprefix(old) for old, new in places.items() if name.startswith(old)): value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(weights)  # strict: every weight has its place
    images = torch.rand(2, 3, 64, 64)
    targets = [
        {"boxes": label["boxes"], "labels": label["class_labels"] + 1, "masks": label["masks"]} for label in labels()
    ]
    torch.manual_seed(2)  # which regions are learned from is drawn
    expected = theirs.train()(list(images), targets)
    torch.manual_seed(2)
    for _ in images:
        torch.empty(1).uniform_()  # torchvision first draws a size for each image
    found = ours.train()(images, labels=labels()).losses
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )
    with torch.no_grad():
        expected, output = theirs.eval()(list(images)), ours.eval()(images)
    found = ours.post_process_object_detection(output, 0.05, [(64, 64)] * 2)
    assert sum(len(image["scores"]) for image in found) > 0
    for ours_of, theirs_of in zip(found, expected, strict=True):
        assert torch.equal(ours_of["labels"] + 1, theirs_of["labels"])
        torch.testing.assert_close(ours_of["scores"], theirs_of["scores"], atol=1e-6, rtol=0)
        torch.testing.assert_close(ours_of["boxes"], theirs_of["boxes"], atol=1e-4, rtol=0)  # pixels
        wrong = ours_of["masks"] != (theirs_of["masks"][:, 0] > 0.5)
        assert wrong.float().mean() < 1e-3  # at the edge of rounding


@pytest.mark.slow
def test_it_learns_an_image():
    torch.manual_seed(0)
    model = detector(detections_per_image=20, score_threshold=0.05)
    image = torch.zeros(1, 3, 64, 64)
    image[0, 0, 5:30, 5:30], image[0, 2, 20:60, 30:50] = 2.0, 2.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(120):  # of eight seeds, all find both: overlap of boxes 0.80 and more, of masks 0.84 and more
        optimizer.zero_grad()
        model(image, labels=labels()[:1]).loss.backward()
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(image)
    (found,) = model.post_process_object_detection(output, 0.5, [(64, 64)])
    truth = labels()[0]
    order = found["labels"].argsort()  # two, and no third
    assert found["labels"][order].tolist() == [0, 2]
    assert box_iou(found["boxes"][order], truth["boxes"]).diagonal().min() > 0.6
    masks, known = found["masks"][order], truth["masks"].bool()
    assert ((masks & known).sum((1, 2)) / (masks | known).sum((1, 2))).min() > 0.6
    # In an image of twice the size, everything is twice as large.
    (large,) = model.post_process_object_detection(output, 0.5, torch.tensor([[128, 128]]))
    torch.testing.assert_close(large["boxes"], found["boxes"] * 2)
    assert large["masks"].shape[1:] == (128, 128)


def test_outputs_are_what_image_processors_read():
    model = detector().eval()
    some = {"scores": torch.tensor([0.9, 0.6]), "labels": torch.tensor([3, 1]), "masks": torch.rand(2, 1, 28, 28)}
    some["boxes"] = torch.tensor([[10.0, 20, 30, 40], [0, 0, 50, 25]])
    none = {name: value[:0] for name, value in some.items()}
    output = model._output([some, none], [(50, 100), (64, 64)], torch.zeros(1))  # without the padding
    torch.testing.assert_close(output.pred_boxes[0, 0], torch.tensor([0.2, 0.6, 0.2, 0.4]))
    torch.testing.assert_close(output.logits[0].softmax(-1), torch.tensor([[0, 0, 0.9, 0.1], [0.6, 0, 0, 0.4]]))
    sizes = [(100, 200), (64, 64)]
    theirs = DetrImageProcessor().post_process_object_detection(output, 0.5, sizes)
    ours = model.post_process_object_detection(output, 0.5, sizes)
    assert [len(image["scores"]) for image in ours] == [2, 0]
    torch.testing.assert_close(ours[0]["boxes"][0], torch.tensor([20.0, 40, 60, 80]))
    for one, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            torch.testing.assert_close(one[name], value)
    nothing = model._output([none], [(50, 100)], torch.zeros(1))
    assert model.post_process_object_detection(nothing, 0.5, [(64, 64)])[0]["masks"].shape == (0, 64, 64)
    assert "masks" not in model.post_process_object_detection(output)[0]


def test_padding_is_left_out_of_boxes():
    model, image = detector("resnet").eval(), torch.randn(1, 3, 40, 56)
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, :40, :56] = 1
    with torch.no_grad():
        output = model(torch.nn.functional.pad(image, (0, 8, 0, 24)), mask)
        alone = model(image)  # is padded inside to whole cells, 64 x 64
    (found,) = model.post_process_object_detection(output, 0.0, [(40, 56)])
    assert found["boxes"].min() >= 0
    assert (found["boxes"].max(0)[0] <= torch.tensor([56.0, 40, 56, 40]) + 1e-4).all()
    torch.testing.assert_close(output.pred_boxes, alone.pred_boxes)
    torch.testing.assert_close(output.logits, alone.logits)


def test_another_number_of_classes(tmp_path):
    detector(head_norm=True).save_pretrained(tmp_path)
    model = A2MIMForObjectDetection.from_pretrained(
        tmp_path, id2label=dict(enumerate("abcde")), label2id=None, ignore_mismatched_sizes=True
    )
    known, fresh = A2MIMForObjectDetection.from_pretrained(tmp_path), detector(num_labels=5)
    new = {n for n, p in model.state_dict().items() if p.shape != known.state_dict()[n].shape}
    assert {name.split(".")[3] for name in new} == {"cls_score", "bbox_pred", "mask_fcn_logits"}
    for name, value in model.state_dict().items():
        if name not in new:
            assert torch.equal(value, known.state_dict()[name]), name
        elif name.endswith("weight"):  # torchvision's first values, not what was in memory
            assert value.std().item() == pytest.approx(fresh.state_dict()[name].std().item(), rel=0.3), name
    assert model.train()(torch.randn(2, 3, 64, 64), labels=labels()).loss.isfinite()


def test_frozen_batch_norm_and_checkpointing():
    model = detector("resnet").freeze_batch_norm().train()
    before = {n: b.clone() for n, b in model.backbone.named_buffers()}
    torch.manual_seed(3)
    model(torch.randn(2, 3, 64, 64), labels=labels()).loss.backward()
    assert all(torch.equal(b, before[n]) for n, b in model.backbone.named_buffers())
    norms = {n for n, p in model.backbone.named_parameters() if not p.requires_grad}
    assert norms
    assert all("bn" in name or "downsample" in name or ".conv1." in name for name in norms)
    first = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    checkpointed(model)
    torch.manual_seed(3)
    model(torch.randn(2, 3, 64, 64), labels=labels()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # the same sums in another order
            torch.testing.assert_close(parameter.grad, first[name], atol=1e-4, rtol=1e-3)


def test_one_channel_and_oblong_images():
    grey = detector(num_channels=1, image_size=[64, 96], predict_masks=False)
    some = {"boxes": torch.tensor([[5.0, 5, 90, 30]]), "class_labels": torch.tensor([1])}
    output = grey(torch.randn(1, 1, 64, 96), labels=[some])
    assert "loss_mask" not in output.losses
    with torch.no_grad():
        assert grey.eval()(torch.randn(1, 1, 64, 96)).pred_masks is None


def test_errors_name_the_field():
    with pytest.raises(ValueError, match="^labels: training needs boxes, class_labels, masks"):
        detector()(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="^labels: training needs"):
        detector()(torch.randn(1, 3, 64, 64), labels=[{"boxes": torch.zeros(0, 4)}])
    with pytest.raises(ValueError, match="^pixel_values: expected"):
        detector()(torch.randn(1, 1, 64, 64), labels=labels()[:1])
    for field, value in {"fpn_channels": 0, "nms_threshold": 1.5, "anchor_scale": 0.0, "rois_per_image": 0}.items():
        with pytest.raises(ValueError, match=f"^{field}: "):
            detector(**{field: value})
    with pytest.raises(ValueError, match=r"^out_indices: \[1, 2\] are maps of the same resolution"):
        detector("vit", out_indices=[1, 2])
