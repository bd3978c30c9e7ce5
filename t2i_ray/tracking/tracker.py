"""The tracker: what a run measures goes in here, and MLflow shows what is committed of it.

``log`` only appends to the spool. One daemon thread publishes what durable checkpoints cover; an
outage makes it wait and try again, and nothing it meets reaches the training loop.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from t2i_ray.storage import Store
from t2i_ray.tracking.about import About
from t2i_ray.tracking.destination import Destination
from t2i_ray.tracking.publisher import Fenced, Publisher
from t2i_ray.tracking.server import one_line
from t2i_ray.tracking.spool import Spool, unpacked

log = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0  # seconds between two tries in an outage
LONGEST_FLUSH = 10  # times its timeout
LONGEST_PAUSE_AT_THE_END = 2.0  # while someone waits for the last metrics


class Tracker:
    """One attempt of a run, on its rank 0. Its methods never wait for MLflow, save ``flush``.

    A step is the number of updates done, so the checkpoint of step N covers steps 1 to N.

    Args:
        destination: where MLflow is; None: nothing is tracked. Of one that is ``elsewhere``
            nothing is published here: the snapshots hold it all, for the driver to send.
        about: the run and this attempt.
        store: holds the artifacts' bytes.
        snapshot: what ``snapshot`` gave for the checkpoint from which the run resumes.
        owner: whether this attempt is at work; False: what it left behind is being sent.
    """

    def __init__(
        self,
        destination: Destination | None,
        about: About,
        store: Store,
        snapshot: Mapping[str, Any] | None = None,
        owner: bool = True,
    ):
        self._about = about
        self._on = destination is not None
        self._spool = Spool.restore(snapshot["spool"]) if snapshot else Spool()
        self._changed = threading.Condition()
        self._closed = self._fenced = self._flushing = False
        # Importing mlflow takes seconds: not while the worker prepares its first step.
        self._begun = False
        self._outage: float | None = None  # when it began
        self._sends = destination is not None and not destination.elsewhere
        if destination is None:
            return
        if destination.elsewhere:
            log.warning(
                "MLflow: %s: the driver's is not known here; it sends all when the run ends",
                about.name,
            )
            return
        self._publisher = Publisher(
            destination, about, store, self._spool, self._changed, owner=owner
        )
        self._thread = threading.Thread(target=self._publish, name="mlflow", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------- what is measured

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take down values measured after ``step`` updates; costs microseconds."""
        if self._on and values:
            with self._changed:
                self._spool.metrics(step, values, time.time_ns() // 1_000_000)
                self._begin()

    def artifact(self, key: str, path: str) -> None:
        """Show the file under ``key`` in the store, as ``path`` among the run's artifacts."""
        if self._on:
            with self._changed:
                self._spool.artifact(key, path)

    # --------------------------------------------------------------------- what is durable

    def snapshot(self, step: int, held: bool = False) -> dict[str, Any]:
        """What is not published yet, as JSON, for the checkpoint of ``step``.

        Held: ``commit`` will not be called for this checkpoint, but for a later one.
        """
        if not self._on:
            return {}
        with self._changed:
            return {"about": self._about.to_json(), "spool": self._spool.snapshot(step, held)}

    def commit(self, step: int | None = None) -> None:
        """The checkpoint of ``step`` is durable: publish what its snapshot held.

        None: the run is over, publish everything. Raises KeyError if the step had no snapshot.
        """
        if self._on:
            with self._changed:
                self._spool.commit(step)
                self._begun = True
                self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all that is committed is published; whether it is, or is the driver's to do.

        Given up if MLflow answers nothing for so many seconds; a slow one gets LONGEST_FLUSH times
        as many in all.
        """
        if not self._sends:
            return True
        began = time.monotonic()
        with self._changed:
            self._flushing = self._begun = True
            self._changed.notify_all()
            while not (self._fenced or self._publisher.idle()):
                heard = max(began, self._publisher.answered)
                end = min(heard + timeout, began + LONGEST_FLUSH * timeout)
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))
            self._flushing = False
            return not self._fenced and self._publisher.idle()

    @property
    def in_outage(self) -> bool:
        """Whether MLflow failed when it was last spoken to."""
        return self._outage is not None

    @property
    def behind(self) -> tuple[int, float]:
        """Rows that MLflow does not have yet, and for how many seconds it has taken nothing."""
        outage = self._outage
        return len(self._spool), 0.0 if outage is None else time.monotonic() - outage

    def close(self) -> None:
        """End the thread, without a flush; what is left is in the newest snapshot."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._sends:
            self._thread.join(timeout=5)

    # ------------------------------------------------------------------------- the thread

    def _publish(self) -> None:
        pause = 1.0
        while self._wait():
            try:
                self._publisher.round()
            except Fenced as fenced:
                log.warning("MLflow: %s: %s; nothing more is published", self._about.name, fenced)
                with self._changed:
                    self._fenced = True
                    self._changed.notify_all()
                return
            except Exception as error:  # whatever MLflow, its transport or the store may raise
                if self._outage is None:
                    self._outage = time.monotonic()
                    log.warning("MLflow: %s; the metrics wait, the run goes on", one_line(error))
                pause = self._rest(pause)
            else:
                if self._outage is not None:
                    log.warning("MLflow is back after %.0f s", time.monotonic() - self._outage)
                self._outage, pause = None, 1.0
                with self._changed:
                    self._changed.notify_all()

    def _wait(self) -> bool:
        """Until there is something to publish; False if the tracker is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._begun and not self._publisher.idle())
            )
            return not self._closed

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._changed.notify_all()

    def _rest(self, pause: float) -> float:
        """Between two tries; any commit, tag or flush ends it. Returns the next pause."""
        with self._changed:
            longest = LONGEST_PAUSE_AT_THE_END if self._flushing else LONGEST_PAUSE
            self._changed.wait(min(pause, longest) * random.uniform(0.5, 1.0))
        return min(2 * pause, LONGEST_PAUSE)


def sync(
    destination: Destination | None,
    snapshot: Mapping[str, Any],
    store: Store,
    timeout: float,
    attempt: int | None = None,
) -> bool:
    """Publish what a run left behind in its last snapshot; whether all of it is in MLflow.

    What MLflow has already stays as it is. ``attempt`` is the newest that the caller knows of
    (none: the snapshot's own): if MLflow knows of a later one, nothing is sent.
    """
    if not snapshot:
        return True
    if destination and destination.elsewhere:
        return False
    about = About.from_json(snapshot["about"])
    spool = dict(snapshot["spool"])
    if attempt and attempt > about.attempt:  # which may have measured some steps again
        about = replace(about, attempt=attempt)
        spool["base"] = min(unpacked("q", spool["steps"]), default=0) - 1
    tracker = Tracker(destination, about, store, {**snapshot, "spool": spool}, owner=False)
    try:
        return tracker.flush(timeout)
    finally:
        tracker.close()


def add(
    destination: Destination | None,
    snapshot: Mapping[str, Any],
    store: Store,
    rows: Mapping[int, Mapping[str, float]],
    timeout: float,
    attempt: int = 0,
    files: Iterable[str] = (),
) -> bool:
    """Show what was measured on checkpoints afterwards; whether it is all in MLflow.

    What MLflow has of these steps stays as it is.

    Args:
        destination: where to.
        snapshot: a checkpoint's.
        store: of the run.
        rows: step -> what was measured.
        timeout: seconds.
        attempt: the newest that the caller knows of, if it is later than the snapshot's.
        files: paths in the run's folder, shown as artifacts of the same paths.
    """
    if destination is None or not snapshot:
        return True
    if destination.elsewhere:
        return False
    about = About.from_json(snapshot["about"])
    about = replace(about, attempt=max(attempt, about.attempt))
    tracker = Tracker(destination, about, store, owner=False)
    try:
        for step, values in sorted(rows.items()):
            tracker.log(step, values)
        for path in files:
            tracker.artifact(f"runs/{about.name}/{path}", path)
        tracker.commit()
        return tracker.flush(timeout)
    finally:
        tracker.close()
