"""One trial: the training loop in Tune's own worker process, which the next trial takes over.

What a trial measured is kept beside its run. A sweep that goes on tells it to Tune again, so the
scheduler knows what it knew, and none of Tune's own files is ever read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ray import tune
from ray.train._internal.session import get_session
from ray.tune.trainable import wrap_function

from t2i_ray.config import parse_config
from t2i_ray.launch import begin, settle
from t2i_ray.runs import RunRecord, read_run, run_store
from t2i_ray.storage import MissingKey, Store, open_store
from t2i_ray.train import Job, Worker, train

PRUNED = "pruned at step"
STEP = "step"  # what schedulers count
LAST_WORDS = 60  # seconds that a stopped trial may take to leave storage and MLflow in order


def run_trial(config: dict[str, Any]) -> None:
    """What Tune calls. ``config["trial"]`` is the JSON that the driver made.

    Raises:
        RuntimeError: the run failed; Tune then goes on with the others. What else is raised, or
            a process that dies, is tried again.
    """
    task = config["trial"]
    settings = parse_config(task["config"])
    store = open_store(settings.storage)
    scores = Scores(store, settings.name)
    record = read_run(store, settings.name)
    if record and has_ended(record):
        scores.tell_all()
        return
    if record and record.status == "FAILED" and record.attempts[-1].started >= task["since"]:
        raise RuntimeError(record.reason)  # in this sitting: to try again would end the same way
    run = begin(settings, store, task["data"], commit=task["commit"], tags=task["tags"])
    try:
        scores.tell_all()
        job = Job(**run.job(task["encoder"]), quiet=True)
        outcome = asdict(train(job, Worker(), scores.report))
    except SystemExit:  # in a report: the scheduler has had enough of this trial
        reason = f"{PRUNED} {scores.step}"
        outcome = {"status": "KILLED", "reason": reason, "step": scores.step}
        settle(store, settings, run.record, outcome, alone=False)
        raise
    settle(store, settings, run.record, outcome, alone=False)
    if outcome["status"] == "FAILED":
        raise RuntimeError(outcome["reason"])


def has_ended(record: RunRecord) -> bool:
    """Whether a trial needs no more training: finished, or stopped for good."""
    return record.status == "FINISHED" or (record.reason or "").startswith(PRUNED)


class Scores:
    """What a trial measured, step by step: on storage, and told to Tune."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = run_store(store, name)
        self.step = 0  # the last one that Tune was told of
        try:
            self.rows: list[dict[str, float]] = json.loads(self._store.read("scores.json"))
        except MissingKey:
            self.rows = []

    def tell_all(self) -> None:
        """Tell Tune what was measured before. Raises SystemExit if it stops the trial."""
        for row in self.rows:
            self._tell(row)

    def report(self, step: int, _uri: str, values: dict[str, float]) -> None:
        """Keep what was measured, and tell Tune, unless it knows from before the restart."""
        if step > self.step and values:
            row = {STEP: step, **values}
            self.rows.append(row)
            self._store.write("scores.json", json.dumps(self.rows).encode())
            self._tell(row)

    def _tell(self, row: dict[str, float]) -> None:
        self.step = int(row[STEP])
        tune.report(row)


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
