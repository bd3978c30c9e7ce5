"""From a space to settings, and from settings and seeds to trials."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from t2i_ray.config import Config, Dimension, Sweep, with_values
from t2i_ray.launch import with_absolute_paths
from t2i_ray.runs import Stage


@dataclass(frozen=True)
class Setting:
    """One point of the space."""

    label: str  # such as "encoder=bigru lr_g=0.001"
    labels: dict[str, str]  # dotted field -> label of its value
    values: dict[str, Any]  # dotted field -> value


@dataclass(frozen=True)
class Trial:
    """A setting with a seed: one run."""

    setting: Setting
    config: Config
    stage: Stage = "search"

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.name


def settings(sweep: Sweep) -> list[Setting]:
    """The points that a grid or a random search tries, each once; always the same ones."""
    search, space = sweep.search, sweep.space
    if search.method == "grid":
        fixed = [key for key, dimension in space.items() if dimension.has("grid")]
        every = itertools.product(*(space[key].labelled() for key in fixed))
        starts = [dict(zip(fixed, labels, strict=True)) for labels in every]
    else:
        starts = [{} for _ in range(search.trials)]
    points: dict[str, Setting] = {}
    for i, labels in enumerate(starts):
        drawn: dict[str, Any] = dict(labels)
        for key, dimension in space.items():
            if key not in drawn:
                # Each dimension draws for itself: to add one leaves the others as they were.
                drawn[key] = draw(dimension, random.Random(f"{search.seed} {i} {key}"))
        point = setting(space, drawn)
        points.setdefault(point.label, point)
    return list(points.values())


def setting(space: Mapping[str, Dimension], drawn: Mapping[str, str | float]) -> Setting:
    """The point where each dimension has this label or number; what does not apply is left out."""
    last = [key.rpartition(".")[2] for key in space]
    short = {k: end if last.count(end) == 1 else k for k, end in zip(space, last, strict=True)}
    labels: dict[str, str] = {}
    values: dict[str, Any] = {}
    for key, dimension in in_order(space):
        if not applies(dimension, labels):
            continue
        known = dimension.labelled()
        labels[key] = str(drawn[key])
        values[key] = known[labels[key]] if known else drawn[key]
    active = [key for key in space if key in labels]
    label = " ".join(f"{short[key]}={labels[key]}" for key in active)
    return Setting(label, {k: labels[k] for k in active}, {k: values[k] for k in active})


def in_order(space: Mapping[str, Dimension]) -> Iterable[tuple[str, Dimension]]:
    """A dimension after those on which it depends; those in a circle last."""
    left, found = dict(space), []
    while left:
        ready = [key for key in left if not any(other in left for other in left[key].when)]
        for key in ready or list(left):
            found.append((key, left.pop(key)))
    return found


def applies(dimension: Dimension, labels: Mapping[str, str]) -> bool:
    """Whether it varies at all where the others have these labels."""
    return all(labels.get(other) in allowed for other, allowed in dimension.when.items())


def draw(dimension: Dimension, rng: random.Random) -> str | float:
    """A label, or a number of four digits, so that the label of a setting says it all."""
    if dimension.uniform:
        return rounded(dimension, rng.uniform(*dimension.uniform))
    if dimension.loguniform:
        low, high = dimension.loguniform
        return rounded(dimension, math.exp(rng.uniform(math.log(low), math.log(high))))
    return rng.choice(list(dimension.labelled()))


def rounded(dimension: Dimension, number: float) -> float:
    """To four digits, within the dimension's bounds."""
    low, high = dimension.uniform or dimension.loguniform or (number, number)
    return min(max(float(f"{number:.4g}"), low), high)


def config_of(sweep: Sweep, values: Mapping[str, Any]) -> Config:
    """The sweep's run with these fields or sections set. Raises UserError as its makers."""
    return with_absolute_paths(with_values(sweep.run, dict(values)))


def trials(
    sweep: Sweep,
    points: Iterable[Setting],
    seeds: Iterable[int],
    prefix: str = "",
    stage: Stage = "search",
    first: int = 0,
) -> list[Trial]:
    """Every setting with every seed, seed by seed, so that all settings are seen early.

    ``prefix`` tells the names of a sweep's parts apart; settings are numbered from ``first``.
    """
    # A trial saves where it is measured: one that is killed does not measure twice.
    shared = {"checkpoint.every": sweep.run.evaluation.every, "checkpoint.keep": 1}
    numbered = list(enumerate(points, first))
    return [
        Trial(
            point,
            config_of(
                sweep,
                {
                    **shared,
                    **point.values,
                    "seed": seed,
                    "name": f"{sweep.name}-{prefix}{number:03d}-seed-{seed}",
                },
            ),
            stage,
        )
        for seed in seeds
        for number, point in numbered
    ]
