"""A sweep from its file to its answer: Tune runs the trials, storage knows how each ended."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t2i_ray import tracking
from t2i_ray.config import Config, Search, Sweep, UserError, identity_of
from t2i_ray.data import open_prepared
from t2i_ray.launch import (
    StopOnSignal,
    connect,
    make_shared_once,
    prepare_data,
    with_absolute_paths,
)
from t2i_ray.runs import now, read_run, write_run
from t2i_ray.storage import MissingKey, Store, check_writable, open_store
from t2i_ray.sweep.answer import collect
from t2i_ray.sweep.space import Trial, trials
from t2i_ray.sweep.trial import STEP, Trainable, has_ended


def tune(sweep: Sweep, *, commit: str = "unknown", diff: str = "") -> int:
    """Run a sweep, or go on with it, and return the process's exit code.

    Raises:
        UserError: something to mend before any trial starts.
    """
    run = with_absolute_paths(sweep.run)
    sweep = sweep.model_copy(update={"run": run})
    store = open_store(run.storage)
    check_writable(store)
    destination = tracking.resolve(run)
    key = _remember(store, sweep)
    connect(run)
    tasks = _tasks(store, sweep, commit)
    parent = tracking.Parent(destination, _about(sweep, key, commit, diff))
    for task in tasks:
        task.document["tags"] |= parent.tags
    print(
        f"{sweep.name}: {len(tasks)} trials, files in {store.uri}/sweeps/{sweep.name}", flush=True
    )
    if parent.address:
        print(f"{sweep.name}: MLflow at {parent.address}", flush=True)
    with StopOnSignal(sweep.name, "stopping; the same command goes on") as stop:
        reasons = _run_trials(sweep, tasks, stop)
    _release(store, tasks, reasons)
    answer = collect(store, sweep, [task.trial for task in tasks])
    store.write(f"sweeps/{sweep.name}/answer.json", json.dumps(answer.to_json(), indent=1).encode())
    status: tracking.Status = "KILLED" if stop.number else "FINISHED" if answer.best else "FAILED"
    parent.finish(status, answer.tags(), {"answer.md": answer.markdown()})
    print(answer.table(), flush=True)
    if stop.number:
        return 128 + stop.number
    return 0 if answer.best else 1


@dataclass(frozen=True)
class Task:
    """A trial with all that its process is given, as plain JSON."""

    trial: Trial
    document: dict[str, Any] = field(repr=False)


def _remember(store: Store, sweep: Sweep) -> str:
    """Write the sweep down at its first start; the id by which MLflow's run is found again.

    Raises:
        UserError: another sweep has its name.
    """
    place = f"sweeps/{sweep.name}/sweep.json"
    document = sweep.model_dump(mode="json", include={"space", "search"})
    document["search"].pop("concurrent")
    document["run"] = identity_of(sweep.run)
    text = json.dumps(document, indent=1, sort_keys=True)
    try:
        before = json.loads(store.read(place))
    except MissingKey:
        store.write(place, text.encode())
        before = document
    different = [part for part in document if before.get(part) != json.loads(text)[part]]
    if different:
        raise UserError(
            f"name={sweep.name!r}: a sweep of this name exists with another "
            f"{' and '.join(different)}; take another name, or the old values"
        )
    return f"sweep-{sweep.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _tasks(store: Store, sweep: Sweep, commit: str) -> list[Task]:
    """What the trials are given; data and embeddings are made once for all that share them."""
    made: dict[str, Any] = {}

    def once(what: dict[str, Any], make: Any) -> Any:
        key = json.dumps(what, sort_keys=True)
        if key not in made:
            made[key] = make()
        return made[key]

    tasks = []
    for trial in trials(sweep):
        config = trial.config
        kind = config.data.model_dump(mode="json")
        data = once(kind, lambda c=config: _prepared(store, c, sweep.search))
        encoder = once(
            {"data": data, "encoder": config.encoder.model_dump(mode="json")},
            lambda c=config, d=data: make_shared_once(c, d),
        )
        document = {
            "config": config.model_dump(mode="json"),
            "data": data,
            "encoder": encoder,
            "commit": commit,
            "since": now(),
            "tags": {"t2i_ray.sweep": sweep.name, "t2i_ray.setting": trial.setting},
        }
        tasks.append(Task(trial, document))
    return tasks


def _prepared(store: Store, config: Config, search: Search) -> str:
    data = prepare_data(config, store)
    known = ["frechet_reader", "agreement/mean"]
    known += [f"agreement/{name}" for name in open_prepared(store, data).attributes]
    if search.metric.removeprefix("val/") not in known:
        raise UserError(
            f"search.metric={search.metric}: nobody measures that on this data; "
            f"there are {', '.join('val/' + name for name in known)}"
        )
    return data


def _about(sweep: Sweep, key: str, commit: str, diff: str) -> tracking.About:
    about = tracking.describe(
        sweep.run,
        key=key,
        git_commit=commit,
        git_diff=diff,
        tags={"t2i_ray.sweep": sweep.name},
    )
    return tracking.of_sweep(about, sweep.model_dump(mode="json", include={"space", "search"}))


def _run_trials(sweep: Sweep, tasks: list[Task], stop: StopOnSignal) -> dict[str, str]:
    """Tune; why trials failed, by name.

    Its own files are scratch: what a sweep needs to go on is in our storage.
    """
    # Tune is to write no files for each trial, to leave signals to us, and to print nothing.
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune as ray_tune

    from t2i_ray.sweep.progress import Progress, Stopper

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    cluster = sweep.run.cluster
    resources = {"cpu": cluster.threads, **({"gpu": 1} if cluster.gpu else {})}
    progress = Progress(sweep, len(tasks))
    with tempfile.TemporaryDirectory() as scratch:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(Trainable, resources),
            param_space={"trial": ray_tune.grid_search([task.document for task in tasks])},
            tune_config=ray_tune.TuneConfig(
                metric=sweep.search.metric,
                mode=sweep.search.mode,
                scheduler=_scheduler(sweep),
                max_concurrent_trials=sweep.search.concurrent,
                reuse_actors=True,
                trial_name_creator=lambda trial: str(trial.trial_id),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray_tune.RunConfig(
                name=sweep.name,
                storage_path=scratch,
                verbose=0,
                stop=Stopper(stop),
                failure_config=ray_tune.FailureConfig(max_failures=cluster.max_failures),
                callbacks=[progress],
            ),
        )
        # In a thread, Tune leaves signals alone.
        thread = threading.Thread(target=tuner.fit, name="tune", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    return progress.failed


def _scheduler(sweep: Sweep) -> Any:
    from ray.tune import schedulers

    how, run = sweep.search.scheduler, sweep.run
    if how.kind == "asha":
        return schedulers.ASHAScheduler(
            time_attr=STEP,
            max_t=run.train.steps + 1,  # the end is the loop's affair
            grace_period=how.grace,
            reduction_factor=how.reduction,
        )
    if how.kind == "median":
        return schedulers.MedianStoppingRule(time_attr=STEP, grace_period=how.grace)
    return schedulers.FIFOScheduler()


def _release(store: Store, tasks: list[Task], reasons: Mapping[str, str]) -> None:
    """Trials that could not say how they ended: failed, or still at work when all was stopped."""
    for task in tasks:
        record = read_run(store, task.trial.config.name)
        if record is None or has_ended(record) or record.status != "RUNNING":
            continue
        if reason := reasons.get(record.name):
            record.status, record.reason = "FAILED", reason
        else:
            record.status, record.reason = "KILLED", "the sweep was stopped"
        record.attempts[-1].ended = now()
        write_run(store, record)
        destination = tracking.resolve(task.trial.config)
        tracking.set_status(destination, record.key, record.status, record.reason, timeout=5)
