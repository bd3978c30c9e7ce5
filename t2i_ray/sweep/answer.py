"""Which setting did best: mean and standard error over seeds, of what the trials measured.

Read from storage, so that there is an answer also without MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from t2i_ray.compare import markdown_table, statistics
from t2i_ray.config import Sweep
from t2i_ray.runs import PRUNED, STEP, RunRecord, Scores, Stage, read_run, run_store
from t2i_ray.storage import Store
from t2i_ray.sweep.space import Setting, Trial

COLUMNS = ("setting", "mean", "s.e.", "finished", "pruned", "failed", "left")


@dataclass(frozen=True)
class Row:
    """One setting, by its trials that finished."""

    setting: str
    scores: list[float]  # at the last step, seed by seed; NaN is never among them
    finished: int
    pruned: int
    failed: int
    left: int  # begun or not, but not at their end

    @property
    def mean(self) -> float | None:
        """Over seeds; None if no trial finished."""
        return statistics.mean(self.scores)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None with fewer than two seeds."""
        return statistics.standard_error(self.scores)

    def cells(self) -> list[str]:
        """As text, in the order of COLUMNS."""
        numbers = [f"{x:.4f}" if x is not None else "" for x in (self.mean, self.error)]
        counts = [self.finished, self.pruned, self.failed, self.left]
        return [self.setting, *numbers, *map(str, counts)]


@dataclass(frozen=True)
class Part:
    """The settings of one stage, the best first."""

    stage: Stage
    metric: str
    steps: int
    rows: list[Row]
    also: dict[str, list[float]]  # further objectives: setting by setting, NaN where unknown
    front: list[str]  # settings that no other beats in all objectives, if there are several

    def caption(self) -> str:
        """What the numbers are, and what they are not."""
        seeds = "mean over seeds, standard error"
        if self.stage == "confirm":
            return f"{self.metric} after {self.steps} steps, fresh seeds, none stopped: {seeds}"
        text = f"{self.metric} after {self.steps} steps: {seeds}"
        if any(row.pruned for row in self.rows):
            text += "; a mean without its pruned seeds is too good"
        return text

    def columns(self) -> list[str]:
        """Headings."""
        return [*COLUMNS, *self.also, *(["Pareto"] if self.also else [])]

    def lines(self) -> list[list[str]]:
        """Cells of all rows."""
        more = [
            [f"{values[i]:.4g}" for values in self.also.values()]
            + ([("front" if row.setting in self.front else "")] if self.also else [])
            for i, row in enumerate(self.rows)
        ]
        return [row.cells() + extra for row, extra in zip(self.rows, more, strict=True)]

    def markdown(self) -> str:
        """A table for people."""
        return f"{self.caption()}\n\n{markdown_table(self.columns(), self.lines())}"

    def table(self) -> Table:
        """The same for a terminal."""
        table = Table(caption=self.caption())
        for column in self.columns():
            table.add_column(column, overflow="fold")
        for line in self.lines():
            table.add_row(*line)
        return table


@dataclass(frozen=True)
class Standing:
    """How a trial stands."""

    name: str
    key: str | None  # of its run; None: it never began
    setting: str
    status: str
    step: int
    reason: str

    def cells(self) -> list[str]:
        """As text: trial, setting, status, step, reason."""
        return [self.name, self.setting, self.status, str(self.step), self.reason]


@dataclass(frozen=True)
class Answer:
    """What the search found, and what was confirmed."""

    parts: list[Part]
    trials: list[Standing]

    @property
    def failures(self) -> list[str]:
        """Who failed, and why."""
        return [f"{one.name}: {one.reason}" for one in self.trials if one.status == "FAILED"]

    @property
    def best(self) -> Row | None:
        """The best one of which a trial finished, by the last stage that there is."""
        rows = self.parts[-1].rows
        return rows[0] if rows and rows[0].scores else None

    def tags(self) -> dict[str, str]:
        """What MLflow's parent run is to say."""
        rows = [row for part in self.parts for row in part.rows]
        counts = {
            f"t2i_ray.trials.{kind}": str(sum(getattr(row, kind) for row in rows))
            for kind in ("finished", "pruned", "failed", "left")
        }
        return {"t2i_ray.best": self.best.setting if self.best else "none", **counts}

    def to_json(self) -> dict[str, Any]:
        """A plain mapping."""
        document = asdict(self)
        for part, plain in zip(self.parts, document["parts"], strict=True):
            for row, one in zip(part.rows, plain["rows"], strict=True):
                one |= {"mean": row.mean, "error": row.error}
        return document

    def markdown(self) -> str:
        """Tables for people: the settings, then every trial."""
        columns = ["trial", "setting", "status", "step", "reason"]
        trials = markdown_table(columns, [trial.cells() for trial in self.trials])
        return "\n".join([*(part.markdown() for part in self.parts), trials])

    def text(self) -> str:
        """The same for a terminal."""
        console = Console()
        with console.capture() as capture:
            for part in self.parts:
                console.print(part.table())
        return "\n".join([capture.get().rstrip(), *self.failures])


