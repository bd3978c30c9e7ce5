"""How a sweep stands: a table that updates on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from t2i_ray.config import Sweep
from t2i_ray.runs import STEP, read_run
from t2i_ray.storage import Store
from t2i_ray.sweep.ending import Ending
from t2i_ray.sweep.plan import Plan
from t2i_ray.tracking import SETTING_TAG, scrub
from t2i_ray.train import duration

SHOWN = 12  # rows of the table: those that run, and the newest of the others


class Progress(tune.Callback):  # type: ignore[misc] # no stubs
    """Told by Tune what happens; a context while it is to be seen.

    ``failed`` gets why trials failed, by name.
    """

    def __init__(
        self, sweep: Sweep, store: Store, plan: Plan, failed: dict[str, str], ending: Ending
    ) -> None:
        self._sweep = sweep
        self._store = store
        self._plan = plan
        self._failed = failed
        self._ending = ending
        self._ended = 0
        self._best: tuple[float, str] | None = None
        self._states: dict[str, tuple[str, int, float | None]] = {}  # name: state, step, score
        self._started = time.monotonic()
        self._console = Console(file=sys.stdout)
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, into its scratch, and never reads it."""
        return {}

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        """A trial begins, or goes on."""
        self._ending.running[trial.trial_id] = name_of(trial)
        self._failed.pop(name_of(trial), None)
        self._states[name_of(trial)] = ("running", 0, None)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A trial was measured."""
        step, score = int(result.get(STEP, 0)), result.get(self._sweep.search.metric)
        self._states[name_of(trial)] = ("running", step, score)

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """A trial finished, got as far as it was to get for now, was stopped, or failed."""
        record = read_run(self._store, name_of(trial))
        if record and record.status == "FAILED":
            self._fail(name_of(trial), record.reason or "no reason given")
            return
        result, task = trial.last_result or {}, trial.config["trial"]
        score, step = result.get(self._sweep.search.metric), int(result.get(STEP, 0))
        steps = self._sweep.run.train.steps
        if score is not None and step == steps:
            sign = 1 if self._sweep.search.mode == "max" else -1
            if self._best is None or sign * score > sign * self._best[0]:
                self._best = (score, task["tags"][SETTING_TAG])
        state = "waits" if step == task.get("until") else "stopped"
        state = "finished" if step == steps else state
        self._end(name_of(trial), state, step, score)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """A trial failed for good."""
        lines = [line for line in str(trial.get_error()).splitlines() if line.strip()]
        self._fail(name_of(trial), lines[-1].strip() if lines else "no reason given")

    def _fail(self, name: str, reason: str) -> None:
        self._failed[name] = scrub(reason)
        self._end(name, "failed", self._states.get(name, ("", 0, None))[1], None)

    def _end(self, name: str, state: str, step: int, score: float | None) -> None:
        self._ended += 1
        self._states[name] = (state, step, score)
        if not self._live:
            ending = f"{state} at step {step}" + ("" if score is None else f"  {score:.4f}")
            if state == "failed":
                ending = f"failed: {self._failed[name]}"
            print(f"{self._headline()}  {name}  {ending}", flush=True)

    def _headline(self) -> str:
        total = max(self._plan.total, self._ended)
        left = (time.monotonic() - self._started) / max(self._ended, 1) * (total - self._ended)
        best = f"best {self._best[0]:.4f} ({self._best[1]})" if self._best else "no best yet"
        time_left = f"{duration(left)} left" if self._ended else "time left unknown"
        return f"{self._sweep.name}  {self._ended}/{total}  {best}  {time_left}"

    def _table(self) -> Group:
        table = Table("trial", "state", "step", self._sweep.search.metric)
        newest = sorted(self._states.items(), key=lambda item: item[1][0] != "running")
        running = [item for item in newest if item[1][0] == "running"]
        others = [item for item in reversed(self._states.items()) if item[1][0] != "running"]
        for name, (state, step, score) in [*running, *others][:SHOWN]:
            shown = "" if score is None else f"{score:.4f}"
            table.add_row(Text(name), state, f"{step}/{self._sweep.run.train.steps}", shown)
        return Group(table, Text(self._headline()))


def name_of(trial: Any) -> str:
    """The run's name of a trial of Tune's."""
    return str(trial.config["trial"]["config"]["name"])
