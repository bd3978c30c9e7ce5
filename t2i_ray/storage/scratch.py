"""Temporary folders, none of which a killed process leaves for good.

They lie where anybody's files may lie, in the system's temporary folder:

    t2i_ray-scratch-<32 hex digits>        a folder
    t2i_ray-scratch-<32 hex digits>.lock   made before it, locked by its maker, removed after it

Nothing else is ever removed, whatever it is called: a folder goes only with its lock, if that is
this user's and nobody holds it. So there is no moment at which a kill leaves one without the other
that says whose it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_PREFIX = "t2i_ray-scratch-"
_LOCK = re.compile(_PREFIX + r"[0-9a-f]{32}\.lock")


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder. Those of processes that were killed are removed first.

    Whoever made one holds its lock as long as it lives.

    Raises:
        OSError: none can be made.
    """
    place = Path(tempfile.gettempdir())
    for lock in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, or gone meanwhile
            _clean(lock)
    with _new_lock(place) as lock:
        folder = lock.with_suffix("")
        folder.mkdir(0o700)
        try:
            yield folder
        finally:
            with suppress(OSError):  # the next one tries again
                _remove(lock)


def _clean(lock: Path) -> None:
    """Remove what a killed process of this user has left. Raises OSError: it is alive."""
    if _LOCK.fullmatch(lock.name) and _is_own(lock, stat.S_ISREG):
        with _held(lock):
            folder = lock.with_suffix("")
            if not os.path.lexists(folder) or _is_own(folder, stat.S_ISDIR):
                _remove(lock)


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    found = path.lstat()
    return is_kind(found.st_mode) and found.st_uid == os.geteuid()


def _remove(lock: Path) -> None:
    """The folder, then its lock, which must be held. Raises OSError: not all of it."""
    folder = lock.with_suffix("")
    if os.path.lexists(folder):
        shutil.rmtree(folder)
    lock.unlink(missing_ok=True)


@contextmanager
def _new_lock(place: Path) -> Iterator[Path]:
    while True:
        lock = place / f"{_PREFIX}{uuid.uuid4().hex}.lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(_held(lock, os.O_CREAT | os.O_EXCL))
            except BlockingIOError:  # whoever cleans was faster, and took it for a killed one's
                continue
            yield lock
            return


@contextmanager
def _held(lock: Path, flags: int = 0) -> Iterator[None]:
    """Raises BlockingIOError at once if somebody else holds it, or has removed it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.lexists(lock):
            raise BlockingIOError(f"{lock} was removed")
        yield
    finally:
        os.close(descriptor)
