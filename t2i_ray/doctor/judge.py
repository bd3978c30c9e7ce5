"""What the nodes say about themselves, compared with the driver and with what a run needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import ray

from t2i_ray.config import Config
from t2i_ray.doctor.finding import DRIVER, Finding
from t2i_ray.doctor.node import About, Disk
from t2i_ray.doctor.nodes import Place
from t2i_ray.launch import START_WITH_TOKEN, shortfalls

GB = 1e9
SLOW = 100e6  # bytes a second: less than a gigabit line gives
ROOM, FULL = 1.0, 0.95  # GB under which nothing works; share from which Ray makes no objects
SKEW, LOST = 2.0, 60.0  # seconds between clocks that mislead, and that break things


def resources(config: Config, places: list[Place]) -> Iterator[Finding]:
    """Whether the workers find room."""
    short = False
    for problem, final in shortfalls(config):
        found, _, remedy = problem.partition("; ")
        short = True
        more = "" if final else ", or wait until it has grown"
        yield Finding("resources", DRIVER, "failed" if final else "warning", found, remedy + more)
    if not short:
        have, cluster = ray.cluster_resources(), config.cluster
        each = "a GPU" if cluster.gpu else f"{cluster.threads} CPU{'s' * (cluster.threads > 1)}"
        to = f" to {cluster.workers}" if cluster.min_workers else ""
        yield Finding(
            "resources", DRIVER, "ok",
            f"{cluster.fewest}{to} workers with {each} each; {have.get('CPU', 0):g} CPUs and "
            f"{have.get('GPU', 0):g} GPUs on {len(places)} nodes",
        )  # fmt: skip


def versions(where: str, there: Mapping[str, str], here: Mapping[str, str]) -> Finding:
    """The same as on the driver, or not."""
    different = [
        f"{name} {there.get(name)} (driver {version})"
        for name, version in here.items()
        if there.get(name) != version
    ]
    if different:
        remedy = "run the driver and every node from the same image or environment"
        return Finding("versions", where, "failed", ", ".join(different), remedy)
    return Finding("versions", where, "ok", ", ".join(f"{n} {v}" for n, v in there.items()))


def auth(where: str, there: About) -> Finding:
    """Whether whoever reaches the node needs a token: without one, he may run any code there."""
    if there.auth:
        return Finding("token", where, "ok", "asked for")
    local = where.startswith("127.")
    found = "not asked for" + (" (on loopback)" if local else ": whoever reaches it runs any code")
    return Finding("token", where, "warning" if local else "failed", found, START_WITH_TOKEN)


def head(where: str, refuses: bool | None) -> Finding:
    """What the head does without a token, by trying."""
    if refuses:
        return Finding("token", DRIVER, "ok", "the head refuses whoever has none")
    if refuses is None:
        found = "sent; whether the head wants it is not known: it has TLS, or did not answer"
        return Finding("token", DRIVER, "ok", found)
    found = f"the head at {where} answers without one"
    if where.startswith("127."):
        return Finding("token", DRIVER, "warning", found + " (on loopback)", START_WITH_TOKEN)
    return Finding("token", DRIVER, "failed", found, START_WITH_TOKEN)


def gpus(config: Config, place: Place, there: About) -> Finding:
    """What Ray counts against what the driver of the card lists."""
    listed, counted = len(there.gpus), int(place.gpus)
    names = ", ".join(dict.fromkeys(there.gpus)) or "none"
    if counted > listed:
        return Finding(
            "GPUs", place.where, "failed", f"Ray counts {counted}, nvidia-smi lists {listed}",
            "mend the NVIDIA driver or the container's runtime, or start Ray with --num-gpus",
        )  # fmt: skip
    if listed > counted:
        return Finding(
            "GPUs", place.where, "warning", f"nvidia-smi lists {listed}, Ray counts {counted}",
            "start Ray there with --num-gpus, unless they are kept for others",
        )  # fmt: skip
    if counted and not config.cluster.gpu:
        remedy = "set cluster.gpu=true to use them"
        return Finding("GPUs", place.where, "warning", f"{names}; the run is on CPUs", remedy)
    return Finding("GPUs", place.where, "ok", names)


def room(where: str, disk: Disk) -> Finding:
    """Room in a folder."""
    free, used = disk.free / GB, 1 - disk.free / disk.total
    found = f"{disk.folder}: {free:.1f} of {disk.total / GB:.0f} GB are free"
    if free < ROOM:
        remedy = "make room, or set TMPDIR, ray start --temp-dir and T2I_RAY_CACHE to a larger disk"
        return Finding("disk", where, "failed", found, remedy)
    if used > FULL:
        remedy = "make room: Ray makes no new objects on a disk that is 95 % full"
        return Finding("disk", where, "warning", found, remedy)
    return Finding("disk", where, "ok", found, weight=used)


def clock(where: str, ask: Callable[[], tuple[float, float, float]], tries: int = 5) -> Finding:
    """How far a node's clock is from the driver's, by Cristian's method.

    ``ask`` gives our clock before, the node's, and ours after; the quickest answer counts.
    """
    before, there, after = min((ask() for _ in range(tries)), key=lambda each: each[2] - each[0])
    skew, unsure = there - (before + after) / 2, (after - before) / 2
    found = f"{skew:+.3f} s from the driver's (to {unsure:.3f} s)"
    if abs(skew) - unsure > SKEW:
        state, remedy = ("failed" if abs(skew) > LOST else "warning"), "set it right (NTP)"
        return Finding("clock", where, "failed" if state == "failed" else "warning", found, remedy)
    return Finding("clock", where, "ok", found, weight=abs(skew))


def line(found: str, speed: float) -> Finding:
    """Whether the workers' line, over which an all-reduce moved so many bytes a second, will do."""
    if speed < SLOW:
        remedy = "see docs/doctor.md: the line is slow"
        return Finding("all-reduce", DRIVER, "warning", found, remedy)
    return Finding("all-reduce", DRIVER, "ok", found)
