"""A sweep from its file to its answer: a plan of trials, Tune to run them, storage to remember."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from t2i_ray import tracking
from t2i_ray.compare import report_sweep
from t2i_ray.config import Sweep, UserError, identity_of
from t2i_ray.launch import StopOnSignal, connect, with_absolute_paths
from t2i_ray.runs import now, read_run, request_stop, write_run
from t2i_ray.storage import MissingKey, Store, check_writable, open_store
from t2i_ray.sweep.answer import collect, winners
from t2i_ray.sweep.plan import Listed, Plan, Staged
from t2i_ray.sweep.population import Population
from t2i_ray.sweep.space import settings, trials
from t2i_ray.sweep.tasks import STOPPED, Task, Tasks, stop_key
from t2i_ray.sweep.tpe import Tpe


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
    # After connect(): Ray reads its settings from the environment when it is imported.
    from t2i_ray.sweep.tuning import concurrent, run_plan

    at_a_time = concurrent(sweep)
    make = Tasks(store, sweep, commit)
    make.prepare()
    about = tracking.describe(
        run, key=key, git_commit=commit, git_diff=diff, tags={"t2i_ray.sweep": sweep.name}
    )
    document = sweep.model_dump(mode="json", include={"space", "search"})
    parent = tracking.Parent(destination, tracking.of_sweep(about, document))
    make.parent = parent.tags
    plan = _plan(store, sweep, make)
    print(
        f"{sweep.name}: {plan.total} trials, {at_a_time} at a time; {make.summary()}\n"
        f"{sweep.name}: files in {store.uri}/sweeps/{sweep.name}",
        flush=True,
    )
    if parent.address:
        print(f"{sweep.name}: MLflow at {parent.address}", flush=True)
    place = stop_key(sweep)
    store.delete(place)
    stopping = threading.Event()

    def ask() -> None:
        """The trials are to know that it is not the scheduler who stops them."""
        try:
            store.write(place, now().encode())
            for task in plan.tasks:
                record = read_run(store, task.name)
                if record and record.status == "RUNNING":
                    request_stop(store, task.name)
        finally:
            stopping.set()

    with StopOnSignal(sweep.name, "stopping; the same command goes on", ask) as stop:
        reasons = run_plan(sweep, plan, stopping)
    _release(store, plan.tasks, reasons)
    answer = collect(store, sweep, [task.trial for task in plan.tasks])
    store.write(f"sweeps/{sweep.name}/answer.json", json.dumps(answer.to_json(), indent=1).encode())
    status: tracking.Status = "KILLED" if stop.number else "FINISHED" if answer.best else "FAILED"
    tags = {**answer.tags(), "t2i_ray.embeddings": make.summary()}
    parent.finish(status, tags, {"answer.md": answer.markdown()})
    print(answer.text(), flush=True)
    if destination and parent.run_id and answer.best:
        _report(sweep.name, destination.uri, parent.run_id)
    if stop.number:
        return 128 + stop.number
    return 0 if answer.best else 1


def stored(store: Store, name: str) -> dict[str, Any]:
    """The YAML of a sweep that was started before, as a mapping. Raises UserError."""
    try:
        document: dict[str, Any] = json.loads(store.read(f"sweeps/{name}/config.json"))
    except MissingKey:
        known = sorted({key.split("/")[1] for key in store.list("sweeps")})
        raise UserError(
            f"--resume {name}: no sweep of this name in {store.uri}; "
            f"there {'is none' if not known else 'are ' + ', '.join(known)}"
        ) from None
    return document


def _report(name: str, tracking_uri: str, run_id: str) -> None:
    """Compare the trials as MLflow has them, and leave the report there."""
    comparison = report_sweep(tracking_uri, run_id)
    if comparison:
        print(f"{comparison.headline}\n{name}: compare/report.html is with the run in MLflow")


def _plan(store: Store, sweep: Sweep, make: Tasks) -> Plan:
    """The trials in their order, and what depends on what."""
    search = sweep.search
    plan: Plan
    if search.method == "tpe":
        plan = Tpe(store, sweep, make)
    else:
        members = trials(sweep, settings(sweep), search.seeds)
        if search.scheduler.kind == "pbt":
            return Population(store, sweep, members, make)
        plan = Listed([make(trial) for trial in members])
    if not search.confirm:
        return plan
    confirm = search.confirm

    def second() -> Plan:
        found = winners(store, sweep, [task.trial for task in plan.tasks])
        again = trials(sweep, found, confirm.seeds, prefix="confirm-", stage="confirm")
        return Listed([make(trial) for trial in again])

    kinds = len(sweep.space[confirm.by].labelled()) if confirm.by else 1
    return Staged(plan, second, later=kinds * len(confirm.seeds))


def _remember(store: Store, sweep: Sweep) -> str:
    """Write the sweep down at its first start; the id by which MLflow's run is found again.

    Raises:
        UserError: another sweep has its name.
    """
    place = f"sweeps/{sweep.name}/sweep.json"
    document = sweep.model_dump(mode="json", include={"space", "search"})
    for free in ("concurrent", "trials_per_gpu"):
        document["search"].pop(free)
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
    whole = {**sweep.run.model_dump(mode="json"), **sweep.model_dump(mode="json", exclude={"run"})}
    store.write(f"sweeps/{sweep.name}/config.json", json.dumps(whole, indent=1).encode())
    return f"sweep-{sweep.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _release(store: Store, tasks: Iterable[Task], reasons: Mapping[str, str]) -> None:
    """Trials that could not say how they ended: failed, or still at work when all was stopped."""
    for task in tasks:
        record = read_run(store, task.name)
        if record is None or record.status != "RUNNING":
            continue
        if reason := reasons.get(record.name):
            record.status, record.reason = "FAILED", reason
        else:
            record.status, record.reason = "KILLED", STOPPED
        record.attempts[-1].ended = now()
        write_run(store, record)
        destination = tracking.resolve(task.trial.config)
        tracking.set_status(destination, record.key, record.status, record.reason, timeout=5)
