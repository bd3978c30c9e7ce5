"""From a config to a run on a Ray cluster: connect, prepare, train by Ray Train, set it right.

The driver decides nothing about the curve. It makes sure of the data, starts the workers, passes
on a wish to stop, and writes down how the run ended.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayTaskError

from t2i_ray import tracking
from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import Config, UserError, parse_config
from t2i_ray.data import open_prepared, prepare
from t2i_ray.generate import export
from t2i_ray.runs import (
    RunRecord,
    begin_attempt,
    is_lost,
    now,
    request_stop,
    run_store,
    write_run,
)
from t2i_ray.storage import LocalStore, Store, check_writable, open_store

# Ray's own defaults, made quieter and quicker; what the user has set stays.
RAY_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show each progress line twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


def connect(config: Config) -> None:
    """Join the cluster, or start one on this machine, with enough for the workers.

    Raises:
        UserError: the cluster can't be reached, is too small, or does not share the storage.
    """
    cluster = config.cluster
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        try:
            # The dashboard listens on loopback; without it Ray Train can't clean up after itself.
            ray.init(address=address, logging_level="error")
        except ConnectionError as error:
            raise UserError(
                f"cluster.address={address}: no Ray cluster answers there ({error}); start one "
                "with 'ray start --head', or leave the address out"
            ) from None
    have, nodes = ray.cluster_resources(), [n for n in ray.nodes() if n["Alive"]]
    kind, need = (
        ("GPU", cluster.workers) if cluster.gpu else ("CPU", cluster.workers * cluster.threads)
    )
    if have.get(kind, 0) < need:
        problem = (
            f"cluster.workers={cluster.workers} need {need} {kind}s and the cluster has "
            f"{have.get(kind, 0):g}"
        )
        if not address:
            raise UserError(f"{problem}; ask for fewer workers or threads")
        print(f"warning: {problem}; waiting for it to grow", flush=True)
    local = not config.storage.uri.startswith("s3://")
    if local and len(nodes) > 1 and not config.storage.shared:
        raise UserError(
            f"storage.uri={config.storage.uri}: a local folder, and the cluster has {len(nodes)} "
            "nodes; use s3://..., or set storage.shared=true if it is the same on every node"
        )


def ray_tasks(function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
    """Map a function over arguments as Ray tasks; results come as they are done."""
    task = ray.remote(num_cpus=1)(function)
    pending = [task.remote(argument) for argument in arguments]
    while pending:
        done, pending = ray.wait(pending)
        yield _result(done[0])


def _result(reference: Any) -> Any:
    """A task's result; a user's error comes out as it went in, without the task's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def train(config: Config, *, commit: str = "unknown", diff: str = "") -> int:
    """Train a run, or continue it, and return the process's exit code.

    Raises:
        UserError: something to mend before any worker starts.
    """
    config = with_absolute_paths(config)
    store = open_store(config.storage)
    check_writable(store)
    destination = tracking.resolve(config)
    connect(config)
    data = prepare(config.data, store, run_tasks=ray_tasks, progress=_tell_prepared)
    prepared = open_prepared(store, data)
    record = begin_attempt(store, config, data=data, digest=prepared.digest, commit=commit)
    if record.status == "FINISHED":
        print(f"{config.name}: finished already, at step {record.step}; nothing to do")
        if not record.published:
            sync(store, record, config)
        return 0
    encoder = _make_shared(config, data)
    job = os.environ.get("RAY_JOB_SUBMISSION_ID")
    about = tracking.describe(
        config,
        key=record.key,
        attempt=record.attempt,
        dataset=tracking.Dataset(prepared.manifest.kind, prepared.digest, f"{store.uri}/{data}"),
        git_commit=commit,
        git_diff=diff,
        tags={"t2i_ray.storage": store.uri, **({"t2i_ray.submission": job} if job else {})},
    )
    cluster, steps = config.cluster, config.train.steps
    print(
        f"{config.name}: attempt {record.attempt}, {cluster.workers} workers, {steps} steps of "
        f"{config.train.batch_size} pictures\n"
        f"{config.name}: files in {store.uri}/runs/{config.name}\n"
        f"{config.name}: MLflow at {tracking.announce(destination, about, timeout=10)}",
        flush=True,
    )
    job_document = {
        "config": config.model_dump(mode="json"),
        "data": data,
        "encoder": encoder,
        "about": about.to_json(),
    }
    with StopOnSignal(store, config.name) as stop:
        outcome = _fit(config, record.attempt, job_document, store)
    _settle(store, config, record, outcome)
    return {"FINISHED": 0, "KILLED": 128 + stop.number}.get(record.status, 1)


