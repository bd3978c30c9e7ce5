"""doctor, and what train looks at by itself: real servers, well and broken in every way."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import boto3
import certifi
import pytest
from conftest import running
from mlflow_server import MlflowServer
from ray_cluster import RayCluster
from rich.console import Console
from runner import Runner, finish
from servers import S3Server
from small_configs import TINY, write_config
from small_models import small_models

from t2i_ray.config import Storage, UserError, load_config
from t2i_ray.data import open_prepared
from t2i_ray.data.prepare import prepare
from t2i_ray.doctor import Finding, show
from t2i_ray.doctor.finding import Aside
from t2i_ray.doctor.judge import SLOW, clock, gpus, line, room, versions
from t2i_ray.doctor.node import About, Disk, try_encoder, try_storage
from t2i_ray.doctor.nodes import Asked, Place
from t2i_ray.doctor.table import merged
from t2i_ray.encoders import build_encoder, caption_rows
from t2i_ray.launch.joining import _ask, _compare, join
from t2i_ray.storage import Store, check_writable, open_store
from t2i_ray.tracking import Destination, check_access, try_out
from t2i_ray.tracking.access import _tls
from t2i_ray.tracking.server import connect

CHECKS = {
    "cluster", "versions", "token", "resources", "GPUs", "clock", "disk", "storage", "MLflow",
    "dataset", "encoder", "embeddings", "all-reduce",
}  # fmt: skip
PASSWORD = "planted-password-4c81"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server that asks for a password."""
    if importlib.util.find_spec("flask_wtf") is None:
        pytest.skip("no basic-auth in MLflow: pip install 'mlflow[auth]'")
    yield from running(MlflowServer(tmp_path_factory.mktemp("secured"), password=PASSWORD))


@pytest.fixture
def silent() -> Iterator[str]:
    """host:port of what takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def keys(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its credentials in the environment."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return s3


def found(output: str, check: str, state: str) -> list[str]:
    """The plain table's rows of a check in a state."""
    lines = [line.split(maxsplit=2) for line in output.splitlines()]
    return [each[2] for each in lines if each[:2] == [state, check]]


# ------------------------------------------------------------------------------- the whole


@pytest.fixture
def set_up(
    runner: Runner, keys: S3Server, mlflow_server: MlflowServer, tmp_path: Path
) -> tuple[Runner, list[str], Store, str]:
    """A run of two workers with a frozen encoder, its data and embeddings made on S3."""
    model = small_models(tmp_path)["bert"]
    overrides = [
        f"storage.uri=s3://{keys.bucket}/{tmp_path.name}", f"storage.endpoint={keys.endpoint}",
        f"tracking.uri={mlflow_server.uri}", "cluster.workers=2", "data.source.images=64",
        f"encoder={{kind: huggingface, model: {model}, max_tokens: 24}}",
    ]  # fmt: skip
    config = load_config(runner.config("doctor"), overrides)
    store = open_store(config.storage)
    prefix = prepare(config.data, store, reach=config.storage)
    captions = open_prepared(store, prefix).captions
    caption_rows(build_encoder(config.encoder, captions), captions, store)
    return runner, overrides, store, prefix


def test_a_set_up_that_is_well_and_one_that_is_not(
    set_up: tuple[Runner, list[str], Store, str], s3_away: Storage
) -> None:
    runner, overrides, store, prefix = set_up
    command: list[str | Path] = ["doctor", runner.config("doctor"), "--timeout", "200", *overrides]
    before = store.list()

    output = runner.run(*command)
    assert not [line for line in output.splitlines() if line.startswith("failed")], output
    for check in CHECKS:
        assert found(output, check, "ok"), f"{check}: {output}"
    (embeddings,) = found(output, "embeddings", "ok")
    assert "hashes are right" in embeddings
    assert "gloo, 2 processes on 1 nodes" in found(output, "all-reduce", "ok")[0]
    assert store.list() == before  # nothing is left behind

    (shard,) = [key for key in before if key.endswith(".npy") and key.startswith(prefix)]
    store.write(shard, store.read(shard)[:-1] + b"?")
    shutil.rmtree(runner.cluster.folder / "home/.cache/t2i_ray")  # the node's copies
    store.delete("embeddings")
    refusing = f"tracking.uri={s3_away.endpoint}"
    output = runner.run(*command, refusing, code=1)
    (dataset,) = found(output, "dataset", "failed")
    assert shard in dataset
    assert "prepare again" in dataset
    (embeddings,) = found(output, "embeddings", "warning")
    assert "train computes them" in embeddings
    assert "does not answer" in found(output, "MLflow", "failed")[0]
    assert found(output, "storage", "ok")
    assert "Traceback" not in output


