"""The sections ``space`` and ``search`` of a sweep: what varies, how, and by which measure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from t2i_ray.config.fields import Section, operational
from t2i_ray.config.measures import RANKED, larger_is_better


class Dimension(Section):
    """One field that varies: exactly one of choice, grid, uniform and loguniform.

    A field may be a whole section, such as encoder; then its values are labelled mappings.
    """

    choice: list[Any] | dict[str, Any] | None = operational(None, doc="One of these, at random.")
    grid: list[Any] | dict[str, Any] | None = operational(None, doc="Each of these.")
    uniform: tuple[float, float] | None = operational(None, doc="A number between these.")
    loguniform: tuple[float, float] | None = operational(
        None, doc="A number between these, its logarithm uniform."
    )
    when: dict[str, list[str]] = operational(
        {}, doc="Vary only where another dimension has one of these labels."
    )

    @model_validator(mode="after")
    def _check(self) -> Dimension:
        given = [kind for kind in ("choice", "grid", "uniform", "loguniform") if self.has(kind)]
        if len(given) != 1:
            raise ValueError(
                f"space: {', '.join(given) or 'nothing'} given; give exactly one of choice, grid, "
                "uniform, loguniform"
            )
        for kind, low in (("uniform", None), ("loguniform", 0.0)):
            bounds = getattr(self, kind)
            if bounds and (bounds[0] >= bounds[1] or (low is not None and bounds[0] <= low)):
                raise ValueError(f"space: {kind}={list(bounds)}: give [low, high], low below high")
        if (self.has("choice") or self.has("grid")) and not self.labelled():
            raise ValueError("space: an empty list of values; give at least one")
        return self

    def has(self, kind: str) -> bool:
        """Whether it is of this kind."""
        return getattr(self, kind) is not None

    def labelled(self) -> dict[str, Any]:
        """The values of choice or grid by their labels."""
        values = self.choice if self.choice is not None else self.grid
        if isinstance(values, dict):
            return values
        return {str(value): value for value in values or []}


class Fifo(Section):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020): the worse part of a rung is stopped."""

    kind: Literal["asha"] = "asha"
    grace: int = operational(doc="Steps that every trial may take.", ge=1)
    reduction: int = operational(3, doc="One of so many goes on from a rung.", ge=2)


class Median(Section):
    """What is worse than the median of the others' means is stopped (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    grace: int = operational(doc="Steps that every trial may take.", ge=1)


class Pbt(Section):
    """Population based training (Jaderberg et al. 2017), all members at the same step.

    Every so many steps the worst take over the best ones' weights, with changed values.
    """

    kind: Literal["pbt"] = "pbt"
    every: int = operational(doc="Steps from one takeover to the next.", ge=1)
    share: float = operational(
        0.25, doc="Share of the population that takes over, and that is taken over.", gt=0, le=0.5
    )
    factors: tuple[float, float] = operational(
        (0.8, 1.25), doc="A value that was taken over is multiplied by one of these."
    )
    resample: float = operational(
        0.25, doc="Probability that it is drawn anew instead.", ge=0, le=1
    )


Scheduler = Annotated[Fifo | Asha | Median | Pbt, Field(discriminator="kind")]
MEASURE = f"val/({RANKED})"
COST = r"perf/(cpu|gpu)_seconds"


class Confirm(Section):
    """The second stage: the best setting of each kind again, with fresh seeds, on the test split.

    What won a search is flattered by its luck; these runs were not chosen, and none is stopped.
    """

    by: str | None = operational(
        None, doc="One winner for each label of this dimension, e.g. encoder; none: one of all."
    )
    seeds: list[int] = operational(
        [101, 102, 103, 104, 105], doc="Other seeds than the search's, five or more.", min_length=5
    )
    samples: int = operational(1000, doc="Pictures generated to measure a run.", ge=2)


class Search(Section):
    """How the space is searched."""

    method: Literal["grid", "random", "tpe"] = operational(
        "grid",
        doc="grid: every combination, others drawn for each; random: trials settings drawn; "
        "tpe: each chosen by what the earlier ones gave (Optuna).",
    )
    trials: int = operational(8, doc="Settings that random and tpe try.", ge=1)
    seed: int = operational(0, doc="Seed of what is drawn.", ge=0)
    seeds: list[int] = operational([0], doc="Every setting is trained with each.", min_length=1)
    metric: str = operational(
        "val/agreement/mean",
        doc="The measure that ranks, one that evaluation.measures takes; never a loss.",
        pattern=f"^{MEASURE}$",
    )
    mode: Literal["max", "min"] = operational("max", doc="Whether larger is better.")
    also: dict[str, Literal["max", "min"]] = operational(
        {},
        doc="More objectives of tpe, such as perf/cpu_seconds: min; the Pareto front is marked.",
    )
    scheduler: Scheduler = operational(Fifo(), doc="Which trials are stopped early.")
    concurrent: int | None = operational(
        None, doc="Most trials at a time; none: as many as the cluster has room for.", ge=1
    )
    trials_per_gpu: int = operational(1, doc="Trials that share a GPU.", ge=1)
    confirm: Confirm | None = operational(None, doc="A second stage; none: the search alone.")

    @model_validator(mode="after")
    def _check(self) -> Search:
        for name in self.also:
            if name == self.metric or not re.fullmatch(f"{MEASURE}|{COST}", name):
                raise ValueError(
                    f"search.also={name}: give other measures than search.metric, such as "
                    "val/frechet_reader, or perf/cpu_seconds, perf/gpu_seconds"
                )
        for name, mode in {self.metric: self.mode, **self.also}.items():
            field = "search.mode" if name == self.metric else f"search.also.{name}"
            right = "max" if larger_is_better(name) else "min"  # less compute is better, too
            if mode != right:
                raise ValueError(
                    f"{field}={mode}: {name} is better when "
                    f"{'large' if right == 'max' else 'small'}; write {right}"
                )
        if self.also and self.method != "tpe":
            raise ValueError(
                f"search.also with search.method={self.method}: only tpe has several objectives"
            )
        kind = self.scheduler.kind
        if self.also and kind != "fifo":
            raise ValueError(
                f"search.scheduler.kind={kind} with search.also: what to stop early is undefined "
                "for several objectives; use fifo"
            )
        if kind == "pbt" and self.method == "tpe":
            raise ValueError(
                "search.scheduler.kind=pbt with search.method=tpe: both choose values; use random"
            )
        if kind == "pbt" and self.confirm:
            raise ValueError(
                "search.confirm with search.scheduler.kind=pbt: what a population finds is a "
                "schedule of values, no setting to repeat; leave one out"
            )
        if self.confirm and (seen := {*self.seeds} & {*self.confirm.seeds}):
            raise ValueError(
                f"search.confirm.seeds={sorted(seen)} are the search's own; give fresh ones"
            )
        return self