def with_absolute_paths(config: Config) -> Config:
    """The config with its local paths made absolute: workers have working directories of their own.

    Raises:
        UserError: a relative path in a Ray job, whose working directory is temporary.
    """
    document = config.model_dump(mode="json")
    document["storage"]["uri"] = open_store(config.storage).uri
    source, encoder = document["data"]["source"], document["encoder"]
    places = [(source, "path"), (source, "font")]
    if encoder["kind"] == "huggingface" and Path(encoder["model"]).expanduser().exists():
        places.append((encoder, "model"))
    for section, key in places:
        value = section.get(key)
        if not value or "://" in value:
            continue
        path = Path(value).expanduser()
        if not path.is_absolute() and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise UserError(f"{key}={value}: a relative path in a Ray job; give an absolute one")
        section[key] = str(path.resolve())
    return parse_config(document)


def _tell_prepared(done: int, total: int) -> None:
    print(f"prepared {done} of {total} pictures", flush=True)


def _make_shared(config: Config, data: str) -> dict[str, Any] | None:
    """Make what all runs on this data share, on the cluster, before the workers start.

    Returns a frozen encoder's description, by which workers do without the model itself.
    """
    frozen = config.encoder.kind == "huggingface"
    if not frozen and not config.evaluation.every:
        return None
    task = ray.remote(num_cpus=1, num_gpus=1 if config.cluster.gpu else 0)(make_shared)
    description: dict[str, Any] | None = _result(task.remote(config.model_dump(mode="json"), data))
    return description


def make_shared(document: dict[str, Any], data: str) -> dict[str, Any] | None:
    """The task: a frozen encoder's embeddings, and the reader for evaluations while training."""
    config = parse_config(document)
    store = open_store(config.storage)
    prepared = open_prepared(store, data)
    if config.evaluation.every:
        from t2i_ray import evaluate

        evaluate.ensure_reader(store, prepared, config.data)
    if config.encoder.kind != "huggingface":
        return None
    from t2i_ray.encoders import build_encoder, caption_rows

    encoder = build_encoder(config.encoder, [])
    caption_rows(encoder, prepared.captions, store)
    return encoder.describe()


# ----------------------------------------------------------------------------- Ray Train


