"""Which setting did best: mean and standard error over seeds, of what the trials measured."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from t2i_ray.config import Sweep
from t2i_ray.runs import read_run
from t2i_ray.storage import Store
from t2i_ray.sweep.space import Trial
from t2i_ray.sweep.trial import STEP, Scores, has_ended

COLUMNS = ("setting", "mean", "s.e.", "finished", "pruned", "failed", "left")


@dataclass(frozen=True)
class Row:
    """One setting, by its trials that finished."""

    setting: str
    scores: list[float]  # at the last step, seed by seed
    finished: int
    pruned: int
    failed: int
    left: int  # begun or not, but not at their end

    @property
    def mean(self) -> float | None:
        """Over seeds; None if no trial finished."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None with fewer than two seeds."""
        if len(self.scores) < 2:
            return None
        return statistics.stdev(self.scores) / math.sqrt(len(self.scores))

    def cells(self) -> list[str]:
        """As text, in the order of COLUMNS."""
        numbers = [f"{x:.4f}" if x is not None else "" for x in (self.mean, self.error)]
        counts = [self.finished, self.pruned, self.failed, self.left]
        return [self.setting, *numbers, *map(str, counts)]


@dataclass(frozen=True)
class Answer:
    """All settings, the best first."""

    metric: str
    steps: int
    rows: list[Row]
    failures: list[str]  # "trial: why"

    @property
    def best(self) -> Row | None:
        """The best one of which a trial finished."""
        return self.rows[0] if self.rows and self.rows[0].scores else None

    def tags(self) -> dict[str, str]:
        """What MLflow's parent run is to say."""
        counts = {
            f"t2i_ray.trials.{kind}": str(sum(getattr(row, kind) for row in self.rows))
            for kind in ("finished", "pruned", "failed", "left")
        }
        return {"t2i_ray.best": self.best.setting if self.best else "none", **counts}

    def to_json(self) -> dict[str, Any]:
        """A plain mapping."""
        rows = [{**asdict(row), "mean": row.mean, "error": row.error} for row in self.rows]
        return {
            "metric": self.metric,
            "steps": self.steps,
            "rows": rows,
            "failures": self.failures,
        }

    def caption(self) -> str:
        """What the numbers are, and what they are not."""
        text = f"{self.metric} after {self.steps} steps: mean over seeds, standard error"
        if any(row.pruned for row in self.rows):
            text += "; a mean without its pruned seeds is too good"
        return text

    def markdown(self) -> str:
        """A table for people."""
        lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in self.rows)]
        safe = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        table = "\n".join(f"| {' | '.join(line)} |" for line in safe)
        failures = "".join(f"- {failure}\n" for failure in self.failures)
        return f"{self.caption()}\n\n{table}\n\n{failures}"

    def table(self) -> str:
        """The same for a terminal."""
        table = Table(caption=self.caption())
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*row.cells())
        console = Console()
        with console.capture() as capture:
            console.print(table)
        return "\n".join([capture.get().rstrip(), *self.failures])


def collect(store: Store, sweep: Sweep, trials: list[Trial]) -> Answer:
    """Read from storage how the trials ended."""
    rows: dict[str, Row] = {}
    failures = []
    for setting in dict.fromkeys(trial.setting for trial in trials):
        scores, counts = [], dict.fromkeys(("finished", "pruned", "failed", "left"), 0)
        for trial in trials:
            if trial.setting != setting:
                continue
            record = read_run(store, trial.config.name)
            if record and record.status == "FINISHED":
                counts["finished"] += 1
                last = Scores(store, record.name).rows[-1]
                if last[STEP] == record.steps:
                    scores.append(last[sweep.search.metric])
            elif record and has_ended(record):
                counts["pruned"] += 1
            elif record and record.status == "FAILED":
                counts["failed"] += 1
                failures.append(f"{record.name}: {record.reason}")
            else:
                counts["left"] += 1
        rows[setting] = Row(setting, scores, **counts)
    sign = -1 if sweep.search.mode == "max" else 1
    ranked = sorted(
        rows.values(), key=lambda row: (row.mean is None, sign * (row.mean or 0.0), row.setting)
    )
    return Answer(sweep.search.metric, sweep.run.train.steps, ranked, failures)
