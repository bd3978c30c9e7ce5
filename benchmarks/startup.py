"""Seconds from the command to the first training step: ``t2i-ray train`` and torchrun.

    python benchmarks/startup.py configs/demo.yaml --rounds 5

Both on a Ray cluster that runs already, in turn, data prepared and MLflow's database made before;
the first round warms the disk's cache and is left out. torchrun does feed and step and nothing else
(benchmarks/overhead.py). The parts of ``t2i-ray train`` are told by when its processes get their
names, looked for five times a second:

- driver: the command itself, until it hands over to Ray Train's controller, which starts meanwhile;
- controller: until the first worker's process is up;
- workers: their imports, process group, data, networks, and the first step.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from recovery import Nodes  # isort: skip # first: it gives Ray its token
import ray
from mlflow import MlflowClient
from overhead import bare

PARTS = ("driver", "controller", "workers")
WORKER = b"ray::RayTrainWorker"
EVERY = 0.2  # seconds between two looks, each of which takes some milliseconds of a core


class Watch:
    """When a worker's process was first seen, while it runs."""

    def __init__(self) -> None:
        self.seen = 0.0
        self._before = titles()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(EVERY):
            for pid, title in titles().items():
                if title.startswith(WORKER) and self._before.get(pid) != title:
                    self.seen = self.seen or time.time()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def titles() -> dict[int, bytes]:
    """Process id -> its command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes()[:40]
        except OSError:
            continue
    return found


def first_step(store: Path, experiment: str) -> float:
    """When it was done."""
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    points = client.get_metric_history(run.info.run_id, "d_loss")
    return float(min(point.timestamp for point in points)) / 1000


def whole(config: str, overrides: list[str], nodes: Nodes, store: Path) -> dict[str, float]:
    """Seconds of each part of one run by t2i-ray."""
    name = f"start-{secrets.token_hex(4)}"
    own = [f"name={name}", f"tracking.experiment={name}", f"cluster.address={nodes.address}"]
    watch, start = Watch(), time.time()
    command = [sys.executable, "-m", "t2i_ray", "train", config, *overrides, *own]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=nodes.env)
    handed_over = start
    for line in process.stdout or ():
        if ": attempt " in line:
            handed_over = time.time()
    if code := process.wait():
        raise SystemExit(f"{command}: exit code {code}")
    watch.end()
    first = first_step(store, name)
    moments = [start, handed_over, watch.seen, first]
    ends = zip(PARTS, moments, moments[1:], strict=False)
    return {part: end - begin for part, begin, end in ends}


def alone(config: str, overrides: list[str], workers: int, data: str, store: Path) -> float:
    """Seconds to the end of the first step by torchrun."""
    start = time.time()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={workers}", __file__, config, *overrides, "--bare", data),
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return float((store / "bare").read_text().split()[0]) - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bare", metavar="DATA", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.bare:
        bare(options.config, options.bare, options.overrides)
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(options, Path(scratch))


def compare(options: argparse.Namespace, folder: Path) -> None:
    from t2i_ray.config import load_config
    from t2i_ray.data import prepare
    from t2i_ray.storage import open_store

    store = folder / "store"
    common = [*options.overrides, f"storage.uri={store}", "train.steps=2", "evaluation.every=0"]
    common.append("train.sample_every=0")
    config = load_config(options.config, common)
    data = prepare(config.data, open_store(config.storage))
    cluster = config.cluster
    nodes = Nodes(folder, cpus=cluster.workers * cluster.threads)
    found: list[tuple[dict[str, float], float]] = []
    try:
        nodes.join()
        for number in range(options.rounds + 1):
            ours = whole(options.config, common, nodes, store)
            theirs = alone(options.config, common, cluster.workers, data, store)
            if number:
                found.append((ours, theirs))
    finally:
        ray.shutdown()
        nodes.end()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for part in PARTS:
        print(f"{part:12} {median(ours[part] for ours, _ in found):5.1f} s")
    totals, bares = [sum(ours.values()) for ours, _ in found], [theirs for _, theirs in found]
    for name, seconds in (("t2i-ray", totals), ("torchrun", bares)):
        each = ", ".join(f"{one:.1f}" for one in seconds)
        print(f"{name:12} {median(seconds):5.1f} s  ({each})")


if __name__ == "__main__":
    main()