def work(job: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker."""
    import ray.train
    import ray.train.torch

    from t2i_ray.train import Job, Worker, train

    logging.getLogger().setLevel(logging.WARNING)  # Ray tells every report
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )

    def report(step: int, uri: str) -> None:
        ray.train.report({"step": step, "checkpoint": uri})

    outcome = train(Job(**job), worker, report)
    return {
        "status": outcome.status,
        "step": outcome.step,
        "reason": outcome.reason,
        "published": outcome.published,
    }


def _fit(config: Config, attempt: int, job: dict[str, Any], store: Store) -> dict[str, Any]:
    """Run the workers; how it ended, as a mapping of status, step, reason, published."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    cluster = config.cluster
    path, filesystem = ray_storage(config, store)
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.threads, **({"GPU": 1} if cluster.gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        run_config=RunConfig(
            name=f"{config.name}-{attempt}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": worker_environment(config)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    ending: dict[str, Any] = {}

    def fit() -> None:
        try:
            ending.update(trainer.fit().return_value)
        except TrainingFailedError as error:
            ending.update(status="FAILED", reason=_reason(error), published=False)
        except Exception as error:
            ending.update(
                status="FAILED", reason=f"{type(error).__name__}: {error}", published=False
            )

    # fit() would handle Ctrl-C by ending the workers where they stand, and SIGTERM not at all; in
    # a thread it leaves signals alone.
    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    return ending


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        return f"worker {rank}: {lines[-1] if lines else type(failure).__name__}"
    return " ".join(str(error).split())[:500]


class StopOnSignal:
    """SIGTERM and Ctrl-C ask the run to checkpoint and leave; a second one ends the driver."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._before: dict[int, Any] = {}
        self.number = 0  # of the signal that came

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        print(
            f"{self._name}: {signal.Signals(number).name}: saving a checkpoint, then leaving",
            flush=True,
        )
        threading.Thread(target=request_stop, args=(self._store, self._name), daemon=True).start()


def worker_environment(config: Config) -> dict[str, str]:
    """Variables for every worker; no secret is among them, since job metadata shows them."""
    threads = str(config.cluster.threads)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri and "@" not in uri:
        variables["MLFLOW_TRACKING_URI"] = uri
    if config.storage.endpoint:
        variables["AWS_REQUEST_CHECKSUM_CALCULATION"] = "when_required"
        variables["AWS_RESPONSE_CHECKSUM_VALIDATION"] = "when_required"
    return variables


def ray_storage(config: Config, store: Store) -> tuple[str, Any]:
    """Where Ray Train keeps its own small files: path and pyarrow filesystem (None: by path)."""
    if isinstance(store, LocalStore):
        return f"{store.uri}/ray", None
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    filesystem = S3FileSystem(
        endpoint_override=config.storage.endpoint,
        region=config.storage.region,
        connect_timeout=5,
        request_timeout=30,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=10),
    )
    return f"{store.uri.removeprefix('s3://')}/ray", filesystem


# --------------------------------------------------------------------------- how it ended


def _settle(store: Store, config: Config, record: RunRecord, outcome: dict[str, Any]) -> None:
    """Write down how the run ended, here and in MLflow."""
    record.status = outcome["status"]
    record.reason = outcome.get("reason")
    record.step = outcome.get("step", record.step)
    record.attempts[-1].ended = now()
    write_run(store, record)
    # A worker that could not publish has waited already.
    complete = sync(store, record, config, patience=20 if outcome.get("published") else 1)
    print(
        f"{record.name}: {record.status.lower()} at step {record.step}/{record.steps}"
        + (f": {record.reason}" if record.reason else "")
        + ("" if complete else f"\n{record.name}: MLflow is behind: t2i-ray sync {record.name}"),
        flush=True,
    )


def sync(
    store: Store,
    record: RunRecord,
    config: Config | None = None,
    tracking_uri: str | None = None,
    patience: float = 20,
) -> bool:
    """Give MLflow whatever it lacks of a run, its model and its status; whether it has all.

    What the newest checkpoint held back is sent again: what MLflow has already, it stores once.
    An MLflow that does not answer is waited for ``patience`` seconds.
    """
    folder = run_store(store, record.name).within("checkpoints")
    checkpoint = Checkpoints(folder, keep=1).latest()
    if is_lost(store, record):  # its driver could not say so any more
        record.status, record.reason = "KILLED", "the driver was lost"
        record.step = checkpoint.step if checkpoint else 0
    if config is None:
        if checkpoint is None:
            return True
        config = parse_config(checkpoint.documents["config"])
    if tracking_uri:
        moved = config.tracking.model_copy(update={"uri": tracking_uri})
        config = config.model_copy(update={"tracking": moved})
    destination = tracking.resolve(config)
    complete = True
    if checkpoint is not None:
        left = checkpoint.documents["tracking"]
        complete = tracking.sync(destination, left, store, timeout=60, attempt=record.attempt)
    if complete and destination and checkpoint and record.status == "FINISHED":
        complete = _log_model(destination, record.key, checkpoint, config.tracking.register_model)
    if complete:
        complete = tracking.set_status(
            destination, record.key, record.status, record.reason, patience
        )
    record.published = complete
    write_run(store, record)
    return complete


def _log_model(
    destination: tracking.Destination, key: str, checkpoint: Checkpoint, register: bool
) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "generator"
        folder.mkdir()
        export(checkpoint, folder)
        try:
            tracking.log_model(destination, key, folder, step=checkpoint.step, register=register)
        except Exception as error:  # whatever MLflow or its transport may raise
            print(f"warning: the model is not in MLflow yet: {error}", flush=True)
            return False
    return True
