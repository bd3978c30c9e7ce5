"""From MLflow's runs to settings: which runs differ by their seed alone, and how each ended."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from t2i_ray.compare import statistics
from t2i_ray.config import operational_names
from t2i_ray.runs import PRUNED, Stage
from t2i_ray.tracking import (
    REASON_TAG,
    SETTING_TAG,
    STAGE_TAG,
    SWEEP_TAG,
    VALUES_TAG,
    PastRun,
)

Ended = Literal["finished", "pruned", "failed", "unfinished"]
Value = str | float

SECONDS = ("perf/gpu_seconds", "perf/cpu_seconds")
DATA = "data"  # stands for the prepared data's digest among the values


@dataclass(frozen=True)
class Trial:
    """A run with what it tried."""

    run: PastRun
    stage: Stage
    setting: str
    encoder: str
    values: Mapping[str, Value]  # dotted field -> label or number, of what varies

    @property
    def seed(self) -> int:
        """Of its training; 0 is a config's default."""
        return int(self.run.params.get("seed", 0))

    @property
    def ended(self) -> Ended:
        """How, as far as MLflow knows."""
        if self.run.status == "FINISHED":
            return "finished"
        if self.run.status == "FAILED":
            return "failed"
        return "pruned" if self.reason.startswith(PRUNED) else "unfinished"

    @property
    def reason(self) -> str:
        """Why it did not finish; empty if nobody said."""
        return self.run.tags.get(REASON_TAG, "")

    @property
    def seconds(self) -> tuple[str, float] | None:
        """Unit (GPU or CPU) and the seconds that training took; None if not logged."""
        for metric in SECONDS:
            if metric in self.run.metrics:
                return metric[5:8].upper(), self.run.metrics[metric]
        return None


@dataclass(frozen=True)
class Row:
    """One setting in one stage, by its runs."""

    setting: str
    encoder: str
    stage: Stage
    values: Mapping[str, Value]
    metric: str
    trials: tuple[Trial, ...]  # however they ended
    finished: Mapping[int, Trial]  # by seed: the newest that finished

    @property
    def scores(self) -> dict[int, float]:
        """By seed, of those that finished and were measured."""
        found = {seed: trial.run.metrics.get(self.metric) for seed, trial in self.finished.items()}
        return {seed: score for seed, score in sorted(found.items()) if score is not None}

    def of(self, metric: str) -> list[float]:
        """Any measure of those that finished, and have it."""
        found = [trial.run.metrics.get(metric) for trial in self.finished.values()]
        return [score for score in found if score is not None]

    @property
    def mean(self) -> float | None:
        """Over seeds; None if none was measured."""
        return statistics.mean(list(self.scores.values()))

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None below two seeds."""
        return statistics.standard_error(list(self.scores.values()))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t-interval of the mean; None below two seeds."""
        return statistics.t_interval(list(self.scores.values()))

    @property
    def seconds(self) -> tuple[str, float] | None:
        """Unit and mean seconds of the measured runs; None if some lack it or units differ."""
        found = [self.finished[seed].seconds for seed in self.scores]
        known = [seconds for seconds in found if seconds is not None]
        units = {unit for unit, _ in known}
        if len(known) < len(found) or len(units) != 1:
            return None
        return units.pop(), sum(seconds for _, seconds in known) / len(known)

    def count(self, ended: Ended) -> int:
        """Runs that ended so."""
        return sum(trial.ended == ended for trial in self.trials)


def to_trials(runs: Sequence[PastRun]) -> list[Trial]:
    """What each run tried: said by the sweep's tags, else by the params in which runs differ."""
    names = _encoder_names(runs)
    differing = _differing(runs, names)
    sweeps = {run.tags.get(SWEEP_TAG, "") for run in runs}
    trials = []
    for run, name in zip(runs, names, strict=True):
        values = _tagged_values(run) or {
            key: _number(run.params[key]) for key in differing if key in run.params
        }
        if DATA in differing and run.dataset:
            values = {**values, DATA: run.dataset[:8]}
        encoder = str(values.get("encoder", name))
        own = {"encoder": encoder, **values} if len(set(names)) > 1 else values
        setting = run.tags.get(SETTING_TAG) or _label(own) or f"encoder={encoder}"
        if len(sweeps) > 1 and SETTING_TAG in run.tags:  # another sweep, another base
            setting = f"{run.tags.get('t2i_ray.sweep', '')}: {setting}"
        stage: Stage = "confirm" if run.tags.get(STAGE_TAG) == "confirm" else "search"
        trials.append(Trial(run, stage, setting, encoder, values))
    return trials


