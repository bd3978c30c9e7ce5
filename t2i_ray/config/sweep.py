"""What a sweep's YAML may say: a run's sections, what to vary, and what fits together."""

from __future__ import annotations

import copy
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from t2i_ray.config.fields import Section
from t2i_ray.config.measures import names_taken
from t2i_ray.config.reading import UserError, parse_config, read_yaml, set_value, validate
from t2i_ray.config.run import Config
from t2i_ray.config.search import Dimension, Search


class Sweep(Section):
    """A sweep: the run that all trials start from, what varies, and how it is searched."""

    run: Config
    space: dict[str, Dimension]
    search: Search

    @property
    def name(self) -> str:
        """Of the sweep; its trials' names begin with it."""
        return self.run.name


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> Sweep:
    """Read a sweep's YAML: a run's, with the sections ``space`` and ``search`` besides.

    Raises:
        UserError: the file is missing or not YAML, or a field is unknown or wrong.
    """
    return parse_sweep(read_yaml(path, overrides))


def parse_sweep(document: dict[str, Any]) -> Sweep:
    """The checked sweep of a plain mapping. Raises UserError."""
    run = {key: value for key, value in document.items() if key not in ("space", "search")}
    sweep = validate(
        Sweep,
        {
            "run": parse_config(run),
            "space": document.get("space", {}),
            "search": document.get("search", {}),
        },
    )
    if not sweep.space:
        raise UserError("space: nothing varies; name at least one field, e.g. optim.lr_g")
    _check_against_run(sweep)
    return sweep


def sweep_schema() -> dict[str, Any]:
    """JSON Schema of a sweep's YAML, for editors: a run's, with two sections more."""
    schema = Sweep.model_json_schema()
    run = schema["$defs"].pop("Config")
    own = {key: schema["properties"][key] for key in ("space", "search")}
    return {
        **run,
        "title": "Sweep",
        "description": Sweep.__doc__,
        "$defs": schema["$defs"],
        "properties": {**run["properties"], **own},
        "required": [*run["required"], "space"],
    }


def with_values(run: Config, values: dict[str, Any]) -> Config:
    """The run with these fields or sections set. Raises UserError, naming the field."""
    document = run.model_dump(mode="json")
    # A whole section first, then fields of it.
    for key, value in sorted(values.items(), key=lambda item: item[0].count(".")):
        _forget(document, key, value, keep=values)
        set_value(document, key, copy.deepcopy(value), f"space.{key}")
    return parse_config(document)


def _forget(document: dict[str, Any], key: str, value: Any, keep: Container[str]) -> None:
    """Leave out what was given, or filled in, for another value than the field is to have."""
    name, _, field = key.rpartition(".")
    section = document.get(name)
    if isinstance(section, dict) and section.get(field) != value:
        for other in _BELONGS_TO.get(key, ()):
            if f"{name}.{other}" not in keep:
                section.pop(other, None)


MATCHING = "train.matching"
#: By a field, others of its section that are of one value of it only.
_BELONGS_TO = {
    "encoder.kind": ("model", "revision"),
    "encoder.init_from": ("model", "revision", "init_sha256"),
}
#: What trials must share to be compared, and to run side by side.
FIXED = frozenset(
    ["seed", "name", "storage", "tracking", "cluster", "evaluation", "checkpoint", "train.steps"]
)


def _check_against_run(sweep: Sweep) -> None:
    """Whether space, search and run fit together. Raises UserError."""
    for key, dimension in sweep.space.items():
        _check_dimension(sweep, key, dimension)
    _check_measured(sweep)
    run, search = sweep.run, sweep.search
    if search.trials_per_gpu > 1 and (run.cluster.workers > 1 or not run.cluster.gpu):
        raise UserError(
            f"search.trials_per_gpu={search.trials_per_gpu}: only trials of one GPU worker share "
            "a GPU; set cluster.gpu=true and cluster.workers=1"
        )
    if run.cluster.min_workers:
        raise UserError(
            f"cluster.min_workers={run.cluster.min_workers}: the trials of a sweep have a fixed "
            "number of workers, by which it is planned how many run at a time; leave it out"
        )
    if run.guard.action == "rollback":
        raise UserError(
            "guard.action=rollback: a trial that diverges is a result of its setting, and with "
            "lower learning rates it would be another one; set guard.action=stop"
        )
    by = search.confirm.by if search.confirm else None
    if by is not None and (by not in sweep.space or not sweep.space[by].labelled()):
        raise UserError(
            f"search.confirm.by={by}: no choice or grid of this space; there are "
            f"{', '.join(key for key, d in sweep.space.items() if d.labelled()) or 'none'}"
        )
    if search.scheduler.kind == "pbt":
        _check_population(sweep)


