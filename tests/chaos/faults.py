"""What can go wrong, each as what is done to a run; whoever calls sees to it that it recovers."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from disk import BALLAST, fill

from chaos.proxy import Mood, Proxy
from chaos.run import CONTROLLER, WORKER, Lost, Run, until
from chaos.site import Site

Deed = Callable[[Run], None]


@dataclass(frozen=True)
class Fault:
    """What is done to a run.

    Args:
        name: of it.
        do: what does it.
        places: where the run may be stored.
        at: what it befalls: a run that it starts itself; one that is at work, which may be any; or
            its end, after which nothing can befall it.
        ends: whether the command may end of it, so that it must be given again.
        says: what the run's log must say of it.
    """

    name: str
    do: Deed
    places: tuple[str, ...]
    at: Literal["start", "any", "end"]
    ends: bool
    says: str


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    *places: str,
    at: Literal["start", "any", "end"] = "any",
    ends: bool = False,
    says: str = "",
) -> Callable[[Deed], Deed]:
    def note(do: Deed) -> Deed:
        FAULTS[name] = Fault(name, do, places or ("s3", "folder"), at, ends, says)
        return do

    return note


def possible(site: Site) -> list[str]:
    """Names of the faults that can be inflicted there."""
    return [name for name in FAULTS if site.disk or not name.startswith("disk full")]


# ------------------------------------------------------------------------- processes and nodes


#: What ends a process or more of a run that is at work.
KILLS: dict[str, Deed] = {
    "worker killed": lambda run: run.kill(run.workers[0]),
    "rank 0 killed": lambda run: run.kill(run.rank_0),
    "node lost": lambda run: run.site.node_of(run.anyone).kill(),
    "raylet killed": lambda run: run.kill(run.site.raylet_of(run.anyone)),
    "controller killed": lambda run: run.kill(next(iter(run.site.processes(CONTROLLER)))),
    "driver killed": lambda run: run.kill(run.driver.pid),
    "driver stopped (SIGTERM)": lambda run: run.kill(run.driver.pid, signal.SIGTERM),
}


def killing(kill: Deed) -> Deed:
    def do(run: Run) -> None:
        run.reach()
        kill(run)

    return do


for name, kill in KILLS.items():
    fault(name, ends=name.startswith(("controller", "driver")))(killing(kill))


@fault("rank 0 killed twice")
def rank_0_killed_twice(run: Run) -> None:
    run.reach()
    first = run.rank_0
    run.kill(first)
    until(lambda: run.rank_0 != first, "the next rank 0")
    time.sleep(run.rng.uniform(0, 2))
    run.kill(run.rank_0)


@fault("driver killed at its start", at="start", ends=True)
def driver_killed_early(run: Run) -> None:
    run.start()
    time.sleep(run.rng.uniform(0, 15))
    run.kill(run.driver.pid)


@fault("worker hangs (SIGSTOP)", at="start")
def worker_hangs(run: Run) -> None:
    run.start("cluster.timeout_s=10")
    run.reach()
    run.kill(run.workers[0], signal.SIGSTOP)


@fault("rank 0 hangs (SIGSTOP)", at="start")
def rank_0_hangs(run: Run) -> None:
    run.start("cluster.timeout_s=10")
    run.reach()
    run.kill(run.rank_0, signal.SIGSTOP)


@fault("head lost (its state in Redis)", ends=True)
def head_lost(run: Run) -> None:
    run.reach()
    head = run.site.cluster.head
    assert head
    head.kill()
    time.sleep(run.rng.uniform(0, 5))
    run.site.cluster.start_head()


@fault("two drivers at once", at="start")
def two_drivers(run: Run) -> None:
    drivers = [run.start(), run.start()]
    until(
        lambda: run.durable > 0 and any(d.poll() is not None for d in drivers),
        "one of two drivers to be refused, and the other to work",
    )
    if {d.poll() for d in drivers} != {None, 2}:
        raise Lost(f"of two drivers, these ended so: {[d.poll() for d in drivers]}")


@fault("second driver while one is at work")
def second_driver(run: Run) -> None:
    """The first stands still meanwhile, so that it can't be done before the second has looked."""
    run.reach()
    first = run.driver
    run.kill(first.pid, signal.SIGSTOP)
    code = run.wait(run.start())
    run.kill(first.pid, signal.SIGCONT)
    if code != 2:
        raise Lost(f"the second driver was not refused, exit code {code}")


# ----------------------------------------------------------------------------- damaged files


def damaged(run: Run, harm: Callable[[Run, str], None]) -> None:
    """Kill the driver, and harm its newest checkpoint."""
    run.reach()
    run.kill(run.driver.pid)
    run.until_workers_are_gone()
    harm(run, f"checkpoints/step_{run.durable:08d}")


DAMAGED = "is damaged: "


@fault("newest checkpoint truncated", ends=True, says=DAMAGED)
def truncated(run: Run) -> None:
    def harm(run: Run, folder: str) -> None:
        key = a_file(run, folder)
        data = run.store.read(key)
        run.store.write(key, data[: run.rng.randrange(len(data))])

    damaged(run, harm)


@fault("newest checkpoint, one byte flipped", ends=True, says=DAMAGED)
def flipped(run: Run) -> None:
    def harm(run: Run, folder: str) -> None:
        key = a_file(run, folder)
        data = bytearray(run.store.read(key))
        data[run.rng.randrange(len(data))] ^= 1 << run.rng.randrange(8)
        run.store.write(key, bytes(data))

    damaged(run, harm)


