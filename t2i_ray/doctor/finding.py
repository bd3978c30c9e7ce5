"""One thing that was looked at, and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from t2i_ray.config import UserError
from t2i_ray.storage import StorageError
from t2i_ray.tracking import scrub

State = Literal["ok", "warning", "failed"]
DRIVER = "driver"


@dataclass(frozen=True)
class Finding:
    """A row of the table."""

    check: str
    where: str  # driver, or a node's address
    state: State
    found: str
    remedy: str = ""
    weight: float = 0.0  # of several that are well, the one with the largest is shown


def refused(check: str, where: str, error: BaseException) -> Finding:
    """What an error tells: ours end with the remedy, behind a semicolon."""
    text = scrub(" ".join(str(error).split()))
    if isinstance(error, UserError | StorageError):
        found, _, remedy = text.partition("; ")
        return Finding(check, where, "failed", found[:400], remedy)
    return Finding(check, where, "failed", f"{type(error).__name__}: {text[:300]}")


class Aside:
    """A check in a thread of its own, for what may hang: it is left behind then."""

    def __init__(self, check: str, look: Callable[[], Finding], where: str = DRIVER) -> None:
        self.check, self._look, self._where = check, look, where
        self._finding: Finding | None = None
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=check, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._finding = self._look()
        except Exception as error:
            self._finding = refused(self.check, self._where, error)

    def finding(self, until: float) -> Finding:
        """What was found, or that there was no answer by then (of time.monotonic)."""
        self._thread.join(max(0.0, until - time.monotonic()))
        seconds = time.monotonic() - self._begun
        return self._finding or unanswered(self.check, self._where, seconds)


def unanswered(check: str, where: str, seconds: float) -> Finding:
    """It did not come to an end."""
    return Finding(
        check,
        where,
        "failed",
        f"no answer in {seconds:.0f} s",
        "look whether it is reachable from there, or give doctor more time by --timeout",
    )
