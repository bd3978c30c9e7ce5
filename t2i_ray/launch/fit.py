"""The workers of one attempt, as its driver sees them, and a wish to stop on its way to them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from t2i_ray.config import Config
from t2i_ray.launch.cluster import worker_environment
from t2i_ray.launch.controller import start_controller
from t2i_ray.runs import read_progress
from t2i_ray.storage import StorageError, Store

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from t2i_ray.launch.controller import TrainController

SILENCE = 30.0  # seconds; rank 0 gives a sign every five


def fit_workers(
    config: Config,
    attempt: int,
    job: dict[str, Any],
    store: Store,
    *,
    controller: ActorHandle[TrainController] | None = None,
    at_work: Callable[[], None] = lambda: None,
    watch: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the workers; how it ended, as a mapping of status, step, reason, published.

    Args:
        config: of the run.
        attempt: its number.
        job: what every worker is given.
        store: the root of the storage.
        controller: one that was started already.
        at_work: called once the workers are, or have ended before anyone saw it: not while they
            start, where they want all cores.
        watch: called again and again until they have ended.
        stopping: whether they were asked to, so that nobody is waited for if none is at work.
    """
    controller = controller or start_controller()
    variables = worker_environment(config)
    reference = controller.fit.remote(config.model_dump(mode="json"), attempt, job, variables)
    signs, told = Signs(store, config.name), False
    try:
        while not ray.wait([reference], timeout=0.2)[0]:
            watch()
            if not told and signs.seen():
                told = True
                at_work()
            if stopping() and signs.lacking():
                return {"status": "KILLED", "reason": "stopped while no worker was at work"}
        ending: dict[str, Any] = ray.get(reference)
    except RayError as error:
        reason = " ".join(str(error).split())[:500]
        return {"status": "FAILED", "reason": f"{type(error).__name__}: {reason}"}
    finally:
        ray.kill(controller)  # it owns the workers
    if not told:
        at_work()
    return ending


class Signs:
    """Those that rank 0 gives of itself, every five seconds; looked for every other second."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._heard: dict[str, Any] | None = None
        self._count = -1  # of new ones: what the first look finds is an earlier attempt's
        self._asked = False
        self._since = self._looked = 0.0

    def seen(self) -> bool:
        """Whether rank 0 has been at work for some seconds."""
        self._look(time.monotonic())
        return self._count >= 2  # the first comes before the first step

    def lacking(self) -> bool:
        """Whether there was none since this was first asked, for SILENCE seconds."""
        now = time.monotonic()
        if not self._asked:
            self._asked, self._since = True, now
        self._look(now)
        return now >= self._since + SILENCE

    def _look(self, now: float) -> None:
        if now < self._looked + 2:
            return
        self._looked = now
        try:
            sign = read_progress(self._store, self._name)
        except StorageError:  # rank 0 may wait for it as well
            self._since = now
            return
        if self._count < 0 or sign != self._heard:
            self._heard, self._since = sign, now
            self._count += 1


class StopOnSignal:
    """SIGTERM and Ctrl-C ask for an orderly end; a second one ends the driver where it stands.

    Args:
        name: of what is to end.
        says: what will happen now.
        ask: called once, in a thread of its own.
    """

    def __init__(self, name: str, says: str, ask: Callable[[], None] = lambda: None) -> None:
        self._line = f"{name}: {{}}: {says}"
        self._ask = ask
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
        print(self._line.format(signal.Signals(number).name), flush=True)
        threading.Thread(target=self._ask, daemon=True).start()