@fault("newest checkpoint without a manifest", ends=True)
def no_manifest(run: Run) -> None:
    damaged(run, lambda run, folder: run.store.delete(f"{folder}/manifest.json"))


def a_file(run: Run, folder: str) -> str:
    """One that is read when the run goes on."""
    return run.rng.choice([key for key in run.store.list(folder) if "manifest" not in key])


# ------------------------------------------------------------------------------------- MLflow


def pass_by(run: Run, seconds: tuple[float, float], met: Callable[[], bool]) -> None:
    """Some time, and until the run has met it. Raises Lost: the command ended before it did."""
    end = time.monotonic() + run.rng.uniform(*seconds)
    until(
        lambda: run.driver.poll() is not None or (time.monotonic() > end and met()),
        "the run to meet what was done to it",
    )
    if not met():
        raise Lost("the command ended before it met what was done to it")


def requests(proxy: Proxy) -> Callable[[], bool]:
    """Whether one has gone wrong since."""
    before = proxy.spoiled
    return lambda: proxy.spoiled > before


def spoil(run: Run, proxy: Proxy, mood: Mood, seconds: tuple[float, float] = (3, 15)) -> None:
    """A server behaves so from some step on, for some time."""
    run.reach()
    met = requests(proxy)
    with proxy.being(mood):
        pass_by(run, seconds, met)


@fault("MLflow killed and brought back")
def mlflow_killed(run: Run) -> None:
    run.reach()
    met = requests(run.site.to_mlflow)
    run.site.mlflow.stop()
    pass_by(run, (0, 10), met)
    run.site.mlflow.start()


@fault("MLflow away at the start", at="start")
def mlflow_away_at_start(run: Run) -> None:
    run.site.mlflow.stop()
    run.start()
    run.reach()
    run.site.mlflow.start()


@fault("MLflow away at the end", at="end")
def mlflow_away_at_end(run: Run) -> None:
    run.reach()
    run.site.mlflow.stop()


@fault("MLflow answers 500")
def mlflow_500(run: Run) -> None:
    spoil(run, run.site.to_mlflow, Mood(status=500))


@fault("MLflow answers 429")
def mlflow_429(run: Run) -> None:
    spoil(run, run.site.to_mlflow, Mood(status=429))


@fault("MLflow very slow")
def mlflow_slow(run: Run) -> None:
    seconds = run.rng.choice([1.0, 4.0, 12.0])  # the last is more than its clients wait
    spoil(run, run.site.to_mlflow, Mood(delay=seconds), (5, 25))


@fault("MLflow's answers cut off")
def mlflow_cut(run: Run) -> None:
    """It does what it is told, and nobody hears of it: what is sent again must not count twice."""
    spoil(run, run.site.to_mlflow, Mood(cut_answer=True))


# ------------------------------------------------------------------------------- object store


@fault("S3 killed and brought back", "s3")
def s3_killed(run: Run) -> None:
    run.reach()
    met = requests(run.site.to_s3)
    run.site.s3.server.stop_gateway()
    pass_by(run, (0, 10), met)
    run.site.s3.server.start_gateway()


@fault("S3 refuses (503 SlowDown)", "s3")
def s3_refuses(run: Run) -> None:
    spoil(run, run.site.to_s3, Mood(status=503), (5, 25))


@fault("S3 slow", "s3")
def s3_slow(run: Run) -> None:
    spoil(run, run.site.to_s3, Mood(delay=run.rng.choice([0.5, 2.0, 6.0])), (5, 20))


@fault("S3 uploads cut in the middle", "s3")
def s3_upload_cut(run: Run) -> None:
    mood = Mood(cut_request=True, methods=frozenset({"PUT", "POST"}))
    spoil(run, run.site.to_s3, mood, (5, 20))


@fault("S3's answers cut off", "s3")
def s3_answer_cut(run: Run) -> None:
    spoil(run, run.site.to_s3, Mood(cut_answer=True), (5, 20))


@fault("S3 refuses while rank 0 is killed", "s3")
def s3_refuses_at_restart(run: Run) -> None:
    run.reach()
    with run.site.to_s3.being(Mood(status=503)):
        kill_and_see_the_next(run)
        pass_by(run, (5, 20), requests(run.site.to_s3))


# --------------------------------------------------------------------------------------- disk


FULL = "No space left on device"


@fault("disk full, of the storage", "disk")
def disk_full(run: Run) -> None:
    run.reach()
    with full(run):
        pass_by(run, (5, 20), lambda: FULL in run.said)


@fault("disk full while rank 0 is killed", "disk")
def disk_full_at_restart(run: Run) -> None:
    run.reach()
    with full(run):
        kill_and_see_the_next(run)
        time.sleep(run.rng.uniform(5, 20))


@fault("disk full, of the cache", "s3", at="start")
def cache_full(run: Run) -> None:
    """From the start, when the nodes' cache is empty: what they need of S3 has no room."""
    shutil.rmtree(run.site.cache, ignore_errors=True)
    with full(run):
        run.start()
        pass_by(run, (30, 60), lambda: FULL in run.said)


def kill_and_see_the_next(run: Run) -> None:
    """Kill rank 0, and wait until workers are there again."""
    before = {run.rank_0, *run.workers}
    run.kill(run.rank_0)
    until(lambda: bool(run.site.processes(WORKER).keys() - before), "workers after the killed ones")


@contextmanager
def full(run: Run) -> Iterator[None]:
    """No byte is left on the small disk meanwhile."""
    assert run.site.disk
    fill(run.site.disk)
    yield
    (run.site.disk / BALLAST).unlink()
