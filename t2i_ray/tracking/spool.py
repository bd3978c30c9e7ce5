"""Metrics and artifacts on their way to MLflow, in the order in which they were measured.

The spool knows which of its entries a durable checkpoint covers, not by their steps but by what
the snapshot inside that checkpoint held: an evaluation logged after the snapshot waits for the
next one, whatever its step. Nothing here knows MLflow, reads a clock or does I/O.
"""

from __future__ import annotations

import math
import posixpath
import re
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One value of one metric. ``time`` is in milliseconds since 1970."""

    key: str
    value: float
    time: int
    step: int


class Artifact(NamedTuple):
    """A file to show in MLflow: its key in the store, and its path among the artifacts."""

    key: str
    path: str


class _Mark(NamedTuple):
    """A place in the history: so many rows and artifacts lie before it."""

    rows: int
    artifacts: int


class Spool:
    """A queue of rows (step, time, values by name), held in columns: 8 bytes a value.

    Args:
        step: the checkpoint from which the run goes on; 0 for a new run.
    """

    def __init__(self, step: int = 0):
        self.step = step  # the newest step that is committed
        # Rows after this step may be in MLflow already, from an attempt that was ahead of the
        # checkpoint from which this one resumed. None: known not to be so.
        self.base: int | None = step
        self._names: list[tuple[str, ...]] = []  # every combination of names met so far
        self._kind_of: dict[tuple[str, ...], int] = {}  # names as logged -> index into _names
        self._steps = array("q")
        self._times = array("q")
        self._kinds = array("q")
        self._values = array("d")
        self._artifacts: list[Artifact] = []
        self._gone = _Mark(0, 0)  # published and dropped
        self._committed = _Mark(0, 0)
        self._snapshots: dict[int, _Mark] = {}

    # ------------------------------------------------------------------------- filling

    def metrics(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """Append one row. NaN stays NaN; infinity becomes the largest double, as in MLflow."""
        names = tuple(values)
        kind = self._kind_of.get(names)
        if kind is None:
            kind = self._kind_of[names] = self._add_names(tuple(map(metric_name, names)))
        row = [finite(float(value)) for value in values.values()]  # first: it may raise
        self._steps.append(step)
        self._times.append(time_ms)
        self._kinds.append(kind)
        self._values.extend(row)

    def artifact(self, key: str, path: str) -> None:
        """Append a file that lies in the store under ``key``."""
        self._artifacts.append(Artifact(key, path))

    def _add_names(self, names: tuple[str, ...]) -> int:
        self._names.append(names)
        return len(self._names) - 1

    # ---------------------------------------------------------------------- committing

    def snapshot(self, step: int, held: bool = False) -> dict[str, Any]:
        """Everything not known to be published, as JSON for the checkpoint of ``step``.

        Held: that checkpoint being durable commits nothing, since the run may go back behind it.
        """
        self._snapshots[step] = self._end()
        rows, artifacts = (a - b for a, b in zip(self._committed, self._gone, strict=True))
        committed = {"step": self.step, "rows": rows, "artifacts": artifacts}
        return {
            **({"committed": committed} if held else {}),
            "step": step,
            "base": self.base,
            "names": [list(names) for names in self._names],
            "steps": packed(self._steps),
            "times": packed(self._times),
            "kinds": packed(self._kinds),
            "values": packed(self._values),
            "artifacts": [list(artifact) for artifact in self._artifacts],
        }

    @classmethod
    def restore(cls, document: Mapping[str, Any]) -> Spool:
        """The spool of a checkpoint that was loaded, hence durable: all not held is committed."""
        spool = cls(document["step"])
        if document["base"] is not None:
            spool.base = document["base"]
        spool._names = [tuple(names) for names in document["names"]]
        spool._kind_of = {names: kind for kind, names in enumerate(spool._names)}
        spool._steps = unpacked("q", document["steps"])
        spool._times = unpacked("q", document["times"])
        spool._kinds = unpacked("q", document["kinds"])
        spool._values = unpacked("d", document["values"])
        spool._artifacts = [Artifact(key, path) for key, path in document["artifacts"]]
        spool._committed = spool._end()
        if held := document.get("committed"):
            spool.step = held["step"]
            spool._committed = _Mark(held["rows"], held["artifacts"])
        return spool

    def commit(self, step: int | None = None) -> None:
        """The checkpoint of ``step`` is durable: what its snapshot held may be published.

        None: the run is over, and everything may be. A step that an earlier call covered changes
        nothing. Raises KeyError if there was no snapshot of the step.
        """
        if step is None:
            self._committed = self._end()
            self.step = max(self.step, max(self._steps, default=0))
        elif step > self.step:
            self._committed = self._snapshots[step]
            self.step = step
        self._snapshots = {s: mark for s, mark in self._snapshots.items() if s > self.step}

    def _end(self) -> _Mark:
        return _Mark(
            self._gone.rows + len(self._steps), self._gone.artifacts + len(self._artifacts)
        )

    # ---------------------------------------------------------------------- publishing

    def pending(self, limit: int = 1000) -> tuple[list[Point], int]:
        """The oldest committed rows as points, and how many rows these are.

        They hold at most ``limit`` points, except that there is at least one row if there is any.
        """
        points: list[Point] = []
        rows = place = 0
        for rows in range(self._committed.rows - self._gone.rows):
            names = self._names[self._kinds[rows]]
            if points and len(points) + len(names) > limit:
                return points, rows
            step, time = self._steps[rows], self._times[rows]
            values = self._values[place : place + len(names)]
            points += [Point(n, v, time, step) for n, v in zip(names, values, strict=True)]
            place += len(names)
        return points, self._committed.rows - self._gone.rows

    def done(self, rows: int) -> None:
        """Drop the oldest rows: they are published."""
        values = sum(len(self._names[kind]) for kind in self._kinds[:rows])
        del self._steps[:rows], self._times[:rows], self._kinds[:rows], self._values[:values]
        self._gone = self._gone._replace(rows=self._gone.rows + rows)

    def pending_artifact(self) -> Artifact | None:
        """The oldest committed artifact."""
        return self._artifacts[0] if self._committed.artifacts > self._gone.artifacts else None

    def done_artifact(self) -> None:
        """Drop the oldest artifact: it is published."""
        del self._artifacts[0]
        self._gone = self._gone._replace(artifacts=self._gone.artifacts + 1)

    def __len__(self) -> int:
        """Rows that are not known to be published."""
        return len(self._steps)

    def empty(self) -> bool:
        """Whether everything that is committed is published."""
        return self._committed == self._gone


def packed(column: array[Any]) -> str:
    """A column as text for JSON: base64 of its 8 bytes a value.

    Training stands still meanwhile, at each checkpoint, and in a long outage a column has millions
    of values: as decimals they would take twenty times as long.
    """
    return b64encode(column.tobytes()).decode()


def unpacked(kind: str, column: str | list[Any]) -> array[Any]:
    """The inverse of packed; also of the lists of numbers that former versions wrote."""
    if isinstance(column, str):
        return array(kind, b64decode(column))
    return array(kind, [math.nan if value is None else value for value in column])


def finite(value: float) -> float:
    """The number that MLflow's SQL store keeps: it has no infinity, but it has NaN.

    Done here, so that a row sent twice compares equal in every kind of store.
    """
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


def metric_name(name: str) -> str:
    """The nearest name that MLflow accepts: one bad name must not hold up all the others."""
    clean = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name))[:249].strip("/")
    return f"_{clean}" if clean.startswith(".") else clean
