"""Who is at work on a run: a lease for its driver, and fencing numbers for all that writes.

    <run>/claims/000003       attempt 3 was begun, by whoever created this key: one of many callers
    <run>/claims/000003.0002  the second rank 0 of that attempt, after its workers were restarted
    <run>/lease.json          where the driver is, and when it last said so

The highest claim is at work; whoever has a lower one finds that out before its next write. Creating
a key that must not exist is all that storage has to know (If-None-Match on S3). There is a moment
between looking and writing: a process that stops right in it, for longer than a lease lasts, may
write once more when it wakes. On storage, that is what its successor writes too (a run's files
depend on config and seed alone); to MLflow, it commits nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from t2i_ray.config import UserError
from t2i_ray.storage import StorageError, Store

LASTS = 60.0  # seconds that a lease lasts after it was renewed
RENEWED_EVERY = 10.0
LEASE_KEY = "lease.json"


class Superseded(Exception):  # noqa: N818 - not a fault, but the end of one's work
    """Somebody else has taken over; nothing may be written any more."""


class Number(NamedTuple):
    """A claim: of an attempt's driver (term 0), or of its rank 0 after so many starts."""

    attempt: int
    term: int = 0

    @property
    def key(self) -> str:
        """Where it is created."""
        return f"claims/{self.attempt:06d}" + (f".{self.term:04d}" if self.term else "")


def newest(place: Store) -> Number:
    """The highest claim of a run; attempt 0 if there is none."""
    found = [Number(0)]
    for key in place.list("claims"):
        attempt, _, term = key.removeprefix("claims/").partition(".")
        if attempt.isdigit() and (term.isdigit() or not term):
            found.append(Number(int(attempt), int(term or 0)))
    return max(found)


def check(place: Store, own: Number) -> None:
    """Raises Superseded if there is a higher claim; of a driver, if there is a later attempt."""
    highest = newest(place)
    if highest.attempt > own.attempt:
        raise Superseded(f"attempt {highest.attempt} has taken over from attempt {own.attempt}")
    if own.term and highest > own:
        raise Superseded(
            f"attempt {own.attempt} was started again, and its new workers have taken over"
        )


def claim_term(place: Store, attempt: int) -> Number:
    """For a rank 0 that starts: all before it may write no more. Raises Superseded."""
    while True:
        highest = newest(place)
        own = Number(attempt, highest.term + 1 if highest.attempt == attempt else 1)
        check(place, Number(attempt))
        if place.create(own.key, _encoded(Process.this())):
            check(place, own)
            return own


def claim_attempt(place: Store, name: str, after: int = 0, patience: float = 0) -> int:
    """For a driver that starts: the number of its attempt, once nobody else is at work.

    A driver that was killed on this machine is known to be gone; one elsewhere is waited for until
    its lease has run out.

    Args:
        place: the run's part of the storage.
        name: of the run, for what is said.
        after: the last attempt that is known.
        patience: seconds to wait for a driver that is alive.

    Raises:
        UserError: another driver is at work, or has just begun.
    """
    number = Number(max(wait_for_others(place, name, patience), after) + 1)
    created = place.create(number.key, _encoded(Process.this()))
    if not created or newest(place).attempt > number.attempt:
        raise UserError(
            f"name={name!r}: another driver has just begun this; leave it to that one, or take "
            "another name"
        )
    place.write(LEASE_KEY, _encoded(Process.this(), attempt=number.attempt))
    return number.attempt


def wait_for_others(place: Store, name: str, patience: float = 0) -> int:
    """Until no other driver is at work; the newest attempt then. Nothing is written.

    Args:
        place: the run's part of the storage.
        name: of the run, for messages.
        patience: seconds to wait for one that is known to be at work.

    Raises:
        UserError: one is at work.
    """
    began, first = time.monotonic(), None
    while True:
        claim = newest(place)
        holder = _holder(place, claim)
        if holder is None:
            return claim.attempt
        waited = time.monotonic() - began
        alive = holder.is_here or (first is not None and holder.time != first.time)
        if alive and waited >= patience:
            raise UserError(
                f"name={name!r}: {holder} is at work on it; leave it to that one, stop it there "
                "(Ctrl-C), or take another name"
            )
        if not alive and waited >= LASTS:  # whatever its clock says
            return claim.attempt
        if first is None:
            first, longest = holder, patience if alive else LASTS - holder.age
            print(f"{name}: waits up to {longest:.0f} s for {holder} to be gone", flush=True)
        time.sleep(0.5)


def _holder(place: Store, claim: Number) -> Process | None:
    """The driver that may be at work: not this process, not known to be gone, lease not over."""
    lease = _read(place, LEASE_KEY)
    if lease.get("attempt") != claim.attempt:  # begun this very moment
        lease = _read(place, claim._replace(term=0).key)
    holder = Process.parse(lease)
    if holder is None or lease.get("released") or holder.same(Process.this()):
        return None
    if holder.machine == _machine() and _started(os.getpid()):  # else processes can't be seen
        return holder if holder.is_here else None
    return holder if holder.age < LASTS else None


def lease_time(place: Store) -> str:
    """When the driver last said that it is at work; empty: never."""
    return str(_read(place, LEASE_KEY).get("time", ""))


class Lease:
    """A driver's sign of life, renewed by a thread until it is released.

    Args:
        place: the run's part of the storage.
        attempt: which the driver has claimed.
    """

    def __init__(self, place: Store, attempt: int) -> None:
        self._place, self._number = place, Number(attempt)
        self._over = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self._say(released=True)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_EVERY):
            self._say()

    def _say(self, **more: bool) -> None:
        """Unless somebody has taken over."""
        try:
            check(self._place, self._number)
            document = _encoded(Process.this(), attempt=self._number.attempt, **more)
            self._place.write(LEASE_KEY, document)
            self._warned = False
        except Superseded:
            self._over.set()
        except StorageError as error:
            if not self._warned:
                print(f"warning: the lease was not renewed, trying on: {error}", flush=True)
            self._warned = True


# --------------------------------------------------------------------------------- processes


class Process(NamedTuple):
    """A process, so that it can be known again, and when it gave a sign."""

    host: str
    pid: int
    machine: str  # where process numbers mean the same
    started: str  # in the kernel's own count
    time: str  # ISO 8601

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def this(cls) -> Process:
        """The one that asks, now."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), _machine(), _started(os.getpid()), time)

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Process | None:
        """As it was written; None: that is no process."""
        try:
            found = cls(**{name: document[name] for name in cls._fields})
            return found if found.age is not None and found.pid > 0 else None
        except (KeyError, TypeError, ValueError):
            return None

    def same(self, other: Process) -> bool:
        """Whether it is the same process."""
        return self[:4] == other[:4]

    @property
    def is_here(self) -> bool:
        """Whether it is known to be alive, on this machine."""
        return self.machine == _machine() and self.started == _started(self.pid) != ""

    @property
    def age(self) -> float:
        """Seconds since it last gave a sign."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.time)).total_seconds()


def _machine() -> str:
    """The boot of the kernel, and the namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """When a process began; empty: there is none, or no /proc that shows it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _read(place: Store, key: str) -> dict[str, Any]:
    try:
        document = place.read_json(key, {})
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _encoded(process: Process, **more: Any) -> bytes:
    return (json.dumps({**process._asdict(), **more}) + "\n").encode()
