"""From a space to settings, and from settings and seeds to trials."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass
from typing import Any

from t2i_ray.config import Config, Dimension, Sweep, with_values


@dataclass(frozen=True)
class Setting:
    """One point of the space."""

    label: str  # such as "encoder=bigru lr_g=0.001"
    values: dict[str, Any]  # dotted field -> value


@dataclass(frozen=True)
class Trial:
    """A setting with a seed: one run."""

    setting: str
    config: Config


def settings(sweep: Sweep) -> list[Setting]:
    """The points to try, each once; the same sweep gives the same ones."""
    search, space = sweep.search, sweep.space
    if search.method == "grid":
        fixed = [key for key, dimension in space.items() if dimension.has("grid")]
        every = itertools.product(*(space[key].labelled() for key in fixed))
        starts = [dict(zip(fixed, labels, strict=True)) for labels in every]
    else:
        starts = [{} for _ in range(search.trials)]
    last = [key.rpartition(".")[2] for key in space]
    short = {k: end if last.count(end) == 1 else k for k, end in zip(space, last, strict=True)}
    points: dict[str, Setting] = {}
    for i, labels in enumerate(starts):
        values: dict[str, Any] = {}
        for key, dimension in space.items():
            if key in labels:
                values[key] = dimension.labelled()[labels[key]]
            else:
                # Each dimension draws for itself: to add one leaves the others as they were.
                labels[key], values[key] = _draw(dimension, f"{search.seed} {i} {key}")
        active = [key for key in space if _applies(space[key], labels)]
        label = " ".join(f"{short[key]}={labels[key]}" for key in active)
        points.setdefault(label, Setting(label, {key: values[key] for key in active}))
    return list(points.values())


def _draw(dimension: Dimension, seed: str) -> tuple[str, Any]:
    """A label and a value; numbers have four digits, so that the label says it all."""
    rng = random.Random(seed)
    if dimension.uniform:
        number = rng.uniform(*dimension.uniform)
    elif dimension.loguniform:
        low, high = dimension.loguniform
        number = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        return rng.choice(list(dimension.labelled().items()))
    number = float(f"{number:.4g}")
    return str(number), number


def _applies(dimension: Dimension, labels: dict[str, str]) -> bool:
    return all(labels.get(other) in allowed for other, allowed in dimension.when.items())


def trials(sweep: Sweep) -> list[Trial]:
    """Every setting with every seed, seed by seed, so that all settings are seen early."""
    points = settings(sweep)
    # A trial saves where it is measured: one that is killed does not measure twice.
    shared = {"checkpoint.every": sweep.run.evaluation.every, "checkpoint.keep": 1}
    return [
        Trial(
            point.label,
            with_values(
                sweep.run,
                {
                    **shared,
                    **point.values,
                    "seed": seed,
                    "name": f"{sweep.name}-{number:03d}-seed-{seed}",
                },
            ),
        )
        for seed in sweep.search.seeds
        for number, point in enumerate(points)
    ]
