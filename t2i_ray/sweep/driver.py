"""A sweep from its file to its answer: a plan of trials, Tune to run them, storage to remember."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from t2i_ray import tracking
from t2i_ray.claims import Lease, Number, Superseded, check, claim_attempt, wait_for_others
from t2i_ray.compare import report_sweep
from t2i_ray.config import Sweep, UserError, identity_of
from t2i_ray.launch import (
    StopOnSignal,
    at_most,
    connect,
    open_checked,
    sync,
    with_absolute_paths,
    with_pinned_encoder,
)
from t2i_ray.runs import STOPPED, Status, now, own_id, read_run, write_run
from t2i_ray.storage import FencedStore, PatientStore, Store
from t2i_ray.sweep.answer import Answer, collect, winners
from t2i_ray.sweep.ending import Ending
from t2i_ray.sweep.plan import Listed, Plan, Staged
from t2i_ray.sweep.population import Population
from t2i_ray.sweep.space import Setting, Trial, settings, trials
from t2i_ray.sweep.tasks import Task, Tasks
from t2i_ray.sweep.tpe import Tpe, load_optuna


def tune(sweep: Sweep, *, commit: str = "unknown", diff: str = "") -> int:
    """Run a sweep, or go on with it, and return the process's exit code.

    Raises:
        UserError: something to mend before any trial starts.
    """
    run = with_absolute_paths(sweep.run)
    store = open_checked(run)
    sweep = sweep.model_copy(update={"run": with_pinned_encoder(run)})
    if sweep.search.method == "tpe":
        load_optuna()
    # A storage that is away for a while must not end what takes days.
    patience = run.cluster.timeout_s / 2
    place = store.within(f"sweeps/{sweep.name}")
    # Before there is a record: what is refused here leaves none, and the name is still free.
    _known(store, sweep)
    wait_for_others(place, sweep.name)
    connect(sweep.run)
    at_a_time = _at_a_time(sweep)
    make = Tasks(PatientStore(store, patience), sweep, commit)
    make.prepare()
    key = _remember(store, sweep)
    number = Number(claim_attempt(place, sweep.name))
    with Lease(place, number.attempt):
        try:
            fenced = FencedStore(store, lambda: check(place, number))
            parent = _parent(sweep, key, commit, diff)
            return _tune(sweep, PatientStore(fenced, patience), make, parent, at_a_time)
        except Superseded as why:
            print(f"{sweep.name}: {why}; nothing more is written here", flush=True)
            return 1


def _tune(sweep: Sweep, store: Store, make: Tasks, parent: tracking.Parent, at_a_time: str) -> int:
    """What this driver alone is at work on, to its end."""
    whole = {**sweep.run.model_dump(mode="json"), **sweep.model_dump(mode="json", exclude={"run"})}
    store.write_json(f"sweeps/{sweep.name}/config.json", whole)
    make.parent = parent.tags
    try:
        plan = _plan(store, sweep, make)
        _announce(store, sweep, plan, parent, f"{at_a_time}; {make.summary()}")
        signal, reasons = _run(store, sweep, plan)
        answer = collect(store, sweep, [task.trial for task in plan.tasks], reasons)
        complete = _send_left(store, plan.tasks)
    except Superseded:
        raise
    except BaseException:
        parent.finish("FAILED", {}, {}, timeout=5)
        raise
    _publish(store, sweep, parent, answer, make.summary(), stopped=signal > 0, complete=complete)
    if signal:
        return 128 + signal
    return 0 if answer.best else 1


def _at_a_time(sweep: Sweep) -> str:
    """How many trials the cluster has room for, as it is."""
    # After connect(): Ray reads its settings from the environment when it is imported.
    from t2i_ray.sweep.tuning import concurrent

    more = "" if at_most(sweep.run) else ", and more as the cluster grows"
    return f"{concurrent(sweep)} at a time{more}"


def _announce(store: Store, sweep: Sweep, plan: Plan, parent: tracking.Parent, more: str) -> None:
    kind = "trials" if sweep.search.scheduler.kind != "pbt" else "legs of the population"
    print(
        f"{sweep.name}: {plan.total} {kind}, {more}\n"
        f"{sweep.name}: files in {store.uri}/sweeps/{sweep.name}",
        flush=True,
    )
    if parent.address:
        print(f"{sweep.name}: MLflow at {parent.address}", flush=True)


def _parent(sweep: Sweep, key: str, commit: str, diff: str) -> tracking.Parent:
    """The sweep's own run in MLflow."""
    tags = {tracking.SWEEP_TAG: sweep.name}
    about = tracking.describe(sweep.run, key=key, git_commit=commit, git_diff=diff, tags=tags)
    document = sweep.model_dump(mode="json", include={"space", "search"})
    return tracking.Parent(tracking.resolve(sweep.run), tracking.of_sweep(about, document))


