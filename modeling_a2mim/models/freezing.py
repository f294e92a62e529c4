"""Parts of a model that stay as they are while the rest of it trains."""

from collections.abc import Iterable
from typing import Self

from torch import nn

from ..modeling_a2mim import A2MIMModel


class PartlyFrozen(nn.Module):
    """A model that, once frozen, keeps parts of it in evaluation mode: they keep their running statistics and drop
    nothing out. Which of their parameters get no gradients is up to the model."""

    is_frozen = False
    a2mim: A2MIMModel

    def frozen_parts(self) -> Iterable[nn.Module]:
        """The parts; by default the encoder."""
        return [self.a2mim]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            for part in self.frozen_parts():
                part.eval()
        return self

    def keep_frozen(self) -> Self:
        """From now on the parts stay in evaluation mode. Returns the model."""
        self.is_frozen = True
        return self.train(self.training)
