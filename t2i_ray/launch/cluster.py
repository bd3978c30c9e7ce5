"""The Ray cluster: joining it, tasks on it, and what its processes are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from t2i_ray.config import TARGETS, Cluster, Config, Storage, UserError, classes_in
from t2i_ray.launch.joining import START_WITH_TOKEN, join, most, refuses_strangers, start_own
from t2i_ray.storage import LocalStore, Store
from t2i_ray.tracking import for_workers

# Ray's own defaults, made quieter and quicker; what the user has set stays.
RAY_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would show each progress line twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a lost worker is noticed
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # and a node that is to go
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # ours does: launch/trainer.py
}
# With another number of workers it may go on at once. Ray takes a lost node for there until its
# head has noticed (docs/scaling.md); this is how long it tries before it counts again.
ELASTIC_SETTINGS = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "3"}
# And those of a cluster that is ours alone.
OWN_CLUSTER_SETTINGS = {
    # Else every other process of the machine, Ray's own helpers first of all, pushes workers aside.
    "RAY_worker_niceness": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # nobody reads them without a dashboard
    "LOG_NAME_UPDATE_INTERVAL_S": "2",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}
# And those of one that is joined, which has a dashboard.
JOINED_SETTINGS = {"RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}  # for its page on training
# Many S3 servers other than AWS refuse checksums in trailers, the default of AWS's libraries.
PLAIN_CHECKSUMS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


ALONE = "local"  # ray.init's name for a cluster of our own on this machine


def connect(config: Config) -> None:
    """Join the cluster, or start one on this machine, with enough for the workers, and aside.

    Raises:
        UserError: the cluster can't be joined, can't ever have enough, or does not share the
            storage.
    """
    reach(config.cluster, config.storage)
    for problem, final in shortfalls(config):
        if final:
            raise UserError(problem)
        print(f"warning: {problem}; or it must grow", flush=True)


def reach(cluster: Cluster, storage: Storage, *, tell: bool = True) -> None:
    """Join the cluster, or start one on this machine. Raises UserError: it can't be joined.

    Args:
        cluster: the section of a config.
        storage: the same.
        tell: warn of a cluster that whoever reaches it may join.
    """
    address = _address(cluster)
    alone = address == ALONE
    settings = RAY_SETTINGS | (OWN_CLUSTER_SETTINGS if alone else JOINED_SETTINGS)
    settings |= ELASTIC_SETTINGS if cluster.min_workers else {}
    settings |= PLAIN_CHECKSUMS if storage.endpoint else {}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        if alone:
            start_own(
                include_dashboard=False,  # eight processes for a cluster that nobody visits
                _node_ip_address="127.0.0.1",
            )
        else:
            join(address)
    if tell and not alone and refuses_strangers() is False:
        open_to_all = "the cluster asks for no token: whoever reaches its head runs any code there"
        print(f"warning: {open_to_all}; {START_WITH_TOKEN}", flush=True)


def _address(cluster: Cluster) -> str:
    # Said outright: left to itself, Ray goes on looking for a cluster that once ran here.
    return cluster.address or os.environ.get("RAY_ADDRESS") or ALONE


def shortfalls(config: Config) -> Iterator[tuple[str, bool]]:
    """What the cluster lacks, and whether it is in vain to wait until it has grown."""
    problems = list(lacking(config, ray.cluster_resources()))
    limit = at_most(config) if problems else None
    final = limit is not None and any(lacking(config, limit))
    for problem in problems:
        yield problem, final
    if lacks_shared_folder(config.storage):
        remedy = "use s3://..., or set storage.shared=true if it is the same on every node"
        what = "a local folder, and the cluster has several nodes"
        yield f"storage.uri={config.storage.uri}: {what}; {remedy}", True


def lacks_shared_folder(storage: Storage) -> bool:
    """Whether the cluster we are on has several nodes, and these not the same storage."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return len(alive) > 1 and not storage.shared and not storage.uri.startswith("s3://")


def at_most(config: Config) -> Mapping[str, float] | None:
    """The most that the cluster can ever have, by resource; None if it does not say."""
    have: dict[str, float] = ray.cluster_resources()
    return have if _address(config.cluster) == ALONE else most(have)


def lacking(config: Config, have: Mapping[str, float]) -> Iterator[str]:
    """What a cluster of these resources has too little of, and what to do about it."""
    cluster, aside = config.cluster, config.aside
    fewest = cluster.fewest
    workers = f"cluster.{'min_' if cluster.min_workers else ''}workers={fewest}"
    if cluster.gpu and have.get("GPU", 0) < fewest:
        yield (
            f"{workers} need {fewest} GPUs and the cluster has {have.get('GPU', 0):g}; "
            "ask for fewer workers"
        )
    cpus = fewest * cluster.threads
    if not cluster.gpu and have.get("CPU", 0) < cpus:
        yield (
            f"{workers} need {cpus} CPUs and the cluster has {have.get('CPU', 0):g}; ask for fewer "
            "workers or threads"
        )
    elif aside and have.get("CPU", 0) < cpus + aside:
        yield (
            f"evaluation.aside={aside}: with {workers} of {cluster.threads} CPUs each this takes "
            f"{cpus + aside} CPUs and the cluster has {have.get('CPU', 0):g}; ask for fewer, or "
            "set evaluation.aside=0"
        )


def ray_tasks(function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
    """Map a function over arguments as Ray tasks; results come as they are done."""
    task = ray.remote(num_cpus=1)(function)
    pending = [task.remote(argument) for argument in arguments]
    while pending:
        done, pending = ray.wait(pending)
        yield result(done[0])


def result(reference: Any) -> Any:
    """A task's result; a user's error comes out as it went in, without the task's traceback."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def worker_environment(config: Config) -> dict[str, str]:
    """Variables for every worker; no secret is among them, since job metadata shows them."""
    threads = str(config.cluster.threads)
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **for_workers(config)}
    if config.storage.endpoint:
        variables |= PLAIN_CHECKSUMS
    # What the run's own config names may be imported too when its checkpoints are drawn from.
    classes = [name for _, name in classes_in(config.model_dump(mode="json"))]
    if allowed := [*os.environ.get(TARGETS, "").split(), *classes]:
        variables[TARGETS] = " ".join(dict.fromkeys(allowed))
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