def _run(store: Store, sweep: Sweep, plan: Plan) -> tuple[int, dict[str, str]]:
    """Run the plan; the number of the signal that ended it (0: none), and why trials failed."""
    from t2i_ray.sweep.tuning import run_plan

    ending, reasons = Ending(store.hurried()), dict[str, str]()
    says = "the trials save and leave; the same command goes on"
    try:
        with StopOnSignal(sweep.name, says, ending.ask) as stop:
            run_plan(sweep, store, plan, ending, reasons)
    finally:
        _release(store, plan.tasks, reasons)
    return stop.number, reasons


def _publish(
    store: Store,
    sweep: Sweep,
    parent: tracking.Parent,
    answer: Answer,
    embeddings: str,
    *,
    stopped: bool,
    complete: bool,
) -> None:
    """The answer: on storage, in MLflow with a report, and in the terminal."""
    store.write_json(f"sweeps/{sweep.name}/answer.json", answer.to_json())
    status: Status = "KILLED" if stopped else "FINISHED" if answer.best else "FAILED"
    tags = {**answer.tags(), "t2i_ray.embeddings": embeddings}
    keys = {trial.key for trial in answer.trials if trial.key}
    texts, patience = {"answer.md": answer.markdown()}, 30 if complete else 5
    complete &= parent.finish(status, tags, texts, keys, patience)
    print(answer.text(), flush=True)
    if not complete:
        print(f"{sweep.name}: MLflow is behind; the same command again sends what it lacks")
    destination = tracking.resolve(sweep.run)
    if destination is None or parent.run_id is None or not answer.best:
        return
    if comparison := report_sweep(destination.uri, parent.run_id):
        print(f"{comparison.headline}\n{sweep.name}: compare/report.html is with the run in MLflow")


def stored(store: Store, name: str) -> dict[str, Any]:
    """The YAML of a sweep that was started before, as a mapping. Raises UserError."""
    document: dict[str, Any] | None = store.read_json(f"sweeps/{name}/config.json")
    if document is None:
        known = sorted({key.split("/")[1] for key in store.list("sweeps")})
        raise UserError(
            f"--resume {name}: no sweep of this name in {store.uri}; "
            f"there {'is none' if not known else 'are ' + ', '.join(known)}"
        )
    return document


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
        found = _winners(store, sweep, [task.trial for task in plan.tasks])
        again = trials(sweep, found, confirm.seeds, prefix="confirm-", stage="confirm")
        return Listed([make(trial) for trial in again])

    kinds = len(sweep.space[confirm.by].labelled()) if confirm.by else 1
    return Staged(plan, second, later=kinds * len(confirm.seeds))


def _winners(store: Store, sweep: Sweep, searched: list[Trial]) -> list[Setting]:
    """Whom to confirm: chosen once, and the same when the sweep goes on, whatever came since."""
    place = f"sweeps/{sweep.name}/confirmed.json"
    labels = store.read_json(place)
    if labels is None:
        labels = [setting.label for setting in winners(store, sweep, searched)]
        if labels:
            store.write_json(place, labels)
    settings = {trial.setting.label: trial.setting for trial in searched}
    return [settings[label] for label in labels]


def _known(store: Store, sweep: Sweep) -> str:
    """What makes a sweep this one, as JSON. Raises UserError: another one has its name."""
    document = sweep.model_dump(mode="json", include={"space", "search"})
    for free in ("concurrent", "trials_per_gpu"):
        document["search"].pop(free)
    document["run"] = identity_of(sweep.run)
    document["evaluation"] = sweep.run.evaluation.model_dump(mode="json")
    document["data.source"] = sweep.run.data.source.model_dump(mode="json")
    text = json.dumps(document, sort_keys=True)
    ours = json.loads(text)
    before = store.read_json(f"sweeps/{sweep.name}/sweep.json", ours)
    different = [part for part in document if before.get(part) != ours[part]]
    if different:
        raise UserError(
            f"name={sweep.name!r}: a sweep of this name exists with another "
            f"{' and '.join(different)}; take another name, or the old values"
        )
    return text


def _remember(store: Store, sweep: Sweep) -> str:
    """Write the sweep down at its first start; the id by which MLflow's run is found again.

    Raises:
        UserError: another sweep has its name.
    """
    text = _known(store, sweep)
    place = f"sweeps/{sweep.name}"
    if not store.exists(f"{place}/sweep.json"):
        store.write_json(f"{place}/sweep.json", json.loads(text))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"sweep-{sweep.name}-{digest}-{own_id(store.within(place))}"


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


def _send_left(store: Store, tasks: Iterable[Task]) -> bool:
    """Send MLflow what it lacks of trials that could not send it; whether it has all now."""
    records = [(read_run(store, task.name), task.trial.config) for task in tasks]
    behind = [(record, config) for record, config in records if record and not record.published]
    return all(
        sync(store, record, config, patience=5, model=False)  # an outage ends it at the first one
        for record, config in behind
    )
