"""MLflow's side: one run per logical run, and that run's status.

mlflow is imported only when it is first met: it takes seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from t2i_ray.runs import Status
from t2i_ray.tracking.about import REASON_TAG, RUN_TAG, About, scrub, tag
from t2i_ray.tracking.destination import Destination

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

PAGE = 500  # runs asked for at a time
log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5  # for two creators of one run to see each other


def connect(destination: Destination) -> MlflowClient:
    """A client that has reached the server or database. Raises whatever MLflow raises."""
    if destination.elsewhere:
        raise RuntimeError("the driver publishes to another MLflow than this process would")
    prepare_mlflow()
    from mlflow import MlflowClient

    with _schema_lock(destination.uri):
        client = MlflowClient(tracking_uri=destination.uri)
        client.search_experiments(max_results=1)
    return client


def prepare_mlflow() -> None:
    """Import mlflow, quiet and impatient: retries are ours, so that they show as one outage.

    What the user has set in the environment stays.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow  # noqa: F401 - sets up its loggers, which are then turned down

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It prints a traceback for each failure that we report in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _schema_lock(uri: str) -> Iterator[None]:
    """MLflow's making of a database's tables is not safe in two processes at once."""
    path = uri.partition("///")[2].partition("?")[0]
    if not uri.startswith("sqlite:") or not path or path == ":memory:":
        yield
        return
    lock = Path(f"{path}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------ runs


def find_run(client: MlflowClient, destination: Destination, key: str) -> Run | None:
    """The run of this key, or None."""
    return next(iter(_runs_of(client, destination, key)), None)


def _runs_of(client: MlflowClient, destination: Destination, key: str) -> list[Run]:
    """Oldest first; all see the same order."""
    experiment = client.get_experiment_by_name(destination.experiment)
    if not experiment:
        return []
    runs = search(client, [experiment.experiment_id], f"tags.`{RUN_TAG}` = '{key}'")
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def search(client: MlflowClient, experiments: list[str], query: str = "") -> list[Run]:
    """All runs of these experiments that the query finds, however many."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments, query, max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def ensure_run(client: MlflowClient, destination: Destination, about: About) -> Run:
    """The run of this key, made if there is none.

    Of several the oldest stays: two processes made one at once, or one process made it again, since
    the answer to its first request was lost.
    """
    if not (runs := _runs_of(client, destination, about.key)):
        experiment_id = ensure_experiment(client, destination)
        client.create_run(experiment_id, run_name=about.name, tags={RUN_TAG: about.key})
        time.sleep(SETTLE_SECONDS)
        runs = _runs_of(client, destination, about.key)
    first, *others = runs
    for other in others:
        with contextlib.suppress(Exception):  # the other creator deletes it as well
            client.delete_run(other.info.run_id)
    return first


def ensure_experiment(client: MlflowClient, destination: Destination) -> str:
    """The experiment's id; it is made if there is none. Raises what MLflow raises."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(destination.experiment, destination.artifacts))
    except MlflowException:
        experiment = client.get_experiment_by_name(destination.experiment)
        if experiment is None:
            raise
        if experiment.lifecycle_stage != "active":
            raise RuntimeError(
                f"tracking.experiment={destination.experiment}: it was deleted in MLflow; "
                "restore it, or choose another"
            ) from None
        return str(experiment.experiment_id)


# ------------------------------------------------------------------- what the driver calls


def announce(destination: Destination | None, about: About, timeout: float = 3) -> str | None:
    """Make the run, so that workers find it, and say where to look at it.

    None if tracking is off, or, after a warning, if MLflow can't be reached.
    """

    def work(client: MlflowClient, where: Destination) -> str:
        return run_url(where, ensure_run(client, where, about))

    if destination is None:
        return None
    return persist(destination, work, timeout, f"{about.name} is not shown in MLflow yet")


def set_status(
    destination: Destination | None,
    key: str,
    status: Status,
    reason: str | None = None,
    timeout: float = 30,
    *,
    must_exist: bool = True,
) -> bool:
    """Write a run's status, and why; call it after the last metric. False if it could not be.

    That MLflow has no such run counts as a failure, unless it need not exist.
    """
    if destination is None:
        return True

    def work(client: MlflowClient, where: Destination) -> bool:
        run = find_run(client, where, key)
        if run is None and not must_exist:
            return True
        if run is None:
            raise LookupError(f"no run {key} in experiment {where.experiment}")
        if reason:
            client.set_tag(run.info.run_id, REASON_TAG, tag(reason))
        elif REASON_TAG in run.data.tags:
            client.delete_tag(run.info.run_id, REASON_TAG)
        if status == "RUNNING":
            client.update_run(run.info.run_id, status=status)
        else:
            client.set_terminated(run.info.run_id, status=status)
        return True

    return persist(destination, work, timeout, f"status {status} of {key} not written") or False


def run_url(destination: Destination, run: Run) -> str:
    """Where to look at a run: an address, or what to start first."""
    page = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    if destination.uri.startswith("http"):
        return destination.uri + page
    database = scrub(destination.uri)
    return f"http://127.0.0.1:5000{page} after: mlflow ui --backend-store-uri {database}"


def persist(
    destination: Destination,
    work: Callable[[MlflowClient, Destination], T],
    timeout: float,
    failure: str,
) -> T | None:
    """Do it, again if it fails, for so many seconds; then warn with the last error, and None."""
    end = time.monotonic() + timeout
    pause = 0.5
    while True:
        try:
            return work(connect(destination), destination)
        except Exception as error:  # whatever MLflow or its transport may raise
            if time.monotonic() + pause > end:
                log.warning("MLflow: %s: %s", failure, one_line(error))
                return None
        time.sleep(pause)
        pause *= 2


def one_line(error: BaseException) -> str:
    """An error's message on one line, without secrets."""
    message = scrub(" ".join(str(error).split()))
    return f"{type(error).__name__}: {message[:300]}"
