"""Seconds without a training step after a lost worker, a lost node, a drain notice, a new node.

    python benchmarks/recovery.py configs/demo.yaml --rounds 5

A Ray cluster of process groups on this machine: a head without CPUs, which hosts the driver, and
two nodes with room for one worker each; the group is elastic, from one worker to two. One run goes
on while, round after round:

- worker: rank 0's process gets SIGKILL; the group is as large afterwards;
- node: all processes of a node get SIGKILL at once; one worker goes on;
- new node: one comes, and the group grows;
- drain: a node gets a notice of 30 s (``ray drain-node``); one worker goes on;
- and once more a new node.

The times are those of the losses in MLflow: from the fault to the end of the first step after it;
for notices and new nodes, which end no step, the longest time between two steps. Lost workers also
repeat the steps since the last checkpoint, half of ``checkpoint.every`` on average; the others must
repeat none, which is checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

# Ray reads them when it is imported.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}

import ray
from mlflow import MlflowClient
from overhead import family

BIN = Path(sys.executable).parent
NOTICE = 30  # seconds
#: Of ``ray start``: a head notices a lost node after this period times this threshold.
HEAD = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nodes:
    """A head and nodes, each a tree of processes."""

    def __init__(self, folder: Path, cpus: int = 0) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.env = {**os.environ, **HEAD}
        self._running: list[subprocess.Popen[bytes]] = []
        self._added = 0
        port = self.address.rpartition(":")[2]
        where = ("--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false")
        self.head = self.start("--head", *where, f"--num-cpus={cpus}", name="head")

    def start(self, *arguments: str, name: str) -> subprocess.Popen[bytes]:
        command = [
            *(str(BIN / "ray"), "start", "--block", *arguments),
            *("--num-gpus=0", "--disable-usage-stats"),
            *("--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"),
            f"--dashboard-agent-listen-port={free_port()}",
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            node = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        self._running.append(node)
        return node

    def add(self, name: str) -> subprocess.Popen[bytes]:
        """A node with room for one worker, and a resource by which it is known."""
        self._added += 1
        return self.start(
            f"--address={self.address}",
            # Ray tells nodes of one machine by their addresses.
            f"--node-ip-address=127.0.0.{1 + self._added}",
            f"--temp-dir={self.folder}/{self._added}",
            "--num-cpus=1",
            f"--resources={json.dumps({name: 1})}",
            name=name,
        )

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Everything on it at once."""
        for pid in family(node.pid):
            send(pid, signal.SIGKILL)
        node.wait()
        self._running.remove(node)

    def join(self) -> None:
        """As a driver, to look at the nodes."""
        for tries_left in reversed(range(60)):
            try:
                ray.init(self.address, logging_level="error")
                return
            except ConnectionError:
                if not tries_left:
                    raise
                time.sleep(0.5)

    def end(self) -> None:
        for node in [*self._running]:
            self.kill(node)


