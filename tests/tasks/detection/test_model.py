"""A detector on a pre-trained encoder."""

import pytest
import torch

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection
from modeling_a2mim.tasks.detection.model import build_detector, check_other_sizes

from ...families import family_config
from .test_task import parsed


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_pretrained_encoder_is_the_one_that_is_tuned(tmp_path):
    torch.manual_seed(5)
    pretrained = A2MIMForPreTraining(family_config("convnext", num_channels=1))
    out = export_model(pretrained, tmp_path)
    (model_args, _, _) = parsed("--model_name_or_path", out, "--dataset_name", "x", "--output_dir", "y")
    model = build_detector(model_args, ["a", "b"], masks=False)
    known = pretrained.a2mim.encoder.state_dict()
    assert all(torch.equal(v, known[n]) for n, v in model.backbone.a2mim.encoder.state_dict().items() if n in known)
    assert model.config.num_labels == 2
    assert model.config.fpn_channels == 16
    assert model.config.num_channels == 1


def test_encoders_of_one_size():
    settings = {"architecture": "vit_tiny_patch16_224", "image_size": 64, "num_labels": 1, "fpn_channels": 16}
    vit = {"embed_dim": 32, "depth": 4, "num_heads": 1}
    model = A2MIMForObjectDetection(A2MIMDetectorConfig.for_encoder(model_args=vit, **settings)).train()
    with pytest.raises(ValueError, match="^shortest_edge: vit_tiny_patch16_224 takes only images of"):
        check_other_sizes(model)
    assert model.training
    dynamic = A2MIMDetectorConfig.for_encoder(model_args={**vit, "dynamic_img_size": True}, **settings)
    check_other_sizes(A2MIMForObjectDetection(dynamic))