# --------------------------------------------------------------------------- what train does


def test_a_cluster_that_can_not_be_used_ends_it_in_one_line(runner: Runner, silent: str) -> None:
    """All at once: each takes seconds to import Ray."""
    wrong = runner.folder / "wrong"
    wrong.write_text("0" * 32)
    homeless = {"RAY_AUTH_TOKEN_PATH": "", "HOME": str(runner.folder)}
    cases: list[tuple[dict[str, str], list[str], list[str]]] = [
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, [], ["token is missing or wrong", "RAY_AUTH_TOKEN"]),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, [], ["/nowhere", "RAY_AUTH_TOKEN"]),
        (homeless, [], ["find an authentication token", "RAY_AUTH_TOKEN"]),
        ({"RAY_AUTH_MODE": "disabled"}, [], ["token is missing", "RAY_AUTH_MODE=token"]),
        (
            {"RAY_ADDRESS": "", "RAY_TMPDIR": "/proc/nowhere"},
            [],
            ["Ray does not start on this machine", "/proc/nowhere", "cluster.address"],
        ),
        (
            {},
            ["cluster.gpu=true", f"tracking.uri=http://{silent}"],  # the latter only warns
            ["1 GPUs", "the cluster has 0", "fewer workers"],
        ),
    ]
    started = [
        runner.start_training(f"unwanted-{i}", *overrides, env=env)
        for i, (env, overrides, _) in enumerate(cases)
    ]
    outputs = [finish(process, code=2) for process in started]
    for (_, _, says), output in zip(cases, outputs, strict=True):
        line = output.strip().splitlines()[-1]
        assert line.startswith("error: "), output
        for part in says:
            assert part in line, output
        assert "Traceback" not in output
    warnings = [line for line in outputs[-1].splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"MLflow at http://{silent} does not answer" in warnings[0]
    assert "training goes on" in warnings[0]
    assert not list((runner.folder / "store/runs").glob("unwanted-*"))


def test_a_cluster_that_asks_for_no_token(tmp_path: Path) -> None:
    """Whoever joins it is told; doctor says that it fails."""
    off = {"RAY_AUTH_MODE": "disabled"}
    (tmp_path / "runs").mkdir()
    cluster = RayCluster(tmp_path / "ray", cpus=1, env=off)
    try:
        cluster.start()
        runner = Runner(cluster, tmp_path / "runs")
        flowers = ["images=64", "shard_size=32", "image_size=16", "load_size=18"]
        data: list[str | Path] = ["prepare", "synthetic-flowers", *flowers, "-s", tmp_path]
        preparing = runner.start(*data, env=off)
        training = runner.train("unguarded", "cluster.gpu=true", code=2, env=off)
        for output in (training, finish(preparing)):
            (line,) = [line for line in output.splitlines() if line.startswith("warning: ")]
            assert "the cluster asks for no token" in line
            assert "RAY_AUTH_MODE=token" in line
        output = runner.run("doctor", runner.config("open"), "--timeout", "100", code=1, env=off)
        assert "warning: " not in output  # its rows tell
        head, node = found(output, "token", "failed")
        assert "answers without one" in head
        assert "whoever reaches it runs any code" in node
    finally:
        cluster.stop()


def test_an_address_without_a_cluster(silent: str, mlflow_server: MlflowServer) -> None:
    http = mlflow_server.uri.removeprefix("http://")
    for address, says in {
        "127.0.0.1:9": "no Ray cluster answers there; start one with 'ray start --head'",
        silent: "no answer in 1 s; mend the address",
        http: "not the head of a Ray cluster; give the port of 'ray start --head'",
    }.items():
        # Not by join(), which takes this machine's own address for loopback's, as Ray does.
        with pytest.raises(UserError, match=f"^head: .*{says}"):
            _ask(address, "head", timeout=1)
    with pytest.raises(UserError, match=r"^cluster\.address=nonsense: write it as host:port"):
        join("nonsense")


#: Makes a running cluster one of another Ray, for as long as a command takes.
OTHER_RAY = """
import json, os, subprocess, sys
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY as KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER as SPACE
from ray._raylet import GcsClient

gcs = GcsClient(address=os.environ["RAY_ADDRESS"])
true = gcs.internal_kv_get(KEY, namespace=SPACE, timeout=30)
other = json.dumps({**json.loads(true), "ray_version": "2.59.0"}).encode()
gcs.internal_kv_put(KEY, other, True, namespace=SPACE, timeout=30)
try:
    code = subprocess.run([sys.executable, "-m", "t2i_ray", *sys.argv[1:]]).returncode
finally:
    gcs.internal_kv_put(KEY, true, True, namespace=SPACE, timeout=30)
sys.exit(code)
"""


def test_a_cluster_of_another_ray_is_not_joined(runner: Runner) -> None:
    command = [sys.executable, "-c", OTHER_RAY, "train", str(runner.config("foreign"))]
    done = subprocess.run(command, capture_output=True, text=True, env=runner.cluster.env)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert f"127.0.0.1:{runner.cluster.port}: it runs Ray 2.59.0" in line
    assert "same image" in line
    assert "Traceback" not in done.stdout + done.stderr
    assert not (runner.folder / "store/runs/foreign").exists()


def test_other_versions_are_named() -> None:
    theirs = json.dumps({"ray_version": "2.59.0", "python_version": "3.10.1"}).encode()
    with pytest.raises(UserError, match=r"Ray 2\.59\.0 and Python 3\.10\.1, and this process") as e:
        _compare(theirs, "cluster.address=head:6379")
    assert "same image" in str(e.value)
    _compare(b"", "cluster.address=head:6379")  # says nothing: ray.init will


def test_storage_and_mlflow_that_can_not_be_used_end_it_in_one_line(
    runner: Runner, keys: S3Server, secured: MlflowServer
) -> None:
    """All at once: each takes seconds to start."""
    client = boto3.client("s3", endpoint_url=keys.endpoint)
    client.create_bucket(Bucket="read-only")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:PutObject"],
        "Resource": ["arn:aws:s3:::read-only/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    client.put_bucket_policy(Bucket="read-only", Policy=json.dumps(policy))

    nameless = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    none_there, denied = "no-such-bucket", "read-only"
    cases: list[tuple[str, list[str], list[str]]] = [
        ("train", on(keys.endpoint, none_there), [none_there, "NoSuchBucket", "create the bucket"]),
        ("tune", on(keys.endpoint, none_there), [none_there, "NoSuchBucket", "create the bucket"]),
        ("train", on(keys.endpoint, denied), ["s3://read-only/x", "AccessDenied", "grant"]),
        ("train", on("http://127.0.0.1:9", "bucket"), ["s3://bucket/x", "mend storage.endpoint"]),
        ("train", on(secured.uri, "bucket"), ["s3://bucket/x", "401", "mend storage.endpoint"]),
        (
            "train",
            [*on(keys.endpoint, keys.bucket), f"tracking.uri={secured.uri}"],
            [secured.uri, "asks for a password (401)", "set MLFLOW_TRACKING_USERNAME"],
        ),
    ]
    space = {
        "evaluation": {"every": 20, "samples": 32},
        "space": {"optim.lr_g": {"grid": [0.001]}},
        "search": {"metric": "val/frechet_reader", "mode": "min"},
    }
    files = {
        "train": runner.config("unstored"),
        "tune": runner.config("unstored-sweep", {**TINY, **space}),
    }
    started = [
        runner.start(command, files[command], *overrides, env=nameless)
        for command, overrides, _ in cases
    ]
    outputs = [finish(process, code=2) for process in started]
    for (_, _, says), output in zip(cases, outputs, strict=True):
        (line,) = output.strip().splitlines()  # neither data nor workers were begun with
        assert line.startswith("error: "), output
        for part in says:
            assert part in line, output
    found = open_store(Storage(uri=f"s3://{keys.bucket}/x", endpoint=keys.endpoint))
    assert found.list() == []


def on(endpoint: str, bucket: str) -> list[str]:
    """A place in a bucket, as overrides."""
    return [f"storage.uri=s3://{bucket}/x", f"storage.endpoint={endpoint}"]


def test_a_server_that_takes_connections_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("t2i_ray.storage.s3._HURRY", (1, 1, 2))
    with pytest.raises(UserError, match=r"ReadTimeoutError.*mend storage\.endpoint"):
        check_writable(open_store(Storage(uri="s3://bucket/x", endpoint=f"http://{silent}")))


def test_a_server_that_is_no_store(
    monkeypatch: pytest.MonkeyPatch, mlflow_server: MlflowServer
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(UserError, match=r"not a store of objects; mend storage\.endpoint"):
        check_writable(open_store(Storage(uri="s3://bucket/x", endpoint=mlflow_server.uri)))


# ----------------------------------------------------------------------------------- MLflow


@pytest.fixture
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials for MLflow."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    for name in ("USERNAME", "PASSWORD", "TOKEN", "URI"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.mark.usefixtures("_nobody")
def test_mlflow_that_answers_or_not(
    mlflow_server: MlflowServer, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2i_ray.tracking.access.TIMEOUT", 1.0)
    there = Destination(mlflow_server.uri, "no-such-experiment")
    assert check_access(there) is None
    assert "'no-such-experiment'" in try_out(there)
    experiment = connect(there).get_experiment_by_name(there.experiment)
    assert not [tag for tag in experiment.tags if tag.startswith("t2i_ray")]
    assert check_access(there) is None
    for uri in (f"http://{silent}", "http://127.0.0.1:9", mlflow_server.uri + "/elsewhere"):
        problem = check_access(replace(there, uri=uri))
        assert problem
        assert uri in problem
        assert "mend tracking.uri" in problem


@pytest.mark.usefixtures("_nobody")
def test_mlflow_that_asks_for_a_password(
    secured: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = Destination(secured.uri, "doctor")
    with pytest.raises(UserError, match=r"asks for a password \(401\); set MLFLOW_TRACKING_USER"):
        check_access(there)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
    with pytest.raises(UserError, match=r"refuses the user and password .*; mend") as caught:
        check_access(there)
    assert "sesame" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert check_access(there) is None
    assert "writable" in try_out(there)
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    file = tmp_path / ".mlflow/credentials"  # MLflow's own client reads it
    file.parent.mkdir()
    file.write_text(
        f"[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = {PASSWORD}"
    )
    assert check_access(there) is None
    file.write_text("[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = no")
    with pytest.raises(UserError, match=r"\(401\)"):
        check_access(there)
    file.unlink()
    host = urlsplit(secured.uri).hostname
    (tmp_path / ".netrc").write_text(f"machine {host} login admin password {PASSWORD}\n")
    assert check_access(there) is None


@pytest.mark.usefixtures("_nobody")
def test_a_password_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers["Host"]
            seen.append((host, self.headers["Authorization"]))
            body = b'{"experiment": {}}'
            self.send_response(302 if host == asked else 200)
            self.send_header("Location", f"http://{other}{self.path}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    address = ("127.0.0.1", 0)
    with HTTPServer(address, Answers) as first, HTTPServer(address, Answers) as second:
        asked, other = (f"127.0.0.1:{server.server_port}" for server in (first, second))
        for server in (first, second):
            Thread(target=server.serve_forever, daemon=True).start()
        assert check_access(Destination(f"http://{asked}", "a")) is None
        for server in (first, second):
            server.shutdown()
    assert [host for host, _ in seen] == [asked, other]
    assert seen[0][1] is not None
    assert seen[1][1] is None


def test_a_ca_of_the_users_own_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end = "-----END CERTIFICATE-----\n"
    one, two = (part + end for part in Path(certifi.where()).read_text().split(end)[:2])
    (tmp_path / "one.pem").write_text(one)
    (tmp_path / "two.pem").write_text(one + two)
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH", raising=False)
    for number, name in enumerate(("REQUESTS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH"), 1):
        monkeypatch.setenv(name, str(tmp_path / ("one.pem" if number == 1 else "two.pem")))
        assert len(_tls().get_ca_certs()) == number


# ---------------------------------------------------------------------------------- judging


def test_a_clock_is_judged_by_the_quickest_answer() -> None:
    answers = iter([(0.0, 9.0, 4.0), (10.0, 10.1, 10.01), (20.0, 29.0, 28.0)])
    row = clock("node", lambda: next(answers), tries=3)
    assert (row.state, row.found.split()[0]) == ("ok", "+0.095")
    assert clock("node", lambda: (0.0, -5.0, 0.1)).state == "warning"
    assert clock("node", lambda: (0.0, 3600.0, 0.1)).state == "failed"
    assert clock("node", lambda: (0.0, 5.0, 9.0)).state == "ok"  # the answer says no more


def test_room_is_what_ray_needs_of_it() -> None:
    sizes = {"ok": (50, 100), "warning": (3, 100), "failed": (0.5, 100)}
    for state, (free, total) in sizes.items():
        assert room("node", Disk("/tmp", int(free * 1e9), int(total * 1e9))).state == state


def test_another_version_on_a_node_is_named() -> None:
    here = {"Ray": "2.60.0", "torch": "2.13.0", "t2i_ray": "0.1.0"}
    assert versions("node", {**here}, here).state == "ok"
    row = versions("node", {"Ray": "2.59.0", "torch": "2.13.0"}, here)
    assert row.state == "failed"
    assert row.found == "Ray 2.59.0 (driver 2.60.0), t2i_ray None (driver 0.1.0)"
    assert "same image" in row.remedy


@pytest.mark.parametrize(
    ("counted", "listed", "gpu", "state", "says"),
    [
        (2, 1, True, "failed", "Ray counts 2, nvidia-smi lists 1; mend the NVIDIA driver"),
        (1, 2, True, "warning", "nvidia-smi lists 2, Ray counts 1; start Ray there with"),
        (2, 2, False, "warning", "H200; the run is on CPUs; set cluster.gpu=true"),
        (2, 2, True, "ok", "H200; "),
        (0, 0, False, "ok", "none; "),
    ],
)
def test_gpus_are_those_that_ray_counts_and_the_driver_lists(
    tmp_path: Path, counted: int, listed: int, gpu: bool, state: str, says: str
) -> None:
    config = load_config(write_config(tmp_path, "gpus"), [f"cluster.gpu={str(gpu).lower()}"])
    place = Place("id", "node", cpus=1.0, gpus=float(counted), actor=None)
    row = gpus(config, place, About({}, True, ["H200"] * listed, []))
    assert row.state == state
    assert f"{row.found}; {row.remedy}".startswith(says)


def test_storage_that_is_not_the_drivers_or_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(tmp_path, "place"))
    store = open_store(config.storage)
    row = try_storage(config, "node", "probe")
    assert row.state == "failed"
    assert "is not what it is on the driver" in row.found
    assert "mount the same folder on every node" in row.remedy
    store.write("probe/driver", b"")
    assert try_storage(config, "node", "probe").state == "ok"
    monkeypatch.setattr("t2i_ray.doctor.node.SLOW", 1e9)  # nothing is as fast as that
    row = try_storage(config, "node", "probe")
    assert (row.state, row.remedy.partition(":")[0]) == ("warning", "it is slow")
    assert store.list() == ["probe/driver"]


def test_an_encoder_that_does_not_load(tmp_path: Path) -> None:
    encoder = f"encoder={{kind: huggingface, model: {tmp_path}}}"
    config = load_config(write_config(tmp_path, "unloadable"), [encoder])
    (row,) = try_encoder(config, "node", None, embed=True)
    assert (row.check, row.state) == ("encoder", "failed")
    assert "encoder.model" in row.found
    assert row.remedy


def test_a_line_between_workers_that_is_slow() -> None:
    assert line("gloo", SLOW).state == "ok"
    row = line("gloo", SLOW - 1)
    assert (row.state, row.found) == ("warning", "gloo")
    assert "docs/doctor.md" in row.remedy


def test_what_has_not_answered_by_its_time_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = Event()
    look = Aside("clock", lambda: Finding("clock", "node", "ok", str(hangs.wait())), "node")
    monkeypatch.setattr("ray.wait", lambda asked, timeout: ([], asked))  # as of a node that hangs
    for row in (look.finding(0.0), Asked("clock", "node", object(), 0.0).answer()):
        assert (row.check, row.where, row.state) == ("clock", "node", "failed")
        assert row.found == "no answer in 0 s"
        assert "--timeout" in row.remedy
    hangs.set()


def test_many_nodes_that_are_well_are_one_row() -> None:
    rows = [Finding("clock", f"10.0.0.{i}", "ok", f"{i} ms", weight=i) for i in range(60)]
    rows[7] = Finding("clock", "10.0.0.7", "failed", "an hour", "set it right")
    first, second = merged([Finding("clock", "driver", "ok", "here"), *rows])[1:]
    assert (first.where, first.found) == ("59 nodes", "the worst: 59 ms")
    assert second is rows[7]


def test_a_terminal_gets_a_table_and_a_file_gets_lines() -> None:
    rows = [
        Finding("storage", "driver", "ok", "fast"),
        Finding("GPUs", "10.0.0.1", "failed", "[none]", "mend the driver" + " and the card" * 20),
    ]
    plain = io.StringIO()
    show(rows, Console(file=plain, width=80))
    assert plain.getvalue().splitlines() == [
        "ok      storage  driver    fast",
        f"failed  GPUs     10.0.0.1  [none]; {rows[1].remedy}",
        "1 ok, 0 warning, 1 failed",
    ]
    table = io.StringIO()
    show(rows, Console(file=table, width=80, force_terminal=True))
    assert "┏" in table.getvalue()
    assert "[none]" in table.getvalue()


def test_bad_input_is_not_examined(tmp_path: Path) -> None:
    config = write_config(tmp_path, "bad")
    done = subprocess.run(
        [sys.executable, "-m", "t2i_ray", "doctor", str(config), "trian.steps=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
