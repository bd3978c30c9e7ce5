"""Temporary folders, none of which a killed process leaves for good."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX, NEW = "t2i_ray-", "new-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder. Those of processes that were killed are removed first.

    Whoever made one holds its lock as long as it lives.
    """
    for other in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), _locked(other):  # else in use, or another user's
            shutil.rmtree(other)
    made = Path(tempfile.mkdtemp(prefix=NEW + PREFIX))
    with _locked(made):  # and only then found by others
        folder = made.rename(made.with_name(made.name.removeprefix(NEW)))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError at once if somebody else holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