def _check_dimension(sweep: Sweep, key: str, dimension: Dimension) -> None:
    """Whether every value suits the run, the field may vary, and its conditions can be met."""
    bounds = dimension.uniform or dimension.loguniform
    for value in bounds or dimension.labelled().values():
        try:
            with_values(sweep.run, {key: value})
        except UserError as error:
            raise UserError(f"space.{key}: {error}") from None
    if key in FIXED or key.split(".")[0] in FIXED:
        raise UserError(f"space.{key}: this can't vary in a sweep; seeds go to search.seeds")
    for other, labels in dimension.when.items():
        known = sweep.space[other].labelled() if other in sweep.space else {}
        if missing := [label for label in labels if label not in known]:
            raise UserError(
                f"space.{key}.when.{other}={missing}: no such label there; it has "
                f"{', '.join(known) or 'none: it is no choice or grid of this space'}"
            )


def _check_measured(sweep: Sweep) -> None:
    """Whether trials measure, and when they are compared, what ranks them."""
    run, search = sweep.run, sweep.search
    unit = "gpu" if run.cluster.gpu else "cpu"
    if wrong := [name for name in search.also if name.startswith("perf/") and unit not in name]:
        raise UserError(
            f"search.also={wrong[0]}: with cluster.gpu={str(run.cluster.gpu).lower()} what is "
            f"counted is perf/{unit}_seconds; give that"
        )
    if not run.model.draws:
        raise UserError(
            f"model.family={run.model.family}: a sweep ranks runs by their pictures, and this one "
            "draws none; pretrain encoders one by one and give them by encoder.init_from"
        )
    every = run.evaluation.every
    if not every or run.train.steps % every:
        raise UserError(
            f"evaluation.every={every}: trials are ranked by {search.metric}, which is measured "
            f"there; give a divisor of train.steps={run.train.steps}"
        )
    if run.evaluation.aside:
        raise UserError(
            f"evaluation.aside={run.evaluation.aside}: a trial is ranked by what it measures as it "
            "goes; set evaluation.aside=0, and give the cores to more trials at once"
        )
    taken = names_taken(run.evaluation.measures, ["..."], run.evaluation.models)
    for metric in [search.metric, *search.also]:
        kind = re.sub("agreement/.*", "agreement/...", metric.removeprefix("val/"))
        if metric.startswith("val/") and kind not in taken:
            raise UserError(
                f"search.metric={metric}: nobody measures that while training; evaluation.measures="
                f"[{', '.join(run.evaluation.measures)}] gives val/{', val/'.join(taken)}; change "
                "one of the two"
            )
    for field in ("grace", "every"):
        steps = getattr(search.scheduler, field, every)
        if steps % every or steps > run.train.steps:
            raise UserError(
                f"search.scheduler.{field}={steps}: trials are compared every "
                f"evaluation.every={every} steps, up to train.steps={run.train.steps}; give a "
                "multiple within that"
            )


def _check_population(sweep: Sweep) -> None:
    """Weights move from member to member, so these differ in numbers that no weight depends on."""
    for key, dimension in sweep.space.items():
        numbers = dimension.uniform or dimension.loguniform
        if dimension.when or not numbers or not (key.startswith("optim.") or key == MATCHING):
            raise UserError(
                f"space.{key}: search.scheduler.kind=pbt changes values while weights stay; it "
                f"takes uniform or loguniform optim.... and {MATCHING}"
            )
    size = sweep.search.trials * len(sweep.search.seeds)
    if sweep.search.method != "random" or size < 2:
        raise UserError(
            f"search.method={sweep.search.method} with {size} trials: a population (pbt) is drawn "
            "by method random, and has at least two members"
        )
