"""A real Ray cluster for the tests: a head and perhaps more nodes, each with processes of its own.

On one machine a node is told from the others by its address: the head has the machine's own (Ray
makes that of 127.0.0.1), the others 127.0.0.2, 127.0.0.3 ...
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servers import Radosgw, Redis, free_port

BIN = Path(sys.executable).parent
#: What every process of the cluster knows besides its token and the S3 key, and must not tell.
PLANTED = {
    "HF_TOKEN": "planted-hf-5d0c7e",
    "MLFLOW_TRACKING_USERNAME": "planted-user-81ac0f",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-2e9b64",
}

FAKE_HEAD_NODE_ID = "f" * 51 + "00000"  # Ray's name for it


class RayNode:
    """``ray start --block`` with a home of its own, and so with a node-local cache of its own.

    Args:
        folder: where its home and what it prints are.
        arguments: of ``ray start``.
        env: what its processes, and by them the workers on this node, get.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        command = [
            # The kernel ends it, should this process be killed before it can.
            "setpriv", "--pdeathsig", "TERM",
            str(BIN / "ray"), "start", "--block", *arguments, "--num-gpus=0",
            "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}",
            "--min-worker-port=0", "--max-worker-port=0",  # any: other clusters may run here
            f"--object-store-memory={256 * 2**20}",
        ]  # fmt: skip
        self._command, self._env = command, {**env, "HOME": str(self.home)}
        self.start()

    def start(self) -> None:
        """Start it, or start it again; what it printed before is gone."""
        with (self.folder / "ray.out").open("wb") as out:
            self.process = subprocess.Popen(
                self._command, stdout=out, stderr=out, env=self._env, start_new_session=True
            )

    @property
    def printed(self) -> str:
        return (self.folder / "ray.out").read_text(errors="replace")

    @property
    def started(self) -> bool:
        return "Ray runtime started" in self.printed

    @property
    def gave_up(self) -> bool:
        """Ray gives a node that starts 30 s, which a busy machine may lack; it has ended then."""
        return self.process.poll() is not None and "timed out during startup" in self.printed

    def stop(self) -> None:
        """End it; it ends what it started. What stays behind goes by its group."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=4)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill(self) -> None:
        """End all its processes, workers and jobs among them, as when a machine dies."""
        for pid in [self.process.pid, *below(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class RayCluster:
    """Nodes with token authentication.

    Args:
        folder: for its token, and the nodes' folders.
        cpus: logical CPUs of the head.
        nodes: logical CPUs of each further node.
        env: more variables for all nodes.
        redis: where the head keeps its state, so that it survives the head; None: in memory.
        grows: nodes of one CPU that Ray's autoscaler may start, and ends when they have been idle.
    """

    def __init__(
        self,
        folder: Path,
        cpus: int = 4,
        nodes: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        redis: Redis | None = None,
        grows: int = 0,
    ) -> None:
        self.folder = folder
        self.cpus = cpus
        self.head: RayNode | None = None
        self.nodes: list[RayNode] = []  # the further ones
        self.token = secrets.token_hex(16)
        self._wanted = nodes
        self._env = env or {}
        self._redis = redis
        self._grows = grows
        self._added = self._heads = 0
        # Sockets lie below, whose paths must be short. One folder a node: two that share one may
        # take the same socket, and of two clusters that do, jobs may join the newer.
        self._scratch = tempfile.mkdtemp(prefix="t2i-ray-")
        (folder / "home").mkdir(parents=True)
        self._choose_ports()
        (folder / "token").write_text(self.token)
        (folder / "token").chmod(0o600)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The head's."""
        assert self.head
        return self.head.process

    @property
    def env(self) -> dict[str, str]:
        """What a driver needs to join."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {
            **inherited,
            "HOME": str(self.folder / "home"),
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # or SIGTERM would wait for actors
            # What its helpers gather nobody reads here, or not at once.
            "REPORTER_UPDATE_INTERVAL_MS": "30000",
            "LOG_NAME_UPDATE_INTERVAL_S": "2",
            "RAY_worker_niceness": "0",  # else whatever else runs here pushes workers aside
            # It would look for training's controllers in any cluster of this machine.
            "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
            **PLANTED,
            **Radosgw.env,
            "PYTHONWARNINGS": "default",
        }

    @property
    def job_env(self) -> dict[str, str]:
        """What ``ray job`` needs."""
        return {**self.env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}"}

    @property
    def _node_env(self) -> dict[str, str]:
        return {k: v for k, v in {**self.env, **self._env}.items() if k != "RAY_ADDRESS"}

    @property
    def session(self) -> Path:
        """Where Ray keeps the logs of this cluster."""
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                arguments = file.read_bytes().decode().split("\0")
                if f"--gcs_server_port={self.port}" in arguments:
                    (found,) = (a for a in arguments if a.startswith("--session-dir="))
                    return Path(found.removeprefix("--session-dir="))
        raise RuntimeError("the cluster does not run")

    def _choose_ports(self) -> None:
        self.port, self.dashboard_port, self.metrics_port = free_port(), free_port(), free_port()

    def start(self) -> None:
        """Start all nodes, and wait until jobs can be submitted and all have joined."""
        self.start_nodes()
        self.wait_for_nodes(1 + len(self._wanted))

    def start_nodes(self) -> None:
        """Start all nodes; jobs can be submitted, but the further ones have yet to join."""
        try:
            self.start_head()
        except RuntimeError:  # a port that was free may be taken by now
            if self.head:
                self.head.kill()
            self._choose_ports()
            self.start_head()
        for cpus in self._wanted:
            self.add_node(cpus)

    def start_head(self) -> None:
        """Start the head, for the first time or again on the same ports.

        Again it is as on another machine: in the folder of before, Ray would find an address that
        the other nodes' processes, here on the same machine, make it believe in.
        """
        self._heads += 1
        arguments = [
            "--head", "--node-ip-address=127.0.0.1",
            f"--port={self.port}", f"--num-cpus={self.cpus}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--metrics-export-port={self.metrics_port}",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self._scratch}/head-{self._heads}",
        ]  # fmt: skip
        env = self._node_env
        if self._redis:
            env["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{self._redis.port}"
            arguments += [f"--redis-password={self._redis.password}"]
        if self._grows:
            env |= {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",  # the other one tells nodes by their addresses
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
            arguments += [f"--autoscaling-config={self._autoscaling()}"]
        self.head = RayNode(self.folder, arguments, env)
        self.wait_until_jobs_api_answers()

    def _autoscaling(self) -> Path:
        """As for a cloud, but that its machines are processes on this one."""
        path = self.folder / "autoscaling.json"
        kinds = {
            "ray.head.default": {
                "node_config": {},
                "resources": {"CPU": self.cpus},
                "max_workers": 0,
            },
            "worker": {"node_config": {}, "resources": {"CPU": 1}, "max_workers": self._grows},
        }
        config = {
            "cluster_name": "grows",
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider."
                "FakeMultiNodeProvider",
                "gcs_address": f"127.0.0.1:{self.port}",
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": kinds,
            "max_workers": self._grows,
            "idle_timeout_minutes": 2,  # a busy machine may take one to start a worker on a node
            **{f"{when}setup_commands": [] for when in ("", "head_", "worker_")},
            **{f"{which}_start_ray_commands": [] for which in ("head", "worker")},
            **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
            **{key: {} for key in ("auth", "file_mounts")},
        }
        path.write_text(json.dumps(config))
        return path

    def add_node(self, cpus: int, env: Mapping[str, str] | None = None) -> RayNode:
        """Start one more node, which joins in a few seconds."""
        self._added += 1
        node = RayNode(
            self.folder / f"node-{self._added}",
            [
                f"--address=127.0.0.1:{self.port}",
                f"--node-ip-address=127.0.0.{1 + self._added}",
                f"--num-cpus={cpus}",
                f"--temp-dir={self._scratch}/{self._added}",
            ],
            {**self._node_env, **(env or {})},
        )
        self.nodes.append(node)
        return node

    def wait_for_nodes(self, count: int, seconds: float = 120) -> None:
        """Until so many nodes are alive, the head among them; one that gave up is started again.

        A head that comes back knows from Redis who was alive, and may say so before it has started.
        """
        assert self.head
        deadline = time.monotonic() + seconds
        while len(alive := self.alive()) != count or not self.head.started:
            if self.head.gave_up:
                self.start_head()
            for node in self.nodes:
                if node.gave_up:
                    node.start()
            if time.monotonic() > deadline:
                printed = "\n".join(node.printed[-2000:] for node in (self.head, *self.nodes))
                raise RuntimeError(f"alive: {alive}, not {count} nodes: {printed}")
            time.sleep(0.3)

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray takes for alive."""
        try:
            nodes = self.get("/nodes?view=summary")["data"]["summary"]
        except (OSError, ValueError):
            return []
        raylets = [node["raylet"] for node in nodes]
        return sorted(r["nodeManagerAddress"] for r in raylets if r.get("state") == "ALIVE")

    def get(self, path: str) -> Any:
        """What the dashboard answers, as JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard_port}{path}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def wait_until_jobs_api_answers(self, seconds: float = 90) -> None:
        """Until jobs can be submitted; the head may still give up, as ``wait_for_nodes`` sees."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.get("/api/jobs/")
                if self.alive():
                    return
                raise OSError("no node yet")
            except (OSError, ValueError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    assert self.head
                    log = self.head.printed[-2000:]
                    raise RuntimeError(f"Ray did not start: {log}") from None
                time.sleep(0.3)

    def stop(self) -> None:
        """End all nodes, the head last."""
        for node in [*reversed(self.nodes), *([self.head] if self.head else [])]:
            if node.process.poll() is None:
                node.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)


def below(pid: int) -> list[int]:
    """The processes that this one started, and those that they did."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *below(child)]
    return found
