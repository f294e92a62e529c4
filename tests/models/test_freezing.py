"""Parts of a model that stay in evaluation mode while the rest of it trains."""

import torch
from torch import nn

from modeling_a2mim.models.freezing import PartlyFrozen


class Model(PartlyFrozen):
    def __init__(self):
        super().__init__()
        self.a2mim, self.head = nn.BatchNorm1d(3), nn.BatchNorm1d(3)


def test_the_encoder_stays_in_evaluation_mode():
    model = Model()
    assert model.train().a2mim.training  # until it is frozen
    assert model.keep_frozen() is model
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert (model.training, model.head.training, model.a2mim.training) == (mode, mode, False)
    model.a2mim(torch.randn(8, 3))
    assert not model.a2mim.running_mean.any()


def test_freezing_keeps_the_mode_of_the_model():
    assert not Model().eval().keep_frozen().training
    assert Model().train().keep_frozen().training


def test_parts_are_up_to_the_model():
    class Other(Model):
        def frozen_parts(self):
            return [self.head]

    model = Other().keep_frozen().train()
    assert (model.a2mim.training, model.head.training) == (True, False)
