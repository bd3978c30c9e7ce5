"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from mlflow_server import MlflowServer
from ray_cluster import RayCluster
from runner import RUN, Runner
from servers import S3Server, missing_programs, start_s3

from t2i_ray.config import Storage

Server = TypeVar("Server", MlflowServer, RayCluster)
#: By longest first: at the end no process should be left alone with one of them.
LONGEST = ("test_cluster", "test_short", "test_sweep", "test_train", "test_demo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server with a bucket, for the whole session."""
    if missing := missing_programs():
        pytest.skip(
            f"no {', '.join(missing)}: apt-get install --no-install-recommends "
            "radosgw ceph-mon ceph-osd"
        )
    started = start_s3(Path(tempfile.mkdtemp()))  # short: sockets lie below it
    yield started
    started.server.stop()
    shutil.rmtree(started.server.folder)


@pytest.fixture
def s3_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A place on an S3 server that is not there, and credentials for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.socket() as unheard:  # bound, not listening: connections are refused
        unheard.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        yield Storage(uri="s3://bucket/x", endpoint=endpoint)


def running(server: Server) -> Iterator[Server]:
    """Between its start and its end, however that start or the tests went."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server for the whole session; whoever stops it must start it again."""
    yield from running(MlflowServer(tmp_path_factory.mktemp("mlflow")))


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A Ray cluster of one node with four logical CPUs, for the whole session."""
    yield from running(RayCluster(tmp_path_factory.mktemp("ray")))


@pytest.fixture(scope="session")
def runner(ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """t2i-ray on that cluster, with one storage folder for the whole session."""
    return Runner(ray_cluster, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def unbroken(runner: Runner) -> str:
    """A finished run of two workers that nothing happened to, its model registered; its name."""
    runner.train("unbroken", *RUN, "tracking.register_model=true")
    return "unbroken"