def until(ready: Callable[[], bool], seconds: float = 180) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Training:
    """``t2i-ray train`` on these nodes, and where it stands."""

    def __init__(self, config: str, nodes: Nodes, folder: Path, overrides: list[str]) -> None:
        self.store = folder / "store"
        self.lines: list[str] = []
        command = [
            *(sys.executable, "-m", "t2i_ray", "train", config, "name=recovery"),
            *(f"storage.uri={self.store}", "storage.shared=true", "train.steps=1000000"),
            *(f"cluster.address={nodes.address}", "cluster.workers=2", "cluster.min_workers=1"),
            *("cluster.resize_s=3", "cluster.max_failures=-1", "checkpoint.every=20"),
            *("evaluation.every=0", "train.sample_every=0", "train.log_every=1", *overrides),
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=nodes.env
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip())
            print("   ", line.rstrip(), file=sys.stderr, flush=True)

    @property
    def pulse(self) -> dict[str, Any]:
        """Rank 0's, every 5 s: step, pid, ..."""
        try:
            found = json.loads((self.store / "runs/recovery/progress.json").read_text())
        except (OSError, ValueError):
            return {"step": 0, "pid": 0}
        return dict(found)

    @property
    def durable(self) -> int:
        """The step of the newest checkpoint: what follows is done again after a fault."""
        found = (self.store / "runs/recovery/checkpoints").glob("step_*/manifest.json")
        return max((int(path.parent.name[5:]) for path in found), default=0)

    def settle(self, workers: int) -> None:
        """Wait until so many workers have come a checkpoint further."""
        self._until(lambda: ray.cluster_resources().get("CPU", 0) == workers)
        self._until(lambda: ray.available_resources().get("CPU", 0) == 0)
        before = self.pulse
        self._until(
            lambda: self.pulse["step"] > before["step"] or self.pulse["pid"] != before["pid"]
        )
        before = self.pulse
        self._until(lambda: self.durable > before["step"])

    def _until(self, ready: Callable[[], bool]) -> None:
        with suppress(TimeoutError):
            until(lambda: ready() or self.process.poll() is not None)
        if not ready():
            raise SystemExit(f"nothing goes on; the run said: {self.lines[-20:]}")

    def times(self) -> list[float]:
        """When each step of the committed history was measured, ascending."""
        client = MlflowClient(f"sqlite:///{self.store}/mlflow.db")
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
        points = client.get_metric_history(run.info.run_id, "d_loss")
        steps = sorted(point.step for point in points)
        if steps != list(range(1, len(steps) + 1)):
            raise SystemExit("not each step is in MLflow once")
        return sorted(point.timestamp / 1000 for point in points)

    def check_none_repeated(self) -> None:
        """Whoever left with a checkpoint went on from its step."""
        left = None
        for line in self.lines:
            if " left at step " in line:
                left = line.partition(" left at step ")[2].partition(":")[0]
            if left and " continues from step " in line:
                if not line.endswith(f" {left}"):
                    raise SystemExit(f"left at step {left}, but {line!r}")
                left = None


def faults(
    training: Training, nodes: Nodes, there: dict[str, subprocess.Popen[bytes]], rounds: int
) -> list[tuple[str, float]]:
    """Break it; what happened, and when. ``there`` are the nodes by name."""
    done = []
    spare = (f"node{number}" for number in itertools.count(len(there)))

    def note(what: str) -> None:
        done.append((what, time.time()))
        print(f"--- {what}", file=sys.stderr, flush=True)

    def new_node() -> None:
        name = next(spare)
        note("new node")
        there[name] = nodes.add(name)
        training.settle(2)

    training.settle(2)
    for _ in range(rounds):
        note("worker")
        send(training.pulse["pid"], signal.SIGKILL)
        training.settle(2)
        _, node = there.popitem()
        note("node")
        nodes.kill(node)
        training.settle(1)
        new_node()
        name, node = there.popitem()
        (node_id,) = [n["NodeID"] for n in ray.nodes() if n["Alive"] and name in n["Resources"]]
        note("drain")
        drain(nodes, node_id)
        time.sleep(NOTICE)
        nodes.kill(node)
        training.settle(1)
        new_node()
    note("end")
    return done


def drain(nodes: Nodes, node_id: str) -> None:
    command = [
        *(str(BIN / "ray"), "drain-node", f"--address={nodes.address}", f"--node-id={node_id}"),
        *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=benchmark"),
        f"--deadline-remaining-seconds={NOTICE}",
    ]
    subprocess.run(command, env=nodes.env, check=True, stdout=subprocess.DEVNULL)


def seconds(events: list[tuple[str, float]], times: list[float]) -> dict[str, list[float]]:
    """Fault -> how long no step was done, each time."""
    found: dict[str, list[float]] = {}
    for (what, start), (_, end) in pairwise(events):
        around = [t for t in times if start - 30 < t < end]
        if what in ("worker", "node"):
            gap = min(t for t in around if t > start + 1) - start
        else:
            gap = max(b - a for a, b in pairwise(around) if b > start)
        found.setdefault(what, []).append(gap)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        nodes = Nodes(folder)
        try:
            nodes.join()
            there = {name: nodes.add(name) for name in ("node0", "node1")}
            until(lambda: ray.cluster_resources().get("CPU", 0) == len(there))
            training = Training(options.config, nodes, folder, options.overrides)
            try:
                events = faults(training, nodes, there, options.rounds)
            finally:
                training.process.terminate()
                training.process.wait()
            training.check_none_repeated()
            print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
            for what, gaps in seconds(events, training.times()).items():
                each = ", ".join(f"{gap:.1f}" for gap in gaps)
                print(f"{what:9} median {median(gaps):5.1f} s, worst {max(gaps):5.1f} s  ({each})")
        finally:
            ray.shutdown()
            nodes.end()


if __name__ == "__main__":
    main()
