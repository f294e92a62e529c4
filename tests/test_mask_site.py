"""Whether cells lie where the image's do is found out by changing the image."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.encoders.layout import FeatureLayout, Site
from modeling_a2mim.encoders.plan import EncoderPlan, plan_encoder
from modeling_a2mim.mask_site import LEAST_ALIGNMENT, alignment, choose_site, run_until

from .families import FAMILIES, family_config


pytestmark = pytest.mark.usefixtures("one_thread")

# A Hiera of 64 px: its tokens are in the order of the image in the patch embedding and after the last stage only.
HIERA = {"architecture": "hiera_tiny_224", "image_size": 64, "mask_patch_size": 8, "model_args": {"embed_dim": 24}}


class Patches(nn.Module):
    """An encoder that only averages patches of 8 px and puts them in a given order."""

    def __init__(self, order, channels=3):
        super().__init__()
        self.pool, self.mix, self.order = nn.AvgPool2d(8), nn.Conv2d(channels, 4, 1), order
        self.place = nn.Identity()

    def forward_features(self, x):
        tokens = self.mix(self.pool(x)).flatten(2)[..., self.order].transpose(1, 2)
        return self.place(tokens)


SITE = Site("place", FeatureLayout("NLC", 4, (8, 8)))
CONFIG = SimpleNamespace(num_channels=3, input_size=(64, 64), mask_grid=(4, 4), architecture="patches")


def test_cells_in_place_are_aligned_and_others_are_not():
    assert alignment(Patches(torch.arange(64)), SITE, CONFIG) == pytest.approx(1)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert alignment(Patches(shuffled), SITE, CONFIG) < LEAST_ALIGNMENT
    transposed = torch.arange(64).view(8, 8).T.flatten()
    finer = SimpleNamespace(**{**vars(CONFIG), "mask_grid": (8, 8)})  # fewer places on the diagonal
    assert alignment(Patches(transposed), SITE, finer) < LEAST_ALIGNMENT
    # Cells may change places within one cell of the mask: they are masked together.
    within = torch.arange(64).view(4, 2, 4, 2).flip(1).flatten()
    assert alignment(Patches(within), SITE, CONFIG) == pytest.approx(1)


def test_a_change_that_spreads_evenly_tells_nothing():
    encoder = Patches(torch.randperm(64, generator=torch.Generator().manual_seed(1)))
    encoder.place = nn.Linear(4, 4)
    encoder.place.register_forward_hook(lambda module, args, output: output.mean(1, keepdim=True).expand(-1, 64, -1))
    assert alignment(encoder, SITE, CONFIG) == pytest.approx(1)


def test_a_single_cell_is_in_place():
    one = SimpleNamespace(**{**vars(CONFIG), "mask_grid": (1, 1)})
    assert alignment(Patches(torch.randperm(64)), SITE, one) == pytest.approx(1)


def test_overflow_tells_nothing():
    encoder = Patches(torch.arange(64))
    nn.init.constant_(encoder.mix.weight, math.inf)
    assert math.isnan(alignment(encoder, SITE, CONFIG))


def test_the_first_aligned_site_is_taken():
    encoder = Patches(torch.randperm(64, generator=torch.Generator().manual_seed(1)))
    other = Site("mix", FeatureLayout("NCHW", 4, (8, 8)))
    plan = EncoderPlan({}, (SITE, other), SITE.layout, 8, None, False, True, frozenset())
    site, score = choose_site(encoder, plan, CONFIG)
    assert (site, score) == (other, pytest.approx(1))
    with pytest.raises(
        ValueError, match="^mask_site: the cells of 'place' in patches do not lie where the image's do"
    ):
        choose_site(encoder, EncoderPlan({}, (SITE,), SITE.layout, 8, None, False, True, frozenset()), CONFIG)
    site, score = choose_site(encoder.to("meta"), plan, CONFIG)
    assert site == SITE
    assert math.isnan(score)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_the_families_are_aligned(family):
    config = family_config(family)
    encoder = plan_encoder(config).create()
    for index in range(len(encoder.feature_info) - 1):
        config.mask_site = index
        (site,) = plan_encoder(config).sites
        assert alignment(encoder, site, config) > 0.5, site.module


def test_trying_leaves_the_encoder_as_it_was():
    config = family_config("resnet")
    plan = plan_encoder(config)
    encoder = plan.create().train()
    before, state = {k: v.clone() for k, v in encoder.state_dict().items()}, torch.get_rng_state()
    alignment(encoder, plan.sites[0], config)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in encoder.modules())
    assert not any(module._forward_hooks for module in encoder.modules())


def test_what_comes_after_the_module_does_not_run():
    encoder = Patches(torch.arange(64))
    encoder.order = None  # would fail
    assert run_until(encoder, "pool", torch.ones(1, 3, 64, 64)).shape == (1, 3, 8, 8)


def test_hiera_gets_its_token_at_the_patch_embedding(tmp_path):
    with pytest.raises(ValueError, match=r"^mask_site: the cells of 'blocks\.\d' in hiera_tiny_224 do not lie"):
        A2MIMForPreTraining(A2MIMConfig(**HIERA, mask_site=-2))
    model = A2MIMForPreTraining(A2MIMConfig(**HIERA)).eval()
    assert model.a2mim.site.module == model.config.mask_site == "patch_embed"
    model.save_pretrained(tmp_path)
    again = A2MIMForPreTraining.from_pretrained(tmp_path)
    assert again.a2mim.site == model.a2mim.site
    images, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 8, 8) > 0.5
    with torch.no_grad():
        torch.testing.assert_close(again(images, mask).loss, model(images, mask).loss)


def test_models_without_a_token_need_no_site():
    """A classifier takes images at which no site can be found, too."""
    config = A2MIMConfig.for_encoder(architecture="test_resnet", image_size=64, mask_site="nowhere")
    assert A2MIMModel(config)(torch.randn(1, 3, 64, 64)).pooler_output.shape == (1, 96)
