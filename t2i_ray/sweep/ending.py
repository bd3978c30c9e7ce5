"""A wish to end a sweep, on its way to the trials: they save, and the sweep can go on later."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from t2i_ray.runs import request_stop
from t2i_ray.storage import StorageError, Store

LAST_WORDS = 60  # seconds that a stopped trial may take to leave storage and MLflow in order


class Ending:
    """The wish, and how far it got.

    Attributes:
        running: names of the runs at work, by Tune's id of the trial; one that waits is not.
        asked: no task is given out any more, and no plan hears that one has ended.
        overdue: the trials had their time; they may be ended where they stand.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.running: dict[str, str] = {}
        self.asked = threading.Event()
        self.overdue = threading.Event()

    def ask(self) -> None:
        """Ask every run at work to save and leave, until all have, or their time is over."""
        self.asked.set()
        end = time.monotonic() + LAST_WORDS
        try:
            while self.running and time.monotonic() < end:
                # Again and again: one that was about to begin would not have heard.
                for name in list(self.running.values()):
                    with suppress(StorageError):
                        request_stop(self._store, name)
                time.sleep(1)
        finally:
            self.overdue.set()
