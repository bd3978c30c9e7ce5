"""Ray Tune: it finds room for a plan's tasks, runs them, and asks its scheduler who goes on.

Its own files are scratch: what a sweep needs to go on is in our storage, and none of it is pickled.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Any

import ray

from t2i_ray.config import Sweep, UserError
from t2i_ray.launch import at_most
from t2i_ray.runs import PRUNED_KEY, STEP, run_store
from t2i_ray.storage import Store
from t2i_ray.storage.scratch import scratch
from t2i_ray.sweep.ending import Ending
from t2i_ray.sweep.plan import Plan
from t2i_ray.sweep.tasks import Task

# Tune is to write no files for each trial, to leave signals to us, and to print nothing.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# How many may start at once: as many as _Supply gives out, not one after another.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# What is confirmed is not to be judged, so the metric is not told.
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")

from ray import tune
from ray.tune import schedulers
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from t2i_ray.sweep.progress import Progress, name_of
from t2i_ray.sweep.trial import Trainable

# Tune would copy the driver's keys into the trials' runtime environment, which Ray logs and its
# dashboard shows. A trial has its node's own, as any worker has.
class_cache.ENV_VARS_TO_PROPAGATE -= {
    name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
}

LOOK = 2.0  # seconds between two looks at what the cluster has


def run_plan(
    sweep: Sweep, store: Store, plan: Plan, ending: Ending, reasons: dict[str, str]
) -> None:
    """Run a plan to its end, or until it is to end; ``reasons`` gets why trials failed, by name.

    Raises:
        Exception: what the plan raised, or Tune.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    progress = Progress(sweep, store, plan, reasons, ending)
    supply = _Supply(sweep, plan, ending)
    cluster = sweep.run.cluster
    with scratch() as folder:
        tuner = tune.Tuner(
            tune.with_resources(Trainable, _resources(sweep)),
            tune_config=tune.TuneConfig(
                metric=sweep.search.metric,
                mode=sweep.search.mode,
                num_samples=-1,
                search_alg=supply,
                scheduler=_scheduler(sweep, store),
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.trial_id),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=str(folder),
                verbose=0,
                stop=_Stopper(ending),
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
                callbacks=[progress],
            ),
        )
        failures: list[BaseException] = []

        def fit() -> None:
            try:
                tuner.fit()
            except BaseException as error:
                failures.append(error)

        # In a thread, Tune leaves signals alone.
        thread = threading.Thread(target=fit, name="tune", daemon=True)
        with progress:
            thread.start()
            while thread.is_alive():
                thread.join(0.2)
    if failure := supply.failure or (failures[0] if failures else None):
        raise failure


def concurrent(sweep: Sweep) -> int:
    """Trials at a time, by what the cluster has now, and the sweep's own limit.

    Where it can grow, it is one more: the one that waits makes it grow.

    Raises:
        UserError: not even one will ever have room.
    """
    cluster = sweep.run.cluster
    kind, each = ("GPU", 1.0) if cluster.gpu else ("CPU", float(cluster.threads))
    need = each * cluster.workers / sweep.search.trials_per_gpu
    have = ray.cluster_resources().get(kind, 0.0)
    room, limit = int(have / need), at_most(sweep.run)
    if limit is None or int(limit.get(kind, 0.0) / need) > room:
        room += 1
    if room < 1:
        raise UserError(
            f"cluster.workers={cluster.workers}: a trial needs {need:g} {kind}s and the cluster "
            f"has {have:g}; use fewer workers or threads, or a larger cluster"
        )
    return min(room, sweep.search.concurrent or room)


def _resources(sweep: Sweep) -> dict[str, float]:
    """Of a trial's own process; one that only waits for its workers asks for nothing."""
    cluster = sweep.run.cluster
    if cluster.workers > 1:
        return {"memory": 1}  # a byte: Tune takes no empty request
    gpu = {"gpu": 1 / sweep.search.trials_per_gpu} if cluster.gpu else {}
    return {"cpu": cluster.threads, **gpu}


def _scheduler(sweep: Sweep, store: Store) -> Any:
    how, steps = sweep.search.scheduler, sweep.run.train.steps
    if how.kind == "asha":
        return _Asha(
            store,
            steps,
            time_attr=STEP,
            max_t=steps + 1,  # the end is the loop's affair
            grace_period=how.grace,
            reduction_factor=how.reduction,
        )
    if how.kind == "median":
        return _Median(store, steps, time_attr=STEP, grace_period=how.grace)
    return schedulers.FIFOScheduler()


class _Judge:
    """Mixed into a scheduler: what it decides, as far as we follow it.

    Who is at the last step has finished. No trial is paused, as the median rule does to give others
    a turn: it would be taken for stopped. Of one that is stopped, storage is told before it is.
    """

    def __init__(self, store: Store, steps: int, **options: Any) -> None:
        super().__init__(**options)
        self._store = store
        self._steps = steps

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(controller, trial, result)  # type: ignore[misc]
        stop = schedulers.TrialScheduler.STOP
        if decision != stop or result.get(STEP, 0) >= self._steps:
            return str(schedulers.TrialScheduler.CONTINUE)
        run_store(self._store, name_of(trial)).write(PRUNED_KEY, b"")
        return str(stop)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Of one that was never measured there is nothing to learn, and the median rule chokes."""
        if STEP in result:
            super().on_trial_complete(controller, trial, result)  # type: ignore[misc]


class _Asha(_Judge, schedulers.ASHAScheduler):  # type: ignore[misc] # no stubs
    pass


class _Median(_Judge, schedulers.MedianStoppingRule):  # type: ignore[misc] # no stubs
    pass


class _Supply(Searcher):  # type: ignore[misc] # no stubs
    """A plan as Tune wants to be given it. ``failure``: what the plan raised; it ends the sweep."""

    def __init__(self, sweep: Sweep, plan: Plan, ending: Ending) -> None:
        super().__init__()
        self._sweep = sweep
        self._plan = plan
        self._room = 0
        self._next_look = 0.0
        self._ending = ending
        self._tasks: dict[str, Task] = {}
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given, into its scratch, and never reads it."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        if self._closed or self._plan.done:
            return Searcher.FINISHED
        if not self._has_room():
            return None
        try:
            task = self._plan.next()
        except Exception as error:
            self.failure = error
            return Searcher.FINISHED
        if task is None:
            return Searcher.FINISHED if self._plan.done else None
        self._tasks[trial_id] = task
        return {"trial": task.document}

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,  # noqa: ARG002 - storage knows better
        error: bool = False,  # noqa: ARG002
    ) -> None:
        self._ending.running.pop(trial_id, None)
        task = self._tasks.pop(trial_id, None)
        if task is None or self._closed:
            return
        try:
            self._plan.ended(task)
        except Exception as failure:
            self.failure = failure

    def _has_room(self) -> bool:
        """Whether there is room for one more; the cluster is asked now and then."""
        if time.monotonic() >= self._next_look:
            # Nodes that come late, or have gone for a while: no reason to give up.
            with suppress(UserError):
                self._room = concurrent(self._sweep)
            self._next_look = time.monotonic() + LOOK
        return len(self._tasks) < self._room

    @property
    def _closed(self) -> bool:
        return self._ending.asked.is_set() or self.failure is not None

    def save(self, checkpoint_path: str) -> None:
        """Nothing: storage has all of it."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called."""


class _Stopper(tune.Stopper):  # type: ignore[misc] # no stubs
    """Ends the trials that did not end when they were asked to."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self._ending.overdue.is_set()
