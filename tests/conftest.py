"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
from mlflow_server import MlflowServer
from ray_cluster import RayCluster
from runner import Runner
from servers import Radosgw, S3Server, missing_programs


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with a bucket, for the whole session; takes some 20 s to start."""
    if missing := missing_programs():
        pytest.skip(
            f"no {', '.join(missing)}: apt-get install --no-install-recommends "
            "radosgw ceph-mon ceph-osd"
        )
    server = Radosgw(tmp_path_factory.mktemp("radosgw"))
    try:
        server.start()
        boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        ).create_bucket(Bucket="t2i-ray-tests")
        yield S3Server(server.endpoint, "t2i-ray-tests", server.env, server)
    finally:
        server.stop()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server for the whole session; whoever stops it must start it again."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A Ray cluster of one node with four logical CPUs, for the whole session."""
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def runner(ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """t2i-ray on that cluster, with one storage folder for the whole session."""
    return Runner(ray_cluster, tmp_path_factory.mktemp("runs"))
