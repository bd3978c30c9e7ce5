"""Between the training loop and the world: requests to stop, and where the run stands."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from contextlib import suppress

from t2i_ray.claims import Superseded
from t2i_ray.runs import now
from t2i_ray.storage import StorageError, Store

log = logging.getLogger(__name__)


class Pulse:
    """A thread that looks for a stop request and says where the run stands."""

    def __init__(self, store: Store, step: int) -> None:
        self.stop_requested = False
        self.superseded: str | None = None  # who has taken over, once that is known
        self.step = step
        self.images_per_second = 0.0
        self._store = store
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        beats = 0
        while not self._closing.wait(0.5):
            try:
                self.stop_requested = self.stop_requested or self._store.exists("stop")
                if beats % 10 == 0:
                    self._tell()
            except Superseded as why:
                self.superseded, self.stop_requested = str(why), True
                return
            except Exception as error:  # a store that is away for a while must not end training
                log.warning("storage did not answer: %s", error)
                self._closing.wait(5)
            beats += 1

    def _tell(self) -> None:
        progress = {
            "step": self.step,
            "time": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "images_per_second": round(self.images_per_second, 1),
        }
        self._store.write("progress.json", json.dumps(progress).encode())

    def close(self) -> None:
        """End the thread after a last word."""
        self._closing.set()
        self._thread.join(timeout=10)
        with suppress(StorageError, Superseded):
            self._tell()
