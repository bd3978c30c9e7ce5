"""What Tune tells us while it runs: one line a trial, and a wish to stop on its way to it."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from t2i_ray.config import Sweep
from t2i_ray.launch import StopOnSignal
from t2i_ray.sweep.trial import STEP
from t2i_ray.train import duration


class Progress(tune.Callback):  # type: ignore[misc] # no stubs
    """A plain line whenever a trial ends, for terminals and job logs alike."""

    def __init__(self, sweep: Sweep, total: int) -> None:
        self._sweep = sweep
        self._total = total
        self._ended = 0
        self.failed: dict[str, str] = {}  # why, by the trial's name
        self._best: tuple[float, str] | None = None
        self._started = time.monotonic()

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """A trial finished, or was stopped by the scheduler."""
        result = trial.last_result or {}
        score, step = result.get(self._sweep.search.metric), result.get(STEP, 0)
        finished = step == self._sweep.run.train.steps
        if score is not None and finished:
            sign = 1 if self._sweep.search.mode == "max" else -1
            if self._best is None or sign * score > sign * self._best[0]:
                self._best = (score, trial.config["trial"]["tags"]["t2i_ray.setting"])
        shown = "nothing measured" if score is None else f"{score:.4f}"
        self._line(trial, f"{'finished' if finished else f'stopped at step {step}'}  {shown}")

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """A trial failed for good."""
        lines = [line for line in str(trial.get_error()).splitlines() if line.strip()]
        name = trial.config["trial"]["config"]["name"]
        self.failed[name] = lines[-1].strip() if lines else "no reason given"
        self._line(trial, f"failed: {self.failed[name]}")

    def _line(self, trial: Any, ending: str) -> None:
        self._ended += 1
        elapsed = time.monotonic() - self._started
        left = elapsed / self._ended * (self._total - self._ended)
        best = f"  best {self._best[0]:.4f} ({self._best[1]})" if self._best else ""
        name = trial.config["trial"]["config"]["name"]
        print(
            f"{self._sweep.name}  {self._ended}/{self._total}  {name}  {ending}{best}  "
            f"{duration(left)} left",
            flush=True,
        )


class Stopper(tune.Stopper):  # type: ignore[misc] # no stubs
    """Ends all trials after a signal."""

    def __init__(self, stop: StopOnSignal) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """No single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Whether a signal came."""
        return self._stop.number > 0
