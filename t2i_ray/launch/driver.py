"""From a config to a run: make sure of the data, start the workers, set it right at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray

from t2i_ray import tracking
from t2i_ray.claims import wait_for_others
from t2i_ray.config import Config, parse_config
from t2i_ray.data import ChangedCaptions, Prepared, WrongCaptions, open_prepared, prepare, resolved
from t2i_ray.launch.aside import Aside
from t2i_ray.launch.attempt import Attempt, begin
from t2i_ray.launch.cluster import connect, ray_tasks, result
from t2i_ray.launch.controller import start_controller
from t2i_ray.launch.fit import StopOnSignal, fit_workers
from t2i_ray.launch.settle import settle, sync
from t2i_ray.lines import lines_of
from t2i_ray.runs import known_run, request_stop, run_store
from t2i_ray.storage import Store, absolute, check_writable, open_store

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from t2i_ray.launch.controller import TrainController


def train(config: Config, *, commit: str = "unknown", diff: str = "") -> int:
    """Train a run, or continue it, and return the process's exit code.

    Raises:
        UserError: something to mend before any worker starts.
    """
    with lines_of(config.name):
        return _begin(config, commit, diff)


def _begin(config: Config, commit: str, diff: str) -> int:
    config = with_absolute_paths(config)
    store = open_checked(config)
    config = with_pinned_encoder(config)
    connect(config)
    data = prepare_data(config, store)
    known = known_run(store, config, open_prepared(store, data).digest)
    # Before there is a record: what is refused here leaves none.
    finished = known is not None and known.status == "FINISHED"
    if not finished:
        # Nor may it wait for room that another driver of this run has taken.
        wait_for_others(run_store(store, config.name), config.name)
    controller = None if finished else start_controller()  # it takes its time
    encoder = None if finished else make_shared_once(config, data)
    run = begin(config, store, data, commit=commit, diff=diff)
    record = run.record
    if record.status == "FINISHED":
        print(f"{config.name}: finished already, at step {record.step}; nothing to do")
        if not record.published:
            sync(store, record, config)
        return 0
    with run.lease:
        return _train(config, store, encoder, run, controller)


def _train(
    config: Config,
    store: Store,
    encoder: dict[str, Any] | None,
    run: Attempt,
    controller: ActorHandle[TrainController] | None,
) -> int:
    """The attempt that was begun, to its end."""
    record = run.record
    job = run.job(encoder)
    cluster, steps = config.cluster, config.train.steps
    print(
        f"{config.name}: attempt {record.attempt} of {record.key}, {cluster.workers} workers, "
        f"{steps} steps of {config.train.batch_size} pictures\n"
        f"{config.name}: files in {store.uri}/runs/{config.name}",
        flush=True,
    )
    with StopOnSignal(
        config.name,
        "saving a checkpoint, then leaving",
        lambda: request_stop(store, config.name),
    ) as stop:
        aside = Aside(config, record, store, lambda: stop.number > 0)
        outcome = fit_workers(
            config,
            record.attempt,
            job,
            store,
            controller=controller,
            at_work=run.announce,
            watch=aside.look,
            stopping=lambda: stop.number > 0,
        )
        if not aside.finish() and outcome["status"] == "FINISHED":
            outcome |= {"status": "KILLED", "reason": "stopped before all was measured"}
    settle(store, config, record, outcome)
    return {"FINISHED": 0, "KILLED": 128 + stop.number}.get(record.status, 1)


def open_checked(config: Config) -> Store:
    """The storage of a config, which can be used; MLflow lets us in, or a warning says why not.

    Raises:
        UserError: what is to be mended before anything starts.
    """
    store = open_store(config.storage)
    check_writable(store)
    if problem := tracking.check_access(tracking.resolve(config)):
        print(f"warning: {problem}", flush=True)
    return store


def with_absolute_paths(config: Config) -> Config:
    """The config with its local paths made absolute: workers have working directories of their own.

    An S3 endpoint that only this process's environment names becomes part of it, too.

    Raises:
        UserError: a relative path in a Ray job, whose working directory is temporary.
    """
    document = config.model_dump(mode="json")
    document["storage"]["uri"] = open_store(config.storage).uri
    if config.storage.uri.startswith("s3://") and not config.storage.endpoint:
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        document["storage"]["endpoint"] = next(filter(None, map(os.environ.get, names)), None)
    document["data"]["source"] = resolved(config.data.source).model_dump(mode="json")
    if uri := config.tracking.uri:
        document["tracking"]["uri"] = tracking.absolute_uri(uri, "tracking.uri")
    places = [("encoder", "init_from"), ("evaluation", "inception")]
    model = document["encoder"].get("model")
    if model and Path(model).expanduser().exists():  # else a name on the hub
        places.append(("encoder", "model"))
    for section, key in places:
        if place := document[section][key]:
            document[section][key] = absolute(place, f"{section}.{key}")
    return parse_config(document)


def with_pinned_encoder(config: Config) -> Config:
    """The config with the sha256 of a pretrained encoder: its content, not its place, counts.

    Raises:
        UserError: there is none, or not the one that the config names, or no pair that its
            train.pretrained_matching asks for.
    """
    encoder = config.encoder
    if not encoder.init_from:
        return config
    from t2i_ray.encoders.saved import pin

    if config.train.pretrained_matching:
        from t2i_ray.train import load_pair

        load_pair(config)
    pinned = encoder.model_copy(update={"init_sha256": pin(encoder, config.storage)})
    return config.model_copy(update={"encoder": pinned})


def prepare_data(config: Config, store: Store) -> str:
    """Prepare the data on the cluster unless it is there; its prefix.

    Raises:
        UserError: it can't be had, or has no wrong captions of the kind ``data.wrong``.
    """
    data = prepare(
        config.data, store, reach=config.storage, run_tasks=ray_tasks, progress=tell_prepared
    )
    if config.data.wrong != "other_class":
        print(_lacking_wrong(config.data.wrong, open_prepared(store, data)), flush=True)
    return data


def tell_prepared(done: int, total: int) -> None:
    """Say how far it is."""
    print(f"prepared {done} of {total} pictures", flush=True)


def _lacking_wrong(kind: Literal["same_class", "hard", "one_word"], prepared: Prepared) -> str:
    if kind == "one_word":
        count, things = ChangedCaptions(prepared, "train").unchanged, "captions"
        all_of = sum(len(prepared.captions_of(sample)) for sample in prepared.ids("train"))
    else:
        count, things = WrongCaptions(prepared, kind).fallbacks, "pictures"
        all_of = len(prepared.ids("train"))
    return (
        f"data.wrong={kind}: {count} of {all_of} training {things} have no such caption and get "
        "one of any other class"
    )


def make_shared_once(config: Config, data: str) -> dict[str, Any] | None:
    """Make what all runs on this data share, on the cluster, before the workers start.

    Whatever an encoder takes besides captions is looked for there as well.

    Returns a frozen model's description, by which workers do without the model itself.
    """
    if not config.encoder.outside and not config.evaluation.every:
        return None
    task = ray.remote(num_cpus=1, num_gpus=1 if config.cluster.gpu else 0)(make_shared)
    description: dict[str, Any] | None = result(task.remote(config.model_dump(mode="json"), data))
    return description


def make_shared(document: dict[str, Any], data: str) -> dict[str, Any] | None:
    """The task: a frozen encoder's embeddings, and what evaluations while training judge by."""
    config = parse_config(document)
    store = open_store(config.storage)
    prepared = open_prepared(store, data)
    if config.evaluation.every:
        from t2i_ray import evaluate

        evaluate.check_split(prepared, "val")
    if config.evaluation.every and config.model.draws:
        evaluate.Judges.find(store, prepared, config).able(config.evaluation.measures)
    if not config.encoder.outside:
        return None
    from t2i_ray.encoders import build_encoder, caption_rows

    encoder = build_encoder(config.encoder, prepared.captions, config.storage)
    if encoder.trainable:
        return None
    caption_rows(encoder, prepared.captions, store)
    # One with weights of its own is made by each worker, from where they are.
    return None if encoder.module.state_dict() else encoder.describe()
