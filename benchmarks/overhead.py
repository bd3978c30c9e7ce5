"""What Ray, MLflow, checkpoints and sample grids cost: a whole run against the bare step.

    python benchmarks/overhead.py configs/demo.yaml --steps 900

Trains the same config twice at the same time, by torchrun with nothing but feed and step, and by
``t2i-ray train`` with all it does. One of the two is always stopped (SIGSTOP, with all processes it
has): they take turns of some seconds, so a machine whose speed drifts is the same for both. Timed
from step WARM_UP to the last, so start-up is in neither; and without the first and the last second
of a turn: what was stopped has to catch up, and a run's points lie some steps apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from t2i_ray.config import Config
    from t2i_ray.gan_cls import GanCls
    from t2i_ray.train import Worker
    from t2i_ray.train.feed import Feed

WARM_UP = 50
EDGE = 1.0  # seconds
Turn = tuple[float, float]  # from, to


def opened(config: Config, worker: Worker, data: str) -> tuple[Feed, GanCls]:
    """What feeds a worker, and what makes its steps, as a run has them at its start."""
    import torch

    from t2i_ray.data import open_prepared
    from t2i_ray.encoders import build_encoder, caption_rows
    from t2i_ray.gan_cls import GanCls
    from t2i_ray.storage import open_store
    from t2i_ray.train.feed import Feed

    worker.prepare_torch(config)
    store = open_store(config.storage)
    prepared = open_prepared(store, data)
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.encoder, prepared.captions, config.storage)
    feed = Feed(config, prepared, caption_rows(encoder, prepared.captions, store), worker.device)
    return feed, GanCls(config, encoder.module, encoder.dim)


def bare(config_path: str, data: str, overrides: list[str]) -> None:
    """One torchrun worker: feed and step, and rank 0 notes when each step was done."""
    import torch.distributed as dist

    from t2i_ray.config import load_config
    from t2i_ray.train import Worker

    dist.init_process_group("gloo")
    config = load_config(config_path, overrides)
    worker = Worker(dist.get_rank(), dist.get_world_size())
    feed, gan = opened(config, worker, data)
    gan.distribute()
    times = (Path(config.storage.uri) / "bare").open("w")
    for step in range(config.train.steps):
        micro_batches = config.train.micro_batches
        pieces = [feed.piece(step, micro) for micro in worker.share(micro_batches)]
        gan.step(pieces, step, micro_batches, worker.world)
        if worker.is_chief:
            print(time.time(), file=times, flush=True)
    dist.destroy_process_group()


class Job:
    """A command with all its processes, which can be stopped and continued."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP or SIGCONT to every process."""
        for pid in family(self.process.pid) if self.running else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Wait for it; an error if it failed."""
        if code := self.process.wait():
            raise SystemExit(f"{self.process.args!r}: exit code {code}")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def steps_by_then(steps: list[int], times: list[float], moment: float) -> float:
    """Steps done at a moment, between two points in proportion."""
    return float(np.interp(moment, times, steps))


def losses_logged(store: Path) -> tuple[list[int], list[float]]:
    """Steps and times of the run's points in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    points = sorted(
        (point.step, point.timestamp / 1000)
        for point in client.get_metric_history(run.info.run_id, "d_loss")
    )
    return [step for step, _ in points], [moment for _, moment in points]


def wait_until(ready: Callable[[], bool]) -> None:
    while not ready():
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--turn", type=float, default=10.0, help="seconds")
    parser.add_argument("--bare", metavar="DATA", help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        overrides = [f"train.steps={options.steps}", f"storage.uri={options.storage}"]
        bare(options.config, options.bare, overrides)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options.config, options.steps, options.turn, Path(folder))


def compare(path: str, steps: int, turn: float, folder: Path) -> None:
    """Both jobs in turns; prints images per second of both, and their ratio."""
    from t2i_ray.config import load_config
    from t2i_ray.data import prepare
    from t2i_ray.storage import open_store

    overrides = [f"train.steps={steps}", f"storage.uri={folder}"]
    config = load_config(path, overrides)
    data = prepare(config.data, open_store(config.storage))
    threads = {**os.environ, "OMP_NUM_THREADS": str(config.cluster.threads)}
    whole = Job([sys.executable, "-m", "t2i_ray", "train", path, *overrides], dict(os.environ))
    progress = folder / f"runs/{config.name}/progress.json"
    wait_until(lambda: progress.exists() and json.loads(progress.read_text())["step"] >= WARM_UP)
    whole.send(signal.SIGSTOP)
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        f"--nproc-per-node={config.cluster.workers}",
        *(__file__, path, f"--steps={steps}", "--bare", data, "--storage", str(folder)),
    ]
    alone, log = Job(torchrun, threads), folder / "bare"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= WARM_UP)
    jobs = [whole, alone]
    turns: tuple[list[Turn], list[Turn]] = ([], [])
    while whole.running and alone.running:
        for job, other, mine in zip(jobs, reversed(jobs), turns, strict=True):
            other.send(signal.SIGSTOP)
            job.send(signal.SIGCONT)
            started = time.time()
            time.sleep(turn)
            mine.append((started, time.time()))
    for job in jobs:
        job.send(signal.SIGCONT)
        job.end()
    moments = [float(line) for line in log.read_text().splitlines()]
    curves = [losses_logged(folder), (list(range(1, len(moments) + 1)), moments)]
    speeds = []
    for (done, times), mine in zip(curves, turns, strict=True):
        within = [(start + EDGE, end - EDGE) for start, end in mine if end < times[-1]]
        count = sum(
            steps_by_then(done, times, end) - steps_by_then(done, times, start)
            for start, end in within
        )
        seconds = sum(end - start for start, end in within)
        speeds.append(count * config.train.batch_size / seconds)
        print(f"{len(within)} turns, {count:.0f} steps, {speeds[-1]:.0f} images/s")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{config.cluster.workers} workers of {config.cluster.threads} threads: "
        f"whole / bare = {speeds[0] / speeds[1]:.3f}"
    )


if __name__ == "__main__":
    main()