def to_rows(trials: Sequence[Trial], stage: Stage, metric: str, larger: bool) -> list[Row]:
    """The settings of a stage, the best first; those without a score come last."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.stage == stage:
            groups.setdefault((trial.setting, trial.encoder), []).append(trial)
    rows = []
    for (setting, encoder), members in groups.items():
        # A seed counts once: of two runs that did the same, the newer is taken.
        finished = {
            trial.seed: trial
            for trial in sorted(members, key=lambda trial: trial.run.started)
            if trial.ended == "finished"
        }
        values = members[-1].values
        rows.append(Row(setting, encoder, stage, values, metric, tuple(members), finished))
    sign = -1 if larger else 1
    return sorted(rows, key=lambda row: (row.mean is None, sign * (row.mean or 0.0), row.setting))


def repeated(rows: Sequence[Row]) -> list[Trial]:
    """Finished runs that repeat another's setting and seed, and so do not count."""
    return [
        trial
        for row in rows
        for trial in row.trials
        if trial.ended == "finished" and row.finished[trial.seed] is not trial
    ]


def _encoder_names(runs: Sequence[PastRun]) -> list[str]:
    """Of each run: its model's or class's last name, or its kind; more where two share that.

    More is the whole name, or, of what was pretrained, the first digits of the weights' sum.
    """
    wholes = [_model_or_class(run) for run in runs]
    last = Counter(_last_name(whole) for whole in {*wholes})
    names = []
    for run, whole in zip(runs, wholes, strict=True):
        name = _encoder_param(run, "kind") or "unknown"
        if whole:
            name = short if last[short := _last_name(whole)] == 1 else whole
        usual = "frozen" if _encoder_param(run, "model") else "tuned"
        marks = ["pretrained"] if _encoder_param(run, "init_sha256") else []
        train = _encoder_param(run, "train") or usual
        names.append(" ".join([name, *marks, *([train] if train != usual else [])]))
    sums = [_encoder_param(run, "init_sha256") or "" for run in runs]
    pairs = list(zip(names, sums, strict=True))
    weights = Counter(name for name, _ in {*pairs})
    return [name if weights[name] == 1 else f"{name} {sha256[:8]}" for name, sha256 in pairs]


def _model_or_class(run: PastRun) -> str:
    """The name of a model, or of a class of the user's; empty of other encoders."""
    return (_encoder_param(run, "target") or _encoder_param(run, "model") or "").rstrip("/")


def _last_name(whole: str) -> str:
    return re.split("[/:]", whole)[-1]


def _encoder_param(run: PastRun, name: str) -> str | None:
    """A field of the section, or None where it has none or none of this name."""
    value = run.params.get(f"encoder.{name}")
    return None if value == "null" else value


def _differing(runs: Sequence[PastRun], encoders: Sequence[str]) -> list[str]:
    """Identity params with more than one value; an encoder's own only among its kind's runs."""
    found: dict[str, set[tuple[str, str]]] = {}
    for run, encoder in zip(runs, encoders, strict=True):
        stops = run.params.get("guard.action", "stop") == "stop"  # then its limits are no identity
        for name, value in run.params.items():
            if stops and name.startswith("guard.") and name != "guard.action":
                continue
            group = encoder if name.startswith("encoder.") else ""
            found.setdefault(name, set()).add((group, value))
    dull = operational_names() | {"seed"}
    differing = []
    for name, pairs in sorted(found.items()):
        several = len(pairs) > len({group for group, _ in pairs})
        if several and name not in dull and not name.startswith(("search.", "space.")):
            differing.append(name)
    if len({run.dataset for run in runs if run.dataset}) > 1:
        differing.append(DATA)
    return differing


def _tagged_values(run: PastRun) -> dict[str, Value]:
    """What a sweep says that it tried; empty if it does not."""
    try:
        values = json.loads(run.tags.get(VALUES_TAG, "{}"))
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        str(key): value if isinstance(value, float | int) else _number(str(value))
        for key, value in values.items()
    }


def _number(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def _label(values: Mapping[str, Value]) -> str:
    """As a sweep labels its settings: the fields' last names, as far as these tell them apart."""
    ends = [key.rpartition(".")[2] for key in values]
    parts = []
    for key, value in values.items():
        end = key.rpartition(".")[2]
        shown = f"{value:g}" if isinstance(value, float) else value
        parts.append(f"{end if ends.count(end) == 1 else key}={shown}")
    return ", ".join(parts)
