"""One encoder of each family of timm, with real tensors: it pre-trains, and what is saved and exported is the same."""

import copy
import json

import pytest
import timm
import torch

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, architectures
from modeling_a2mim.alignment import LEAST_ALIGNMENT
from modeling_a2mim.architectures import Row, counts, examine, main, write
from modeling_a2mim.export import export_model
from modeling_a2mim.masking import tensors_in


pytestmark = pytest.mark.usefixtures("one_thread")

# The smallest of each family that has one under 30M parameters, at 128 px or at the size that the encoder needs.
SIZES = {
    "convmixer_768_32": 126,
    "crossvit_tiny_240": 240,
    "efficientformer_l1": 224,
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


@pytest.mark.parametrize("name", NAMES)
def test_pretrains(name, tmp_path):
    size = SIZES.get(name, 128)
    cell = next(d for d in (32, 18, 30) if size % d == 0)
    config = A2MIMConfig.for_architecture(name, image_size=size, mask_patch_size=cell)
    model = A2MIMForPreTraining(config).train()
    token, site = model.a2mim.mask_token, model.a2mim.site

    images = torch.randn(2, 3, size, size)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    output.loss.backward()
    assert token.token.grad.isfinite().all()
    assert token.token.grad.any()
    gradients = [parameter.grad for parameter in model.a2mim.encoder.parameters()]
    assert sum(g is not None for g in gradients) > 0.9 * len(gradients)  # not those of heads and last norms

    export_model(model.eval(), tmp_path)
    again = copy.deepcopy(A2MIMForPreTraining.from_pretrained(tmp_path, subfolder="pretraining"))
    assert again.a2mim.site == site
    stranger = copy.deepcopy(timm.create_model(f"local-dir:{tmp_path}", pretrained=True)).eval()
    with torch.no_grad():
        one, two = (m(images, output.bool_masked_pos) for m in (model, again))
        assert torch.equal(one.reconstruction, two.reconstruction)
        unmasked = model.a2mim(images)
        assert torch.equal(stranger(images), unmasked.pooler_output)
        features = stranger.forward_features(images)
        pairs = zip(tensors_in(features), tensors_in(unmasked.last_hidden_state), strict=True)
        assert all(torch.equal(one, two) for (_, one), (_, two) in pairs)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("kwargs", [{"image_size": (64, 96)}, {"num_channels": 1}, {"num_channels": 5}])
def test_other_images(name, kwargs):
    config = A2MIMConfig.for_architecture(name, **{"image_size": 64, "mask_patch_size": 16, **kwargs})
    model, images = A2MIMForPreTraining(config), torch.randn(2, config.num_channels, *config.input_size)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    output.loss.backward()
    assert model.a2mim.mask_token.token.grad.any()


def test_encoders_that_take_no_224_px_get_their_own_size():
    config = A2MIMConfig.for_architecture("crossvit_15_dagger_408")
    assert (config.image_size, config.mask_patch_size) == ([408, 408], [34, 34])
    assert A2MIMConfig.for_architecture("resnet18").image_size == 224
    with pytest.raises(ValueError, match=r"^image_size: crossvit_15_dagger_408 cannot take .* made for 408 x 408 px"):
        A2MIMConfig.for_architecture("crossvit_15_dagger_408", image_size=224)
    with pytest.raises(ValueError, match="^architecture: "):
        A2MIMConfig.for_architecture("crossvit_16")


# The table


def test_examine():
    row = examine("test_resnet")
    assert (row.family, row.status, row.image_size) == ("resnet", "pre-trains", [224, 224])
    assert (row.site, row.site_kind, row.site_prefix, row.site_grid) == ("layer3.0", "NCHW", 0, [14, 14])
    assert (row.channels, row.map_kind, row.map_grid, row.stride) == (192, "NCHW", [7, 7], 32)
    assert row.isotropic is False
    assert row.alignment > LEAST_ALIGNMENT
    assert examine("test_resnet", max_parameters=0).alignment is None


def test_what_goes_wrong_is_shown(monkeypatch):
    def fail(config):
        raise (ValueError if config.architecture == "test_vit" else KeyError)("mask_site: nowhere")

    monkeypatch.setattr(architectures, "plan_encoder", fail)
    refused, broken = examine("test_vit"), examine("test_resnet")
    assert refused.status == "error: mask_site: nowhere"
    assert broken.status == "other: KeyError: 'mask_site: nowhere'"
    assert counts([refused, broken, Row("a", "b")]) == "1 pre-train, 1 named errors, 1 other"


def test_table(tmp_path, capsys):
    rows = main(["--names", "test_resnet", "test_vit", "--output", str(tmp_path), "--jobs", "1"])
    assert [row.name for row in rows] == ["test_resnet", "test_vit"]
    assert "2 pre-train, 0 named errors, 0 other" in capsys.readouterr().out
    record = json.loads((tmp_path / "architectures.json").read_text())
    assert record["rows"] == [vars(row) for row in rows]
    assert record["summary"] == "2 pre-train, 0 named errors, 0 other"
    rows[1].status = "error: of today"
    write(rows[1:], tmp_path, 1)  # the other one is kept
    again = json.loads((tmp_path / "architectures.json").read_text())
    assert [row["status"] for row in again["rows"]] == ["pre-trains", "error: of today"]
    assert len(again["runs"]) == 2
    rows[1].status = "pre-trains"
    write(rows, tmp_path, 1)
    assert len(json.loads((tmp_path / "architectures.json").read_text())["runs"]) == 1
    table = (tmp_path / "architectures.md").read_text()
    assert "| test_vit | 306240 | 224x224 | patch_embed | NHWC | 14x14 | 64 | 16 | 1.0 | pre-trains |" in table
    assert "| resnet | 1 | 1 | NCHW 14x14 | NCHW 7x7 |" in table
    with pytest.raises(ValueError, match="^names: no timm encoder is called resnet5o"):
        main(["--names", "resnet5o"])
