"""Log lines of a process that works for one run: they begin with its name, as progress does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def lines_of(name: str) -> Iterator[None]:
    """Meanwhile, what this package logs reads ``<name>: warning: ...``, on whatever handlers.

    Ray's workers have handlers of their own, on the terminal and in files; so it is not a
    formatter, but the records themselves that change.
    """
    before = logging.getLogRecordFactory()

    def record(*arguments: Any, **more: Any) -> logging.LogRecord:
        made = before(*arguments, **more)
        if made.name.partition(".")[0] == __package__:
            made.msg = f"{name}: {made.levelname.lower()}: {made.msg}"
        return made

    logging.setLogRecordFactory(record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)
