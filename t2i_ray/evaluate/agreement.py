"""Attribute agreement: pictures on which the reader sees what their captions say.

A caption names an attribute, a picture is generated from it, the reader reads the attribute off
the picture; the share of pictures on which both say the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from t2i_ray.data import Prepared
from t2i_ray.evaluate import bootstrap

READABLE = 0.95  # of real test pictures must be read rightly, or an attribute is no measure


@dataclass(frozen=True)
class Agreement:
    """One attribute."""

    attribute: str
    count: int  # pictures whose caption names it
    share: float  # of these that show what the caption says
    low: float  # 95 % Wilson interval of the share
    high: float
    uniform: float  # chance: 1 / number of values
    commonest: float  # chance: always showing the value most often asked for
    reader: float  # share of real test pictures that the reader reads rightly

    @property
    def is_measure(self) -> bool:
        """Whether the reader is good enough at it, and any caption names it."""
        return self.reader >= READABLE and self.count > 0


def mean_share(agreements: list[Agreement]) -> float | None:
    """Over the attributes that are measures; None if none is."""
    shares = [one.share for one in agreements if one.is_measure]
    return sum(shares) / len(shares) if shares else None


def agreements_of(
    read: dict[str, np.ndarray],
    accuracy: dict[str, float],
    prepared: Prepared,
    samples: np.ndarray,
    captions: np.ndarray,
) -> list[Agreement]:
    """Every attribute's agreement.

    Args:
        read: attribute -> int64 [n], what the reader sees on the pictures.
        accuracy: attribute -> share of real test pictures that it reads rightly.
        prepared: the data.
        samples: int64 [n], whose attributes are the truth.
        captions: int64 [n], from which the pictures were generated.
    """
    return [
        _agreement(
            name,
            read[name],
            prepared.attributes[name][samples],
            prepared.named[name][captions],
            len(prepared.attribute_values[name]),
            accuracy[name],
        )
        for name in prepared.attributes
    ]


def mean_interval(
    agreements: list[Agreement],
    read: dict[str, np.ndarray],
    prepared: Prepared,
    samples: np.ndarray,
    captions: np.ndarray,
    seed: int,
    resamples: int,
) -> bootstrap.Interval:
    """95 % percentile interval of the mean agreement, over pictures."""
    names = [one.attribute for one in agreements if one.is_measure]
    if not names:
        return None
    named = np.stack([prepared.named[name][captions] for name in names], 1)  # [n, attributes]
    right = np.stack([read[name] == prepared.attributes[name][samples] for name in names], 1)

    def mean(at: np.ndarray) -> float:
        asked = named[at]
        return float(((right[at] & asked).sum(0) / np.maximum(1, asked.sum(0))).mean())

    return bootstrap.of_statistic(mean, len(samples), seed, "agreement/mean", resamples)


def _agreement(
    name: str,
    read: np.ndarray,
    said: np.ndarray,
    named: np.ndarray,
    values: int,
    accuracy: float,
) -> Agreement:
    read, said = read[named], said[named]
    right = int((read == said).sum())
    low, high = wilson(right, len(said))
    return Agreement(
        attribute=name,
        count=len(said),
        share=right / max(1, len(said)),
        low=low,
        high=high,
        uniform=1 / values,
        commonest=int(np.bincount(said, minlength=1).max()) / max(1, len(said)),
        reader=accuracy,
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    z = 1.959964
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    # 0 and 1 are reached exactly, but for rounding.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
