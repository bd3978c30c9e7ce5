"""The far end of the spool: one attempt's conversation with MLflow."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from t2i_ray.storage import MissingKey, Store
from t2i_ray.storage.scratch import scratch
from t2i_ray.tracking.about import ATTEMPT_TAG, STEP_TAG, About, Dataset, cut, tag
from t2i_ray.tracking.destination import Destination
from t2i_ray.tracking.server import connect, ensure_run
from t2i_ray.tracking.spool import Artifact, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

log = logging.getLogger(__name__)

METRICS_PER_CALL = 1000  # MLflow's limits
PARAMS_PER_CALL = 100
FENCE_SECONDS = 30.0  # how often a long round looks for a later attempt


class Fenced(Exception):  # noqa: N818 - not a fault, but the end of this attempt's publishing
    """A later attempt of the run has taken over."""


class Noting:
    """A client of MLflow that notes each answer."""

    def __init__(self, client: MlflowClient, note: Callable[[], None]) -> None:
        self._client, self._note = client, note

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            answer = method(*arguments, **named)
            self._note()
            return answer

        return noted


class Publisher:
    """Sends what is committed, in rounds. Used by one thread; ``lock`` guards the spool.

    Args:
        destination: where to.
        about: the run.
        store: holds the artifacts' bytes.
        spool: what to publish.
        lock: notified when something was sent.
        owner: whether this attempt is at work, so that the run is RUNNING and its tags are this
            attempt's; else only what MLflow lacks is added.
    """

    def __init__(
        self,
        destination: Destination,
        about: About,
        store: Store,
        spool: Spool,
        lock: threading.Condition,
        owner: bool = True,
    ):
        self._destination = destination
        self._about = about
        self._store = store
        self._spool = spool
        self._lock = lock
        self._owner = owner
        self._client: Any = None
        self.answered = 0.0  # when MLflow last did, by the monotonic clock
        self._run_id: str | None = None
        self._described = False
        self._fence_time = 0.0
        self._step = 0  # up to which MLflow's history is committed
        self._have: set[tuple[str, int]] | None = None  # (metric, step) to leave as they are

    def idle(self) -> bool:
        """Whether nothing is left to send. The caller holds the lock."""
        return self._run_id is not None and self._described and self._spool.empty()

    def round(self) -> None:
        """Send all there is. Metrics come before files, whose store may be away by itself.

        Raises:
            Fenced: a later attempt is at work; this one must never publish again.
            Exception: anything that MLflow or the store may raise; what was sent is noted, and
                the next round looks for the run anew.
        """
        try:
            if self._run_id is None:
                self._connect()
            self._check_fence()
            self._send_metrics()
            self._send_files()
        except BaseException:
            self._run_id = None
            raise

    def _note(self) -> None:
        self.answered = time.monotonic()

    # ------------------------------------------------------------------------- the run

    def _connect(self) -> None:
        self._client = Noting(connect(self._destination), self._note)
        run = ensure_run(self._client, self._destination, self._about)
        run_id = run.info.run_id
        self._refuse_if_late(run)
        self._step = int(run.data.tags.get(STEP_TAG, 0))
        if self._have is None:
            self._have = self._published_already(run)
        tags = {ATTEMPT_TAG: str(self._about.attempt), **self._about.tags}
        if not self._owner:
            tags = {name: value for name, value in tags.items() if name not in run.data.tags}
        self._set_tags(run_id, tags)
        self._send_params(run)
        if self._about.dataset:
            self._client.log_inputs(run_id, [_dataset_input(self._about.dataset)])
        if self._owner and run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def _check_fence(self) -> None:
        run = self._client.get_run(self._run_id)
        self._refuse_if_late(run)
        # Another process may have published more of the same attempt by now.
        self._step = max(self._step, int(run.data.tags.get(STEP_TAG, 0)))

    def _refuse_if_late(self, run: Run) -> None:
        newest = int(run.data.tags.get(ATTEMPT_TAG, 0))
        if newest > self._about.attempt:
            raise Fenced(f"attempt {newest} has taken over from attempt {self._about.attempt}")
        self._fence_time = time.monotonic()

    def _published_already(self, run: Run) -> set[tuple[str, int]]:
        """What MLflow has, if an attempt that was ahead of our checkpoint has published it.

        So it is after a checkpoint turned out damaged, or after a run that failed between two
        checkpoints was started again. Usually it is not, and no history is read.
        """
        with self._lock:
            base = self._spool.base
            if base is None or self._step <= base:
                self._spool.base = None
                return set()
        log.info("MLflow has steps %d to %d: they stay as they are", base + 1, self._step)
        have: set[tuple[str, int]] = set()
        for key in run.data.metrics:  # all: who begins anew has yet to log most of them
            history = self._client.get_metric_history(run.info.run_id, key)
            have.update((key, metric.step) for metric in history if metric.step > base)
        return have

    def _send_params(self, run: Run) -> None:
        """MLflow's params are for ever, so a later attempt's other values go into a tag."""
        from mlflow.entities import Param

        old = run.data.params
        new = [Param(k, v) for k, v in self._about.params.items() if k not in old]
        for start in range(0, len(new), PARAMS_PER_CALL):
            part = new[start : start + PARAMS_PER_CALL]
            self._client.log_batch(run.info.run_id, params=part)
        other = [f"{k}={v}" for k, v in self._about.params.items() if old.get(k, v) != v]
        if other and self._owner:
            name = f"t2i_ray.attempt.{self._about.attempt}.params"
            self._set_tags(run.info.run_id, {name: tag("; ".join(other))})

    # ----------------------------------------------------------------------- the spool

    def _set_tags(self, run_id: str | None, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        while True:
            with self._lock:
                points, rows = self._spool.pending(METRICS_PER_CALL)
                step = self._spool.step
            if not rows:
                return
            if time.monotonic() > self._fence_time + FENCE_SECONDS:
                self._check_fence()
            if step > self._step:  # first: whoever resumes before this step must know
                self._set_tags(self._run_id, {STEP_TAG: str(step)})
                self._step = step
            metrics = [
                Metric(point.key, point.value, point.time, point.step)
                for point in points
                if (point.key, point.step) not in (self._have or ())
            ]
            for start in range(0, len(metrics), METRICS_PER_CALL):
                part = metrics[start : start + METRICS_PER_CALL]
                self._client.log_batch(self._run_id, metrics=part)
            with self._lock:
                self._spool.done(rows)
                self._lock.notify_all()

    def _send_files(self) -> None:
        if not self._described:
            for path, text in self._about.texts.items():
                self._send_file(path, text.encode())
            self._described = True
        while True:
            with self._lock:
                artifact = self._spool.pending_artifact()
            if artifact is None:
                return
            self._send_artifact(artifact)
            with self._lock:
                self._spool.done_artifact()
                self._lock.notify_all()

    def _send_artifact(self, artifact: Artifact) -> None:
        try:
            data = self._store.read(artifact.key)
        except MissingKey:
            log.warning("MLflow: %s is not in the store; it is left out", artifact.key)
            return
        self._send_file(artifact.path, data)

    def _send_file(self, name: str, data: bytes) -> None:
        path = PurePosixPath(name)
        folder = None if path.parent == PurePosixPath() else str(path.parent)
        with scratch() as place:
            file = place / path.name
            file.write_bytes(data)
            self._client.log_artifact(self._run_id, str(file), folder)


def _dataset_input(dataset: Dataset) -> DatasetInput:
    """MLflow's entity, made from what is known: the data is not read."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    scheme = dataset.uri.partition("://")[0] if "://" in dataset.uri else "local"
    entity = Entity(
        name=cut(dataset.name, 500),
        digest=dataset.digest[:36],  # MLflow takes no more
        source_type=scheme,
        source=json.dumps({"uri": dataset.uri}),
    )
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])
