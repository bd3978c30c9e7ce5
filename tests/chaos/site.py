"""Where the runs of the chaos suite take place: Ray nodes and servers that faults may befall."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import boto3
from disk import BALLAST, small_disk
from mlflow_server import MlflowServer
from ray_cluster import RayCluster, RayNode, below
from servers import Radosgw, Redis, S3Server, start_s3
from small_configs import TINY

from chaos.proxy import Mood, Proxy
from t2i_ray.config import Storage, parse_config
from t2i_ray.data import prepare
from t2i_ray.launch.driver import make_shared
from t2i_ray.storage import Store, open_store

KEPT = Path(__file__).parent.parent.parent / "build/chaos"  # what is kept from sitting to sitting
#: What runs have in common, at the root of a storage.
SHARED = ("data", "readers")
NODES = 3  # with a logical CPU each: one more than a run needs, so that it need not wait for a new
DISK_KB = 24 << 10
#: A run of a few seconds. What is missing here is set by whoever starts it.
STEPS = 120
STRETCH = 40  # steps of it for each fault
EVERY = 8  # steps between two checkpoints
DOCUMENT: dict[str, Any] = {
    **TINY,
    "train": {**TINY["train"], "steps": STEPS},
    "checkpoint": {"every": EVERY, "keep": 3, "best": "val/frechet_reader", "best_mode": "min"},
    "evaluation": {"every": STRETCH, "samples": 64},
    "cluster": {"workers": 2, "max_failures": -1},  # when to give up is not what is tried here
}


@dataclass(frozen=True)
class Place:
    """A storage: as runs are told of it, perhaps by way of a proxy, and as it is."""

    told: Storage
    direct: Storage

    @property
    def store(self) -> Store:
        return open_store(self.direct)


@dataclass
class Site:
    """Three nodes besides the head, S3 and MLflow behind a proxy each, and a small disk."""

    folder: Path
    cluster: RayCluster
    mlflow: MlflowServer
    s3: S3Server
    to_mlflow: Proxy
    to_s3: Proxy
    disk: Path | None  # None: none can be mounted here
    cache: Path  # copies of what lies on S3, of all nodes

    @property
    def places(self) -> dict[str, Place]:
        s3 = Storage(uri=f"s3://{self.s3.bucket}/chaos")
        folder = Storage(uri=str(self.folder / "store"), shared=True)
        places = {
            "s3": Place(
                s3.model_copy(update={"endpoint": self.to_s3.uri}),
                s3.model_copy(update={"endpoint": self.s3.endpoint}),
            ),
            "folder": Place(folder, folder),
        }
        if self.disk:
            small = Storage(uri=str(self.disk / "store"), shared=True)
            places["disk"] = Place(small, small)
        return places

    @property
    def tmp(self) -> Path:
        """For temporary files of the nodes' processes."""
        return self.folder / "tmp"

    def prepare(self, at: Path) -> None:
        """Make what all runs share, unless it is in this folder already, and copy it."""
        here = Storage(uri=str(at))
        document = {**DOCUMENT, "name": "any", "storage": here.model_dump()}
        config = parse_config({**document, "tracking": {"enabled": False}})
        store = open_store(here)
        make_shared(config.model_dump(mode="json"), prepare(config.data, store))
        for key in [key for shared in SHARED for key in store.list(shared)]:
            for place in self.places.values():
                place.store.write(key, store.read(key))

    def processes(self, title: str = "ray::") -> dict[int, str]:
        """Processes of the nodes by id, those of this title: of workers, controllers, tasks."""
        return {pid: words for pid in self._of_nodes if (words := words_of(pid)).startswith(title)}

    @property
    def orphans(self) -> dict[int, str]:
        """Processes that a node started, and that are no living node's."""
        mark = f"\0TMPDIR={self.tmp}\0".encode()
        found = set()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended
                if mark in b"\0" + environ.read_bytes():
                    found.add(int(environ.parent.name))
        nodes = self._of_nodes  # after it: who is new in between is no orphan
        return {pid: words for pid in found if pid not in nodes and (words := words_of(pid))}

    @property
    def _of_nodes(self) -> set[int]:
        nodes = [*self.cluster.nodes, *([self.cluster.head] if self.cluster.head else [])]
        roots = [node.process.pid for node in nodes]
        return {*roots, *(pid for root in roots for pid in below(root))}

    def node_of(self, pid: int) -> RayNode:
        """The node that this process belongs to."""
        nodes = [node for node in self.cluster.nodes if pid in below(node.process.pid)]
        return nodes[0]

    def raylet_of(self, pid: int) -> int:
        """The raylet of its node."""
        for other in below(self.node_of(pid).process.pid):
            words = Path(f"/proc/{other}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"/raylet"):
                return other
        raise LookupError(f"no raylet of process {pid}")

    def uploads(self) -> list[Any]:
        """Uploads to S3 that were begun in parts and not completed."""
        client = boto3.client(
            "s3", endpoint_url=self.s3.endpoint, aws_access_key_id=Radosgw.access_key,
            aws_secret_access_key=Radosgw.secret_key,
        )  # fmt: skip
        return list(client.list_multipart_uploads(Bucket=self.s3.bucket).get("Uploads", ()))

    def mend(self) -> None:
        """Bring back whatever is missing. Raises RuntimeError if it can't be."""
        self.to_s3.mood = self.to_mlflow.mood = Mood()
        if self.disk:
            (self.disk / BALLAST).unlink(missing_ok=True)
        if not self.mlflow.running:
            self.mlflow.start()
        if not self.s3.server.answers():
            self.s3.server.start_gateway()
        cluster = self.cluster
        if cluster.process.poll() is not None:
            cluster.start_head()
        for node in [node for node in cluster.nodes if node.process.poll() is not None]:
            cluster.nodes.remove(node)
        while len(cluster.nodes) < NODES:
            cluster.add_node(1)
        cluster.wait_for_nodes(1 + NODES, seconds=240)


def words_of(pid: int) -> str:
    """A process's title or command; nothing if it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        return words.replace("\0", " ").strip()
    return ""


@contextlib.contextmanager
def site_of(folder: Path, s3: S3Server, mlflow: MlflowServer, prepared: Path) -> Iterator[Site]:
    """A site with these servers, which run already; the cluster's head keeps its state in Redis.

    Args:
        folder: with a short path.
        s3: behind a proxy then.
        mlflow: as well.
        prepared: the root of a storage that may have what runs share, and has it afterwards.
    """
    (folder / "tmp").mkdir(parents=True)
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, s3.env))
        to_mlflow, to_s3 = Proxy(mlflow.port), Proxy(s3.server.port)
        stack.callback(to_mlflow.stop)
        stack.callback(to_s3.stop)
        problem = stack.enter_context(small_disk(folder / "disk", DISK_KB))
        redis = Redis()
        redis.start()
        stack.callback(redis.stop)
        disk = None if problem else folder / "disk"
        cache = (disk or folder) / "cache"
        env = {
            "TMPDIR": str(folder / "tmp"),
            "T2I_RAY_CACHE": str(cache),
            # A lost node is noticed soon, and a lost head is waited for.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "180",
        }
        cluster = RayCluster(folder / "ray", cpus=0, nodes=[1] * NODES, env=env, redis=redis)
        stack.callback(cluster.stop)
        cluster.start_nodes()
        site = Site(folder, cluster, mlflow, s3, to_mlflow, to_s3, disk, cache)
        site.prepare(prepared)  # meanwhile
        cluster.wait_for_nodes(1 + NODES, seconds=240)
        yield site


@contextlib.contextmanager
def own_site(prepared: Path) -> Iterator[Site]:
    """With servers of its own, in a folder that goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="t2i-chaos-"))  # short: sockets lie below it
    (folder / "mlflow").mkdir()
    mlflow = MlflowServer(folder / "mlflow")
    began = time.monotonic()
    s3 = start_s3(folder / "s3")
    try:
        mlflow.start()
        with site_of(folder, s3, mlflow, prepared) as made:
            print(f"site in {folder}, after {time.monotonic() - began:.0f} s", flush=True)
            yield made
    finally:
        mlflow.stop()
        s3.server.stop()
        shutil.rmtree(folder, ignore_errors=True)