def collect(store: Store, sweep: Sweep, trials: list[Trial], reasons: Mapping[str, str]) -> Answer:
    """Read from storage how the trials ended; ``reasons``: why some did that never began."""
    stages: list[Stage] = ["search", "confirm"]
    parts = [
        _part(store, sweep, stage, [trial for trial in trials if trial.stage == stage])
        for stage in stages
        if stage == "search" or any(trial.stage == stage for trial in trials)
    ]
    return Answer(parts, [_standing(store, trial, reasons) for trial in trials])


def _standing(store: Store, trial: Trial, reasons: Mapping[str, str]) -> Standing:
    record = read_run(store, trial.name)
    if record is None:
        reason = reasons.get(trial.name, "")
        status = "FAILED" if reason else "not begun"
        return Standing(trial.name, None, trial.setting.label, status, 0, reason)
    return Standing(
        trial.name, record.key, trial.setting.label, record.status, record.step, record.reason or ""
    )


def winners(store: Store, sweep: Sweep, trials: list[Trial]) -> list[Setting]:
    """The best setting of each label of search.confirm.by, of which a trial finished."""
    confirm = sweep.search.confirm
    assert confirm is not None
    rows = _part(store, sweep, "search", trials).rows
    settings = {trial.setting.label: trial.setting for trial in trials}
    found: dict[str, Setting] = {}
    for row in rows:
        if row.scores:
            setting = settings[row.setting]
            found.setdefault(setting.labels[confirm.by] if confirm.by else "", setting)
    return list(found.values())


def _part(store: Store, sweep: Sweep, stage: Stage, trials: list[Trial]) -> Part:
    search = sweep.search
    metric = search.metric if stage == "search" else search.metric.replace("val/", "test/", 1)
    rows: dict[str, Row] = {}
    costs: dict[str, list[float]] = {}
    for setting in dict.fromkeys(trial.setting.label for trial in trials):
        # One run a seed: the same setting asked for twice is the same run twice.
        names = {t.config.seed: t.name for t in trials if t.setting.label == setting}.values()
        rows[setting], last = _row(store, setting, names, metric, stage)
        if stage == "search":
            costs[setting] = [
                statistics.mean([row.get(name, math.nan) for row in last]) or math.nan
                for name in search.also
            ]
    sign = -1 if search.mode == "max" else 1
    ranked = sorted(
        rows.values(), key=lambda row: (row.mean is None, sign * (row.mean or 0.0), row.setting)
    )
    also = (
        {name: [costs[row.setting][i] for row in ranked] for i, name in enumerate(search.also)}
        if stage == "search"
        else {}
    )
    modes = [search.mode, *search.also.values()]
    known = [row for row in ranked if also and row.mean is not None]
    front = statistics.pareto_front(
        [
            [
                value if mode == "min" else -value
                for value, mode in zip([row.mean or 0.0, *costs[row.setting]], modes, strict=True)
            ]
            for row in known
        ]
    )
    settings = [known[i].setting for i in front]
    return Part(stage, metric, sweep.run.train.steps, ranked, also, settings)


def _row(
    store: Store, setting: str, names: Iterable[str], metric: str, stage: Stage
) -> tuple[Row, list[dict[str, float]]]:
    """A setting's row, and what its trials measured at their last step."""
    scores, rows = [], []
    counts = dict.fromkeys(("finished", "pruned", "failed", "left"), 0)
    for name in names:
        record = read_run(store, name)
        if record and record.status == "FINISHED":
            last = _last(store, record, stage)
            counts["finished" if metric in last else "left"] += 1
            if metric in last:
                scores.append(last[metric])
                rows.append(last)
        elif record and (record.reason or "").startswith(PRUNED):
            counts["pruned"] += 1
        elif record and record.status == "FAILED":
            counts["failed"] += 1
        else:
            counts["left"] += 1
    return Row(setting, scores, **counts), rows


def _last(store: Store, record: RunRecord, stage: Stage) -> dict[str, float]:
    """The measures at a finished run's end; empty if there are none."""
    if stage == "search":
        rows = Scores(store, record.name).rows
        return rows[-1] if rows and rows[-1][STEP] == record.steps else {}
    measured = run_store(store, record.name).read_json("evaluation/test.json", {"step": None})
    return dict(measured["metrics"]) if measured["step"] == record.steps else {}
