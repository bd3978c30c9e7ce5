"""Settings chosen by what the earlier ones gave: Optuna's tree-structured Parzen estimator.

(Bergstra et al. 2011.) What was asked is kept in ``sweeps/<name>/asked.json``: a sweep that goes on
asks for the same settings again and tells Optuna what they gave, so nothing of Optuna's own is
stored. Each suggestion draws from a seed of its own.
"""

from __future__ import annotations

import importlib
import statistics
from collections import deque
from types import ModuleType
from typing import TYPE_CHECKING, Any

from t2i_ray.config import Sweep, UserError
from t2i_ray.runs import PRUNED_KEY, STEP, Scores, run_store
from t2i_ray.storage import Store
from t2i_ray.sweep.space import Setting, applies, in_order, rounded, setting, trials
from t2i_ray.sweep.tasks import Make, Task

if TYPE_CHECKING:
    import optuna


def load_optuna() -> ModuleType:
    """The package, which is an extra. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise UserError(
            "search.method=tpe: Optuna is not installed; pip install 't2i-ray[tpe]'"
        ) from None


class Tpe:
    """The plan of a search by TPE. Raises UserError if Optuna is not installed."""

    def __init__(self, store: Store, sweep: Sweep, make: Make) -> None:
        self._optuna = load_optuna()
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._store, self._sweep, self._make = store, sweep, make
        search = sweep.search
        self._objectives = {search.metric: search.mode, **search.also}
        self._study = self._optuna.create_study(
            directions=[
                "maximize" if mode == "max" else "minimize" for mode in self._objectives.values()
            ]
        )
        self._place = f"sweeps/{sweep.name}/asked.json"
        self._asked: list[dict[str, Any]] = store.read_json(self._place, [])
        self._count = 0
        self._queue: deque[Task] = deque()
        self._open: dict[str, tuple[optuna.trial.Trial, set[str]]] = {}  # by the setting's prefix
        self.total = search.trials * len(search.seeds)
        self.tasks: list[Task] = []

    @property
    def done(self) -> bool:
        """Whether no task is left to give out."""
        return not self._queue and self._count >= self._sweep.search.trials

    def next(self) -> Task | None:
        """The next seed of a setting, or the first of a new one."""
        if not self._queue and self._count < self._sweep.search.trials:
            self._ask()
        return self._queue.popleft() if self._queue else None

    def ended(self, task: Task) -> None:
        """Tell Optuna of a setting when all its seeds have ended."""
        number = task.document["number"]
        trial, left = self._open[number]
        left.discard(task.name)
        if left:
            return
        del self._open[number]
        names = [one.name for one in self.tasks if one.document["number"] == number]
        last = [rows[-1] for name in names if (rows := Scores(self._store, name).rows)]
        rows = [row for row in last if self._objectives.keys() <= row.keys()]
        steps = self._sweep.run.train.steps
        states = self._optuna.trial.TrialState
        pruned = any(run_store(self._store, name).exists(PRUNED_KEY) for name in names)
        if len(rows) == len(names) and all(row[STEP] == steps for row in rows):
            self._study.tell(trial, self._means(rows))
        elif pruned and rows:  # with one objective: others know no pruning
            trial.report(self._means(rows)[0], int(min(row[STEP] for row in rows)))
            self._study.tell(trial, state=states.PRUNED)
        else:
            self._study.tell(trial, state=states.FAIL)

    def _means(self, rows: list[dict[str, float]]) -> list[float]:
        """Over seeds, of every objective."""
        return [statistics.fmean(row[name] for row in rows) for name in self._objectives]

    def _ask(self) -> None:
        search, number = self._sweep.search, self._count
        # The first ones are drawn at random: TPE needs something to go by.
        random = min(10, max(4, search.trials // 4))
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(search.seed * 100_003 + number) % 2**31, n_startup_trials=random
        )
        if number < len(self._asked):
            self._study.enqueue_trial(self._asked[number])
        trial = self._study.ask()
        point = self._suggested(trial)
        if number >= len(self._asked):
            self._asked.append(trial.params)
            self._store.write_json(self._place, self._asked)
        self._count += 1
        prefix = f"{number:03d}"
        tasks = [
            self._make(one, number=prefix)
            for one in trials(self._sweep, [point], search.seeds, first=number)
        ]
        self._open[prefix] = trial, {task.name for task in tasks}
        self._queue.extend(tasks)
        self.tasks.extend(tasks)

    def _suggested(self, trial: optuna.trial.Trial) -> Setting:
        space = self._sweep.space
        drawn: dict[str, str | float] = {}
        labels: dict[str, str] = {}
        for key, dimension in in_order(space):
            if not applies(dimension, labels):
                continue
            if bounds := dimension.uniform or dimension.loguniform:
                logarithmic = dimension.loguniform is not None
                number = trial.suggest_float(key, *bounds, log=logarithmic)
                drawn[key] = rounded(dimension, number)
            else:
                drawn[key] = trial.suggest_categorical(key, list(dimension.labelled()))
            labels[key] = str(drawn[key])
        return setting(space, drawn)
