"""One trial: the training loop in Tune's own worker process, which the next trial takes over.

What a trial measured is kept beside its run. A sweep that goes on tells it to Tune again, so the
scheduler knows what it knew, and none of Tune's own files is ever read.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.train._internal.session import get_session
from ray.tune.trainable import wrap_function

from t2i_ray import tracking
from t2i_ray.claims import Number, check
from t2i_ray.config import Config, parse_config, with_values
from t2i_ray.launch import Attempt, begin, fit_workers, settle
from t2i_ray.launch.gauges import gauges
from t2i_ray.lines import lines_of
from t2i_ray.runs import (
    HOPELESS,
    PRUNED,
    PRUNED_KEY,
    STEP,
    STOPPED,
    RunRecord,
    Scores,
    read_run,
    request_stop,
    run_store,
    write_run,
)
from t2i_ray.storage import FencedStore, StorageError, Store, open_store, patiently
from t2i_ray.sweep.ending import LAST_WORDS
from t2i_ray.train import Job, Worker, train


def run_trial(config: dict[str, Any]) -> None:
    """What Tune calls. ``config["trial"]`` is a task's document.

    How it ended, its record says. What is raised, or a process that dies, is tried again.
    """
    task = config["trial"]
    os.environ.update(task["env"])
    settings = parse_config(task["config"])
    with lines_of(settings.name):
        _run(task, settings)


def _run(task: dict[str, Any], settings: Config) -> None:
    store = open_store(settings.storage)
    place = run_store(store, settings.name)
    # An outage must not use up what Tune gives to failures.
    patiently(lambda: place.list("claims"), settings.cluster.timeout_s / 2)
    record = read_run(store, settings.name)
    if record is None or not has_ended(record):
        place.delete(PRUNED_KEY)
        # A trial of a sweep that was killed may take a moment to be gone, or to finish.
        run = begin(
            settings, store, task["data"], commit=task["commit"], tags=task["tags"], patience=30
        )
        record = run.record
        if record.status == "RUNNING":
            number = Number(record.attempt)
            fenced = FencedStore(store, lambda: check(place, number))
            with run.lease:
                _go(store, run, task, Told(Scores(fenced, settings.name), task["metric"]))
            return
    Told(Scores(store, settings.name), task["metric"]).tell()
    if record.status == "FINISHED":
        _test(store, record, task["test"])


def _go(store: Store, run: Attempt, task: dict[str, Any], told: Told) -> None:
    """The attempt that was begun, to its end."""
    settings = run.config
    try:
        told.tell()
        outcome = _train(store, run, task, told)
    except SystemExit:  # in a report: Tune has had enough of this trial, or of all of them
        pruned = run_store(store, settings.name).exists(PRUNED_KEY)
        reason = f"{PRUNED} {told.step}" if pruned else STOPPED
        outcome = {"status": "KILLED", "reason": reason, "step": told.step}
        settle(store, settings, run.record, outcome, alone=False)
        raise
    except Exception:  # perhaps before it could tell MLflow that it exists
        snapshot = {"about": run.about.to_json()}
        tracking.add(tracking.resolve(settings), snapshot, store, {}, timeout=5)
        raise
    if outcome["status"] == "RUNNING":  # as far as it was to go for now
        run.record.step = outcome["step"]
        write_run(store, run.record)
        return
    if outcome["status"] == "KILLED":  # on request
        outcome["reason"] = STOPPED
    settle(store, settings, run.record, outcome, alone=False)
    if outcome["status"] == "FINISHED":
        _test(store, run.record, task["test"])


def has_ended(record: RunRecord) -> bool:
    """Whether a trial needs no more training: finished, stopped for good, or hopeless."""
    return record.status == "FINISHED" or (record.reason or "").startswith((PRUNED, *HOPELESS))


def _train(store: Store, run: Attempt, task: dict[str, Any], told: Told) -> dict[str, Any]:
    """Train in this process or, with more workers than one, by a Ray Train run of its own."""
    config = with_values(run.config, task.get("now", {}))
    job = {**run.job(task["encoder"]), "config": config.model_dump(mode="json"), "quiet": True}
    job |= {key: task[key] for key in ("until", "inherits", "marks") if key in task}
    if config.cluster.workers > 1:
        return _train_together(store, config, run, job, told)

    def report(step: int, values: dict[str, float]) -> None:
        patiently(lambda: told.scores.add(step, values), config.cluster.timeout_s / 2)
        told.tell()

    show = gauges(config.name, rank=0)
    return asdict(train(Job(**job), Worker.alone(config), report, show=show))


def _train_together(
    store: Store, config: Config, run: Attempt, job: dict[str, Any], told: Told
) -> dict[str, Any]:
    """The workers write their scores to storage, where this process finds them."""
    # How often Ray Train looks whether workers have ended. By default every 2 s: that long would
    # those of a stopped trial be kept from the next one.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    stopped: list[SystemExit] = []
    looked = 0.0

    def watch() -> None:
        nonlocal looked
        if time.monotonic() < looked + 0.5:
            return
        looked = time.monotonic()
        # Storage that is away for a while must not part this process from its workers.
        with suppress(StorageError):
            if stopped:
                request_stop(store, config.name)  # again: the first wish may not have arrived
                return
            told.scores.read()
            try:
                told.tell()
            except SystemExit as stop:
                stopped.append(stop)
                request_stop(store, config.name)

    outcome = fit_workers(config, run.record.attempt, job, store, watch=watch)
    if stopped:
        raise stopped[0]
    told.scores.read()
    told.tell()
    return outcome


def _test(store: Store, record: RunRecord, count: int) -> None:
    """Measure on the test split, unless that is not asked for, or was done so."""
    done = run_store(store, record.name).read_json("evaluation/test.json", {})
    if count and (done.get("step"), done.get("count")) != (record.steps, count):
        from t2i_ray.evaluate.run import OWN, Wanted, evaluate_run

        patience = 20 if record.published else 1  # if MLflow is away, the sweep's end sees to it
        evaluate_run(store, record, "test", count, patience, Wanted([OWN]))


class Told:
    """What Tune was told of a trial's scores.

    Args:
        scores: what was measured.
        metric: by which the scheduler judges; None: it is to judge by nothing.
    """

    def __init__(self, scores: Scores, metric: str | None) -> None:
        self.scores = scores
        self.step = 0  # the last one of which Tune was told
        self._metric = metric

    def tell(self) -> None:
        """Tell Tune what it does not know yet. Raises SystemExit if it stops the trial."""
        for row in self.scores.rows:
            if row[STEP] > self.step:
                self.step = int(row[STEP])
                tune.report(row if self._metric else {STEP: row[STEP]})


class Trainable(wrap_function(run_trial)):  # type: ignore[misc] # made by Tune
    """``run_trial`` as Tune runs it, which waits until a stopped trial has said its last words.

    By itself Tune gives them two seconds if the process goes on to another trial, and none if not.
    """

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Make room for another trial."""
        get_session().finish(timeout=LAST_WORDS)
        return bool(super().reset_config(new_config))

    def cleanup(self) -> None:
        """Before the process ends."""
        get_session().finish(timeout=LAST_WORDS)
        super().cleanup()
