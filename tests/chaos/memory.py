"""Memory of every process of a site over time, so that one that grows is seen."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import TypedDict

from ray_cluster import below

from chaos.run import Run

EVERY = 1.0  # seconds between two looks


class Series(TypedDict):
    """One process: what it is, and [seconds since the start, MB of its own]."""

    title: str
    points: list[tuple[float, float]]


class Watch:
    """Looks at a run's processes in the background, as long as the context lasts.

    MB are those of RssAnon: what a process shares with others, as libraries, does not count.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._done, self._began = run, threading.Event(), time.monotonic()
        self._seen: dict[int, Series] = {}
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def series(self) -> list[Series]:
        """One a process, in the order in which they were first seen."""
        return list(self._seen.values())

    def _look(self) -> None:
        while not self._done.wait(EVERY):
            now = round(time.monotonic() - self._began, 1)
            for pid in self._processes():
                with contextlib.suppress(OSError, StopIteration):  # it has ended
                    series = self._seen.setdefault(pid, {"title": title_of(pid), "points": []})
                    series["points"].append((now, _own(pid)))

    def _processes(self) -> list[int]:
        site = self._run.site
        cluster = site.cluster
        roots = [node.process.pid for node in [*cluster.nodes, cluster.head] if node]
        roots += [driver.pid for driver in self._run.drivers]
        return [pid for root in roots for pid in (root, *below(root))]


def title_of(pid: int) -> str:
    """What a process is: Ray's title of it, or the program that it runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if words[0].startswith("ray::"):
        return words[0].split()[0].partition(".")[0]
    if "python" not in Path(words[0]).name:
        return Path(words[0]).name
    return " ".join(Path(word).name for word in words[1:4])


def _own(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(each for each in lines if "RssAnon" in each).split()[1]) / 1024, 1)


def table(series: list[Series], least: float = 60) -> str:
    """Of each kind of process that lived so many seconds: MB after its start and at its end.

    Each is a mean of a tenth of its life, the first after a fifth of it. As markdown; of several
    processes of one kind, that which grew most.
    """
    rows: dict[str, tuple[float, float, float]] = {}
    for each in series:
        times, sizes = zip(*each["points"], strict=True) if each["points"] else ((), ())
        if not times or times[-1] - times[0] < least:
            continue
        tenth = max(len(sizes) // 10, 1)
        start, end = mean(sizes[2 * tenth : 3 * tenth]), mean(sizes[-tenth:])
        old = rows.get(each["title"])
        if old is None or end - start > old[2] - old[1]:
            rows[each["title"]] = (times[-1] - times[0], start, end)
    lines = ["| process | seconds | MB at first | MB at last |", "|---|---|---|---|"]
    lines += [
        f"| {title} | {life:.0f} | {start:.1f} | {end:.1f} |"
        for title, (life, start, end) in sorted(rows.items())
    ]
    return "\n".join(lines)
