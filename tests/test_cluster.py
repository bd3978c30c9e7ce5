"""A cluster as it is run for others: three nodes, jobs, PostgreSQL behind MLflow, S3, Redis.

What came of a job is looked at as anyone could: in the bucket by boto3, in MLflow by its REST API.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from mlflow_server import ShippedMlflowServer
from postgres import Postgres, binaries
from ray_cluster import BIN, RayCluster
from servers import Redis, S3Server
from small_configs import TINY, flowers

PREFIX = "site"
STEPS = 60
LONG = 160  # time enough to stop it, or to kill what it runs on
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RELATIVE = "a relative path would be looked for in the Ray job's temporary folder"


@dataclass
class Site:
    """The cluster and its services, and the job's working directory."""

    cluster: RayCluster
    mlflow: ShippedMlflowServer
    postgres: Postgres
    redis: Redis
    s3: S3Server
    folder: Path

    # ------------------------------------------------------------------------------ jobs

    def submit(
        self, *command: str, job: str | None = None, wait: bool = True, code: int = 0
    ) -> str:
        """``ray job submit`` as its user types it; what it printed."""
        env_vars = {"T2I_RAY_COMMIT": COMMIT, "PATH": f"{BIN}:/usr/bin:/bin", "COLUMNS": "200"}
        options = ["--working-dir", str(self.folder)]
        options += ["--runtime-env-json", json.dumps({"env_vars": env_vars})]
        options += [f"--submission-id={job}"] if job else []
        options += [] if wait else ["--no-wait"]
        return self.ray_job("submit", *options, "--", *command, code=code)

    def ray_job(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(BIN / "ray"), "job", *arguments],
            capture_output=True,
            text=True,
            timeout=900,
            env=self.cluster.job_env,
            cwd=self.folder,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def job(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.cluster.get(f"/api/jobs/{name}")
        return answer

    def log(self, name: str) -> str:
        return str(self.cluster.get(f"/api/jobs/{name}/logs")["logs"])

    # ------------------------------------------------------------------------ the bucket

    @property
    def bucket(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.s3.endpoint,
            aws_access_key_id=self.s3.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.s3.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )

    def keys(self, prefix: str) -> list[str]:
        pages = self.bucket.get_paginator("list_objects_v2").paginate(
            Bucket=self.s3.bucket, Prefix=prefix
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def read(self, key: str) -> bytes:
        answer = self.bucket.get_object(Bucket=self.s3.bucket, Key=key)
        return bytes(answer["Body"].read())

    def record(self, run: str) -> dict[str, Any]:
        """The run as its storage has it; empty if there is none."""
        try:
            record: dict[str, Any] = json.loads(self.read(f"{PREFIX}/runs/{run}/run.json"))
        except ClientError:
            return {}
        return record

    def checkpoints(self, run: str) -> list[int]:
        """Steps of the finished checkpoints."""
        keys = self.keys(f"{PREFIX}/runs/{run}/checkpoints/")
        return sorted(int(key.split("/")[-2][5:]) for key in keys if key.endswith("manifest.json"))

    # ------------------------------------------------------------------------- MLflow

    def runs(self, condition: str) -> list[dict[str, Any]]:
        """Runs that fulfil it; params, tags and last metrics by name."""
        found = self.mlflow.rest("experiments/get-by-name?experiment_name=t2i_ray")
        experiments = [found["experiment"]["experiment_id"]]
        answer = self.mlflow.rest("runs/search", experiment_ids=experiments, filter=condition)
        return [
            {
                **run["info"],
                **{
                    kind: {item["key"]: item["value"] for item in run["data"].get(kind, [])}
                    for kind in ("params", "tags", "metrics")
                },
            }
            for run in answer.get("runs", [])
        ]

    def run(self, name: str) -> dict[str, Any]:
        (run,) = self.runs(f"attributes.run_name = '{name}'")
        return run

    def steps(self, run: dict[str, Any], metric: str) -> list[int]:
        """The steps at which a metric was logged, as often as it was."""
        query = f"metrics/get-history?run_id={run['run_id']}&metric_key={metric}"
        return sorted(int(point.get("step", 0)) for point in self.mlflow.rest(query)["metrics"])


@pytest.fixture(scope="module")
def site(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Three nodes, of which the head trains nothing, and all that they talk to."""
    lacking = [] if binaries() else ["no PostgreSQL: apt-get install postgresql"]
    if not shutil.which("redis-server"):
        lacking.append("no redis-server: apt-get install redis-server")
    if not importlib.util.find_spec("flask_wtf"):
        lacking.append("no basic-auth in MLflow: pip install 'mlflow[auth]'")
    if lacking:
        pytest.skip("; ".join(lacking))
    folder = tmp_path_factory.mktemp("site")
    (folder / "job").mkdir()
    postgres, redis = Postgres(), Redis()
    with ExitStack() as stack:
        for server in (postgres, redis):
            stack.callback(server.stop)
            server.start()
        (folder / "mlflow").mkdir()
        mlflow = ShippedMlflowServer(
            folder / "mlflow",
            postgres,
            artifacts=f"s3://{s3.bucket}/mlflow",
            env={
                **s3.env,
                "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
                "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            },
        )
        stack.callback(mlflow.stop)
        cluster = RayCluster(
            folder / "ray",
            cpus=0,
            nodes=[1, 1],
            env={
                **mlflow.client_env,
                # The nodes wait so long for a head that is away.
                "RAY_gcs_rpc_server_reconnect_timeout_s": "180",
            },
            redis=redis,
        )
        stack.callback(cluster.stop)
        cluster.start_nodes()
        mlflow.start()  # meanwhile
        cluster.wait_for_nodes(3)
        yield Site(cluster, mlflow, postgres, redis, s3, folder / "job")


def write(site: Site, name: str, document: dict[str, Any]) -> str:
    """A config in the job's working directory, stored in the bucket; its file's name."""
    storage = {"uri": f"s3://{site.s3.bucket}/{PREFIX}", "endpoint": site.s3.endpoint}
    path = site.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**document, "name": name, "storage": storage}))
    return path.name


def until(ready: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def pair(**train: Any) -> dict[str, Any]:
    """A run of two workers, for which two nodes are needed."""
    train = {**TINY["train"], "steps": STEPS, **train}
    return {**TINY, "train": train, "cluster": {"workers": 2}}


def assert_complete(site: Site, name: str, steps: int) -> None:
    """Finished, with each step once in MLflow, and a sound last checkpoint in the bucket."""
    run = site.run(name)
    assert run["status"] == site.record(name)["status"] == "FINISHED"
    for metric in ("d_loss", "g_loss"):
        assert site.steps(run, metric) == list(range(1, steps + 1)), metric
    assert site.checkpoints(name)[-1] == steps
    folder = f"{PREFIX}/runs/{name}/checkpoints/step_{steps:08d}"
    manifest = json.loads(site.read(f"{folder}/manifest.json"))
    assert {"generator.safetensors", "config.json"} <= manifest["files"].keys()
    for file, entry in manifest["files"].items():
        assert hashlib.sha256(site.read(f"{folder}/{file}")).hexdigest() == entry["sha256"], file


@pytest.fixture(scope="module")
def trained(site: Site) -> str:
    """What the job train-1 printed, which trained on both nodes."""
    return site.submit("t2i-ray", "train", write(site, "trained", pair()), job="train-1")


def test_a_training_on_two_nodes(site: Site, trained: str) -> None:
    assert f"step {STEPS}/{STEPS}" in trained
    assert "Job 'train-1' succeeded" in trained
    assert site.job("train-1")["driver_exit_code"] == 0
    assert_complete(site, "trained", STEPS)
    run = site.run("trained")
    assert run["params"]["cluster.workers"] == "2"
    assert run["tags"]["mlflow.source.git.commit"] == COMMIT
    assert run["tags"]["t2i_ray.submission"] == "train-1"

    # Artifacts went through MLflow's server into its part of the bucket.
    experiment, run_id = run["experiment_id"], run["run_id"]
    artifacts = site.keys(f"mlflow/{experiment}/{run_id}/artifacts/")
    assert {"config.yaml", "losses.png"} <= {key.rsplit("/", 1)[1] for key in artifacts}

    # Each node has its own copy of the pictures, under the sha256 that the bucket's manifest says.
    (manifest,) = [k for k in site.keys(f"{PREFIX}/data/") if k.endswith("/manifest.json")]
    sums = {shard["images_sha256"] for shard in json.loads(site.read(manifest))["shards"]}
    for node in site.cluster.nodes:
        assert sums <= {path.name for path in (node.home / ".cache/t2i_ray").iterdir()}

    # The same again: it says so, and does nothing.
    before = site.read(f"{PREFIX}/runs/trained/run.json")
    output = site.submit("t2i-ray", "train", "trained.yaml")
    assert f"trained: finished already, at step {STEPS}; nothing to do" in output
    assert site.read(f"{PREFIX}/runs/trained/run.json") == before
    assert site.run("trained") == run


@pytest.fixture(scope="module")
def swept(site: Site) -> str:
    """What a sweep of two settings printed, at the same time, one on each node."""
    config = write(
        site,
        "swept",
        {
            **TINY,
            "train": {**TINY["train"], "steps": 20},
            "evaluation": {"every": 20, "samples": 32},
            "space": {"optim.lr_g": {"grid": [0.001, 0.0001]}},
            "search": {"seeds": [0], "metric": "val/frechet_reader", "mode": "min"},
        },
    )
    return site.submit("t2i-ray", "tune", config)


def test_a_sweep(site: Site, swept: str) -> None:
    (parent,) = site.runs("attributes.run_name = 'swept'")
    children = site.runs(f"tags.mlflow.parentRunId = '{parent['run_id']}'")
    assert [run["status"] for run in (parent, *children)] == ["FINISHED"] * 3, swept
    assert parent["tags"]["t2i_ray.trials.finished"] == "2"
    scores = {}
    for child in children:
        assert site.steps(child, "g_loss") == list(range(1, 21))
        scores[child["params"]["optim.lr_g"]] = child["metrics"]["val/frechet_reader"]
    answer = json.loads(site.read(f"{PREFIX}/sweeps/swept/answer.json"))
    rows = answer["parts"][0]["rows"]
    assert [row["mean"] for row in rows] == sorted(scores.values())
    assert parent["tags"]["t2i_ray.best"] == rows[0]["setting"]
    assert rows[0]["setting"] == f"lr_g={min(scores, key=lambda rate: scores[rate])}"


def test_a_job_is_stopped_and_goes_on(site: Site) -> None:
    config = write(site, "stopped", pair(steps=LONG))
    site.submit("t2i-ray", "train", config, job="stop-1", wait=False)
    until(lambda: bool(site.checkpoints("stopped")))
    site.ray_job("stop", "stop-1")
    assert site.job("stop-1")["status"] == "STOPPED"
    record = site.record("stopped")
    assert record["status"] == site.run("stopped")["status"] == "KILLED"
    assert 0 < record["step"] < LONG
    assert site.checkpoints("stopped")[-1] == record["step"]
    log = site.ray_job("logs", "stop-1")
    assert "SIGTERM: saving a checkpoint, then leaving" in log
    assert f"killed at step {record['step']}/{LONG}" in log

    output = site.submit("t2i-ray", "train", config, job="stop-2")
    assert f"continues from step {record['step']}" in output
    assert f"step {LONG}/{LONG}" in output
    assert_complete(site, "stopped", LONG)
    assert site.run("stopped")["tags"]["t2i_ray.submission"] == "stop-2"


def test_exit_codes_and_no_secret_anywhere(site: Site, trained: str, swept: str) -> None:
    config = write(site, "diverged", pair())
    output = site.submit("t2i-ray", "train", config, "optim.lr_g=1e30", job="bad-1", code=1)
    assert "failed at step" in output
    assert "a loss is not finite" in output
    assert site.job("bad-1")["driver_exit_code"] == 1
    assert site.run("diverged")["status"] == site.record("diverged")["status"] == "FAILED"
    site.submit("t2i-ray", "train", config, "trian.steps=2", job="bad-2", code=1)
    assert site.job("bad-2")["driver_exit_code"] == 2
    (line,) = [line for line in site.log("bad-2").splitlines() if "error: " in line]
    assert "trian" in line

    secrets = [
        site.s3.env["AWS_SECRET_ACCESS_KEY"],
        str(site.mlflow.password),
        site.mlflow.admin,
        site.postgres.password,
        site.redis.password,
        site.cluster.token,
    ]
    jobs = jobs_of(site)
    told = [json.dumps(jobs), *(site.log(job["submission_id"]) for job in jobs)]
    told += [json.dumps(run) for run in site.runs("")]
    told.append(json.dumps(site.cluster.get("/api/v0/runtime_envs")))
    session = site.cluster.session
    told += [path.read_text(errors="replace") for path in session.rglob("*.log")]
    stored = [site.read(key) for key in site.keys("")]
    assert len(stored) > 50
    for secret in secrets:
        assert not [text for text in told if secret in text]
        assert not [data for data in stored if secret.encode() in data]


#: Every command with relative paths: what it is to say, and its exit code.
COMMANDS = {
    "t2i-ray doctor trained.yaml --timeout 200": (0, "gloo, 2 processes on 2 nodes"),
    "t2i-ray doctor trained.yaml storage.uri=here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray train trained.yaml storage.uri=here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray train trained.yaml evaluation.inception=w": (2, f"evaluation.inception=w: {RELATIVE}"),
    "t2i-ray tune swept.yaml storage.uri=here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray pretrain-encoder trained.yaml storage.uri=here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray prepare folder path=pictures $STORE": (2, f"data.source.path=pictures: {RELATIVE}"),
    "t2i-ray prepare synthetic-flowers images=64 $SIZES $STORE": (0, "captions"),
    "t2i-ray runs -s here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray runs $STORE": (0, "trained"),
    "t2i-ray sync -s here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray sync trained $STORE": (0, "trained: complete"),
    "t2i-ray generate trained 'a red flower' $STORE": (2, f"--output=grid.png: {RELATIVE}"),
    "t2i-ray generate trained -f captions.txt -o $TMP/drawn.png $STORE": (0, "drawn.png"),
    "t2i-ray evaluate trained -s here": (2, f"storage.uri=here: {RELATIVE}"),
    "t2i-ray evaluate trained --count 32 $STORE": (0, "frechet_reader"),
    "t2i-ray compare swept --html out.html $STORE": (2, f"--html=out.html: {RELATIVE}"),
    "t2i-ray compare swept --html $TMP/out.html $STORE": (0, "out.html"),
}


def test_every_command_in_a_job(site: Site, trained: str, swept: str, tmp_path: Path) -> None:
    """Relative paths are those of the working directory to be read; nothing is written there."""
    (site.folder / "captions.txt").write_text("a blue flower\n")
    sizes = " ".join(f"{key}={value}" for key, value in flowers(0).items() if key != "source")
    script = [
        f"export TMP={tmp_path} SIZES='{sizes}'",
        f"export STORE='-s s3://{site.s3.bucket}/{PREFIX} --endpoint {site.s3.endpoint}'",
    ]
    for command in COMMANDS:
        script += ["echo ==", f"{command} 2>&1", "echo code $?"]
    (site.folder / "commands.sh").write_text("\n".join(script))
    output = site.submit("bash", "commands.sh")
    parts = output.split("==\n")[1:]
    for (command, (code, says)), part in zip(COMMANDS.items(), parts, strict=True):
        assert f"code {code}\n" in part, f"{command}:\n{part}"
        assert says in part, f"{command}:\n{part}"
        assert "Traceback" not in part
    assert {path.name for path in tmp_path.iterdir()} >= {"drawn.png", "out.html"}


def test_the_head_dies_and_comes_back(site: Site, trained: str) -> None:
    """Its state is in Redis: jobs are known again, the nodes stay, and the run goes on."""
    config = write(site, "headless", pair(steps=LONG))
    site.submit("t2i-ray", "train", config, job="head-1", wait=False)
    until(lambda: bool(site.checkpoints("headless")))
    steps = site.checkpoints("headless")
    nodes, jobs = site.cluster.alive(), {job["submission_id"] for job in jobs_of(site)}
    assert site.cluster.head
    assert trained
    site.cluster.head.kill()
    site.cluster.start_head()
    site.cluster.wait_for_nodes(3, seconds=120)
    assert site.cluster.alive() == nodes
    assert all(node.process.poll() is None for node in site.cluster.nodes)
    assert {job["submission_id"] for job in jobs_of(site)} >= jobs
    assert site.job("train-1")["status"] == "SUCCEEDED"

    output = site.submit("t2i-ray", "train", config, job="head-2")
    until(lambda: site.job("head-1")["status"] == "FAILED")  # Ray looks when it is next asked
    (line,) = [line for line in output.splitlines() if "continues from step" in line]
    assert int(line.split()[-1]) >= steps[-1]
    assert_complete(site, "headless", LONG)
    assert len(site.record("headless")["attempts"]) == 2


def jobs_of(site: Site) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = site.cluster.get("/api/jobs/")
    return [job for job in jobs if job["submission_id"]]
