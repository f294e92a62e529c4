"""What is measured of interactions between patches, and the result with its intervals; see `interactions`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ..arguments.analysis import FILLS, RATIOS, VALUES
from .contexts import (
    Pairs,
    Subsets,
    all_contexts,
    context_orders,
    contexts_of,
    draw_pairs,
    draw_permutations,
    unique_subsets,
)


RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class InteractionSettings:
    """What is measured, the same for all models that are compared; see `interaction_strength`."""

    grid: int = 14
    ratios: tuple[float, ...] = RATIOS
    pairs: int | None = 50
    contexts: int | None = 50
    value: str = "log_odds"
    fill: str = "zero"
    sampling: str = "shared"
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "ratios", tuple(float(ratio) for ratio in self.ratios))
        if self.grid < 2:
            raise ValueError(f"grid: must be at least 2, got {self.grid}")
        if self.contexts is not None and self.contexts < 1:
            raise ValueError(f"contexts: must be at least 1, got {self.contexts}")
        for name, known in (("value", VALUES), ("fill", FILLS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        self.draw(0)  # what cannot be drawn says so

    @property
    def players(self) -> int:
        """How many cells the grid has."""
        return self.grid**2

    @property
    def orders(self) -> list[int]:
        """Cells in a context, for each different order."""
        return context_orders(self.ratios, self.players)

    def draw(self, image: int) -> tuple[Pairs, Iterator[Subsets]]:
        """The pairs of the image of this number, and for each order what has to be shown of it."""
        generator = np.random.default_rng([self.seed, image])
        pairs = draw_pairs(self.grid, self.pairs, generator, self.sampling)
        return pairs, self._subsets(pairs.cells, generator)

    def _subsets(self, cells: np.ndarray, generator: np.random.Generator) -> Iterator[Subsets]:
        shared, places = self.sampling != "independent", None
        for order in self.orders:
            if self.contexts is None:
                contexts = all_contexts(self.players, cells, order)
            else:
                if places is None or not shared:
                    count = self.contexts if shared else self.contexts * len(cells)
                    places = draw_permutations(self.players, count, generator)
                    places = places if shared else places.reshape(len(cells), self.contexts, -1)
                contexts = contexts_of(places, cells, order)
            yield unique_subsets(contexts, cells)


@dataclass
class InteractionStrength:
    """The result of `interaction_strength`; arrays are in the order of `orders`.

    Attributes:
        settings: what was measured.
        orders: (orders,), cells in a context.
        interactions: (images, orders, pairs), raw |I_ij(m)|, in units of the value (nats).
        pairs, weights: (images, pairs, 2) cells i < j, row by row; (images, pairs), see `contexts.Pairs`.
        forward_passes: images shown to the model, in all.
    """

    settings: InteractionSettings
    orders: np.ndarray
    interactions: np.ndarray
    pairs: np.ndarray
    weights: np.ndarray
    forward_passes: int

    @property
    def images(self) -> int:
        """How many images were measured."""
        return len(self.interactions)

    @property
    def per_image(self) -> np.ndarray:
        """(images, orders), the mean of |I_ij(m)| over pairs."""
        return np.einsum("iop,ip->io", self.interactions, self.weights)

    @property
    def mean(self) -> np.ndarray:
        """I(m), (orders,): the mean of |I_ij(m)| over images and pairs, in units of the value."""
        return self.per_image.mean(0)

    @property
    def strength(self) -> np.ndarray:
        """J(m), (orders,): I(m) over its mean over all orders; without unit, 1 on average."""
        return relative(self.mean)

    def mean_interval(self, confidence: float = 0.95) -> np.ndarray:
        """(orders, 2), lower and upper end of the bootstrap interval of I(m), over images."""
        return interval(self._resampled(), confidence)

    def strength_interval(self, confidence: float = 0.95) -> np.ndarray:
        """(orders, 2), the same of J(m)."""
        return interval(relative(self._resampled()), confidence)

    def difference_interval(self, other: "InteractionStrength", confidence: float = 0.95) -> np.ndarray:
        """(orders, 2), the interval of J(m) - other's J(m) over the same images: what makes images differ for both
        alike cancels.

        Raises:
            ValueError: naming `other`, if it is of other settings or another number of images.
        """
        if self.settings != other.settings or self.images != other.images:
            raise ValueError("other: expected a measurement of the same images with the same settings")
        return interval(relative(self._resampled()) - relative(other._resampled()), confidence)

    def _resampled(self) -> np.ndarray:
        """I(m) of images drawn again with replacement, (resamples, orders); the same draws whenever it is asked."""
        count = self.images
        times = np.random.default_rng(self.settings.seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        return times / count @ self.per_image

    def to_dict(self) -> dict:
        """Everything but the raw values, for JSON; `None` for what is not defined (J where nothing interacts)."""
        return {
            "settings": asdict(self.settings),
            "images": self.images,
            "forward_passes": self.forward_passes,
            "orders": self.orders.tolist(),
            **{name: rounded(getattr(self, name)) for name in ("strength", "mean")},
            **{name: rounded(getattr(self, name)()) for name in ("strength_interval", "mean_interval")},
        }


def relative(mean: np.ndarray) -> np.ndarray:
    """Values (..., orders) over their mean over all orders; NaN where that is 0."""
    total = mean.mean(-1, keepdims=True)
    return np.divide(mean, total, out=np.full_like(mean, np.nan), where=total > 0)


def rounded(values: np.ndarray) -> list:
    """Seven digits, more than any of it is known to."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values]


def interval(resampled: np.ndarray, confidence: float) -> np.ndarray:
    """Lower and upper end of the bootstrap interval, (resamples, orders) to (orders, 2)."""
    return np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).T
