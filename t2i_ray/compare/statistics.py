"""Means over seeds, what they are worth, and which points nobody beats. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return statistics.fmean(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean: s / sqrt(n), with s the sample's deviation (n - 1); None below two values."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean: mean -+ t s / sqrt(n), t of n - 1 degrees (Student 1908).

    None below two values. It takes the values as drawn independently from a normal distribution.
    """
    middle, error = mean(values), standard_error(values)
    if middle is None or error is None:
        return None
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return middle - half, middle + half


@dataclass(frozen=True)
class Difference:
    """Two contenders' scores, one minus the other, seed by seed."""

    seeds: tuple[int, ...]  # that both have; only these count
    only_one: tuple[int, ...]  # seeds that one of the two lacks
    mean: float | None  # None without a common seed
    interval: tuple[float, float] | None  # 95 %; None below two common seeds

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """The mean of one - other over common seeds, with its paired t-interval.

    mean(d) -+ t_{0.975, n-1} s_d / sqrt(n), d the n differences and s_d their deviation. Pairing
    takes out what a seed does to both (its order of pictures, its noise).

    Args:
        one: score by seed.
        other: likewise.
    """
    common = sorted(one.keys() & other.keys())
    differences = [one[seed] - other[seed] for seed in common]
    return Difference(
        seeds=tuple(common),
        only_one=tuple(sorted(one.keys() ^ other.keys())),
        mean=mean(differences),
        interval=t_interval(differences),
    )


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other beats, sorted by their first objective, then the next.

    One point beats another if it is no worse in any objective and better in one (Pareto 1906).
    Equal points are all on the front or all off it.

    Args:
        points: each with as many objectives, all to be small.
    """

    def beaten(mine: Sequence[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and list(other) != list(mine)
            for other in points
        )

    return sorted(
        (i for i, mine in enumerate(points) if not beaten(mine)), key=lambda i: list(points[i])
    )
