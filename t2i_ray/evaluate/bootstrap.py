"""Intervals by resampling pictures (Efron 1979), seeded.

Percentile intervals of means are taken as they are. A distance between *sets* of pictures needs a
correction: a resample holds some 63 % of the pictures, several of them twice, so its distance is
biased beyond that of the set itself, often by more than the interval is wide. Its spread is right
(or too wide, for sets that hardly differ), so such an interval is moved until the resamples'
median stands at the value. It then holds the mean that the estimate has at this number of
pictures, bias of few pictures included.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t2i_ray.data import counter_rng

RESAMPLES = 200  # of a distance between sets
CHEAPER = 5  # times as many of a mean
LEVELS = (0.025, 0.975)

Interval = tuple[float, float] | None


def of_mean(values: np.ndarray, seed: int, name: str, resamples: int) -> Interval:
    """95 % percentile interval of the mean of values [n], from 5 * resamples."""
    return of_statistic(lambda at: float(values[at].mean()), len(values), seed, name, resamples)


def of_statistic(
    statistic: Callable[[np.ndarray], float], count: int, seed: int, name: str, resamples: int
) -> Interval:
    """95 % percentile interval of a statistic of indices [count], from 5 * resamples."""
    found = _resampled(statistic, count, seed, name, CHEAPER * resamples)
    return None if found is None else _quantiles(found)


def of_distance(
    distance: Callable[[np.ndarray], float],
    rows: np.ndarray,
    value: float,
    seed: int,
    name: str,
    resamples: int,
) -> Interval:
    """95 % interval of a distance of rows [n, d] from a fixed set; see above."""
    found = _resampled(lambda at: distance(rows[at]), len(rows), seed, name, resamples)
    return None if found is None else _quantiles(found - np.median(found) + value)


def _resampled(
    statistic: Callable[[np.ndarray], float], count: int, seed: int, name: str, resamples: int
) -> np.ndarray | None:
    """The statistic of so many resamples [resamples]; None of none.

    Which they are depends on seed, name and number, so no measure changes another's interval.
    """
    if not resamples or not count:
        return None
    rng = counter_rng(seed, f"bootstrap {name}")
    return np.array([statistic(rng.integers(0, count, count)) for _ in range(resamples)])


def _quantiles(found: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(found, LEVELS)
    return float(low), float(high)
