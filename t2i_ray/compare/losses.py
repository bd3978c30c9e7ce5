"""Losses of each contender, and the published ones beside them. They rank nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NETWORKS = {"g_loss": "generator", "d_loss": "discriminator"}
PAPER = (
    "a comparison of GAN-CLS and a GAN with XLNet on Oxford-102 flowers in the News of the "
    "National Academy of Sciences of Kazakhstan: one run each, no seeds"
)
WARNING = (
    "Losses do not rank models. A generator's loss is measured by its own discriminator, and each "
    "encoder makes another discriminator: these are losses of different games. A large generator "
    "loss says that its discriminator wins, not that the pictures are worse."
)


@dataclass(frozen=True)
class Range:
    """Least, mean and largest value of a loss, in nats; None: not published."""

    low: float | None
    mean: float | None
    high: float | None

    @classmethod
    def of(cls, curves: Sequence[Mapping[int, float]]) -> Range:
        """Over all logged steps of all these runs."""
        values = [value for curve in curves for value in curve.values()]
        if not values:
            return cls(None, None, None)
        return cls(min(values), sum(values) / len(values), max(values))


PUBLISHED: dict[str, dict[str, Range]] = {
    "published: GAN-CLS (bi-GRU)": {
        "g_loss": Range(0.1273, 0.4807, 0.9893),
        "d_loss": Range(None, 1.4696, None),
    },
    "published: GAN with XLNet": {
        "g_loss": Range(None, 5.8187, None),
        "d_loss": Range(None, 0.7353, None),
    },
}
