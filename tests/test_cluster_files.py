"""cluster/: what can be said of its files without a cloud, by Ray's own schema and code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.aws.config import _configure_security_group
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

REPOSITORY = Path(__file__).resolve().parent.parent
CLUSTER = REPOSITORY / "cluster"
FILES = ("aws", "gcp", "on_prem")
CLOUDS = ("aws", "gcp")
SPOT = {"aws": {"MarketType": "spot"}, "gcp": "SPOT"}


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return config


# ------------------------------------------------------------------------------- ray up


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name: str) -> None:
    """As `ray up` does it: the schema, then with its provider's defaults filled in."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read(name), schema)
    prepared = prepare_config(read(name))
    validate_config(prepared)
    assert "pip install" in " ".join(prepared["worker_setup_commands"])


@pytest.mark.parametrize("name", FILES)
def test_schema_would_say_no(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="heads"):
        validate_config(prepare_config({**read(name), "heads": 1}))


@pytest.mark.parametrize("name", FILES)
def test_every_ray_starts_with_token_and_on_loopback(name: str) -> None:
    config = read(name)
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert len(commands) == 4 + (name in CLOUDS)
    assert all(command.startswith(". ~/node.env; ") for command in commands)
    assert config["file_mounts"]["~/node.env"] == "./cluster/node.env"
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in (CLUSTER / f"{name}.yaml").read_text()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_to_the_nodes_is_there(name: str) -> None:
    for place in read(name)["file_mounts"].values():
        if place.startswith("./"):
            # The wheel is built by the command in the README.
            assert place == "./dist" or (REPOSITORY / place).is_file(), place
        else:
            assert place in ("~/.ray/auth_token", "~/.t2i_ray/secrets.env")
    installs = [c for c in read(name)["setup_commands"] if "dist/" in c]
    assert installs
    assert all("-c ~/constraints.txt" in command for command in installs)


def test_node_env(tmp_path: Path) -> None:
    """As a node's shell reads it: what is set, and that secrets come from a file beside it."""
    (tmp_path / ".t2i_ray").mkdir()
    (tmp_path / ".t2i_ray" / "secrets.env").write_text("export MLFLOW_TRACKING_USERNAME=trainer\n")
    command = f"set -eu; . {CLUSTER}/node.env; env"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", command], env=env, check=True, capture_output=True, text=True
    )
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert seen["RAY_AUTH_MODE"] == "token"
    assert seen["RAY_AUTH_TOKEN_PATH"] == f"{tmp_path}/.ray/auth_token"
    assert int(seen["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert seen["RAY_health_check_period_ms"] == "1000"
    assert seen["RAY_health_check_failure_threshold"] == "5"
    assert seen["MLFLOW_TRACKING_USERNAME"] == "trainer"
    assert seen["PATH"].startswith(f"{tmp_path}/t2i-venv/bin:")


@pytest.mark.parametrize("name", CLOUDS)
def test_head_trains_nothing_and_workers_come_from_nothing(name: str) -> None:
    config = prepare_config(read(name))
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0
    assert [kind["min_workers"] for kind in types.values()] == [0, 0]
    assert all(0 < kind["max_workers"] <= config["max_workers"] for kind in types.values())
    spot, other = (json.loads(json.dumps(types[kind])) for kind in ("gpu_spot", "gpu_on_demand"))
    assert spot["resources"] == other["resources"]
    if name == "aws":
        assert spot["node_config"].pop("InstanceMarketOptions") == SPOT["aws"]
        assert spot["node_config"] == other["node_config"]
    else:
        assert spot["node_config"].pop("scheduling")["provisioningModel"] == SPOT["gcp"]
        assert "provisioningModel" not in other["node_config"].pop("scheduling")
        assert spot["node_config"] == other["node_config"]


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    ("recovered", "chosen"), [(1.0, "gpu_spot"), (0.0, "gpu_on_demand")], ids=["spot", "none left"]
)
def test_ray_takes_spot_first_and_falls_back(name: str, recovered: float, chosen: str) -> None:
    """Ray's scheduler itself, for three workers of one GPU: which machines it would start."""
    config = AutoscalingConfig(prepare_config(read(name)), skip_content_hash=True)
    types = config.get_node_type_configs()
    for kind in types.values():
        kind.launch_config_hash = ""
    wish = ResourceRequestUtil.group_by_count(
        [ResourceRequestUtil.make({"GPU": 1, "CPU": 1}) for _ in range(3)]
    )
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=wish,
            cloud_resource_availabilities={"gpu_spot": recovered},
            recoverable_resource_availabilities={"gpu_spot": recovered},
        )
    )
    assert {request.instance_type: request.count for request in reply.to_launch} == {chosen: 3}


@pytest.mark.parametrize(("name", "notice"), [("aws", 120), ("gcp", 30)])
def test_spot_workers_hear_of_their_end(name: str, notice: int) -> None:
    (command,) = (c for c in read(name)["worker_start_ray_commands"] if "spot_notice" in c)
    cloud, seconds = re.findall(r"spot_notice.sh (\w+) (\d+)", command)[0]
    assert cloud == name
    assert 0 < int(seconds) < notice
    assert read(name)["file_mounts"]["~/spot_notice.sh"] == "./cluster/spot_notice.sh"


def test_spot_notice_waits_for_the_cloud_and_then_tells_ray(tmp_path: Path) -> None:
    """The script with a cloud that says no at first, and a `ray` that notes how it is called."""
    answers = iter([404, 200])

    class Cloud(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.reply(200, b"token")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "token"
            assert self.path == "/latest/meta-data/spot/instance-action"
            self.reply(next(answers), b'{"action": "terminate"}')

        def reply(self, code: int, text: bytes) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

    fake = tmp_path / "ray"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/called\n')
    fake.chmod(0o755)
    with HTTPServer(("127.0.0.1", 0), Cloud) as cloud:
        Thread(target=cloud.serve_forever, daemon=True).start()
        env = {
            "METADATA": f"http://127.0.0.1:{cloud.server_port}",
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "PAUSE": "0.1",
        }
        subprocess.run(["sh", CLUSTER / "spot_notice.sh", "aws", "110"], env=env, check=True)
        cloud.shutdown()
    assert next(answers, None) is None
    called = (tmp_path / "called").read_text().split("\n")
    assert called[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert called[-3:] == ["--deadline-remaining-seconds", "110", ""]


def test_aws_gives_roles_and_opens_nothing() -> None:
    config = read("aws")
    types = config["available_node_types"]
    groups = [kind["node_config"]["SecurityGroupIds"] for kind in types.values()]
    assert groups == [["GROUP"]] * 3
    # Without asking AWS, which it would do before it made one.
    assert _configure_security_group(prepare_config(read("aws"))) == prepare_config(read("aws"))
    profiles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()}
    assert profiles == {"t2i-ray-head", "t2i-ray-worker"}
    for kind in types.values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        (disk,) = kind["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] is True
    head = json.loads((CLUSTER / "iam/head.json").read_text())["Statement"]
    cluster_tag = {"aws:ResourceTag/ray-cluster-name": config["cluster_name"]}
    (end,) = (rule for rule in head if "ec2:TerminateInstances" in rule["Action"])
    assert end["Condition"] == {"StringEquals": cluster_tag}
    for name in ("head", "worker"):
        for rule in json.loads((CLUSTER / f"iam/{name}.json").read_text())["Statement"]:
            actions = rule["Action"] if isinstance(rule["Action"], list) else [rule["Action"]]
            assert not [action for action in actions if action.endswith("*")]


def test_role_may_do_what_the_store_does() -> None:
    below, bucket = json.loads((CLUSTER / "iam/worker.json").read_text())["Statement"]
    assert below["Resource"] == f"{bucket['Resource']}/t2i/*"
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"} <= {
        *below["Action"]
    }
    assert {"s3:ListBucket", "s3:ListBucketMultipartUploads"} <= {*bucket["Action"]}
    # With s3:prefix S3 would answer 403 for an object that is not there, since HEAD names none.
    assert "Condition" not in bucket


@pytest.mark.parametrize("name", CLOUDS)
def test_setup_waits_for_a_fresh_machine(name: str) -> None:
    commands = read(name)["setup_commands"]
    assert "-o DPkg::Lock::Timeout=" in commands[0]
    if name == "gcp":
        (mount,) = (command for command in commands if "mount -t nfs" in command)
        assert mount.endswith("&& sudo chown ubuntu /mnt/t2i")


# ----------------------------------------------------------------------- image and MLflow


def test_dockerfile() -> None:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and line[0].isupper()]
    ours = [line for line in lines if line[0] == "COPY" and "--from=build" not in line]
    copied = [word for line in ours for word in line[1:-1] if word[0] != "-"]
    assert copied
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []
    assert "constraints.txt" in copied
    assert [line[1] for line in lines if line[0] == "USER"][-1] not in ("root", "0")
    hosts = set(re.findall(r"https?://([^/\s]+)", text))
    assert hosts == {"download.pytorch.org"}
    (cpu,) = re.findall(r"pip install ([^;]*download.pytorch.org[^;]*)", text)
    assert "--no-deps" in cpu  # that index alone can't meet the other pins
    assert "RAY_AUTH_MODE=token" in [line for line in lines if line[0] == "ENV"][-1]
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    allowed = {line.removeprefix("!") for line in ignored[1:] if line.startswith("!")}
    assert {source.rstrip("/") for source in copied} <= allowed


def test_compose_file_binds_to_loopback_and_holds_no_secret() -> None:
    document = yaml.safe_load((CLUSTER / "mlflow/compose.yaml").read_text())
    ports = [port for service in document["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)
    secrets = document["secrets"]
    assert all(secret.keys() == {"file"} for secret in secrets.values())
    for service in document["services"].values():
        assert set(service["secrets"]) <= secrets.keys()
        for name, value in service["environment"].items():
            if "PASSWORD" in name or "KEY" in name:
                assert str(value).startswith("/run/secrets/")
                assert name.endswith("_FILE")


def test_a_job_takes_no_secret_along(tmp_path: Path) -> None:
    """As Ray packs a working directory: .gitignore keeps MLflow's out, and so does the README."""
    compose = yaml.safe_load((CLUSTER / "mlflow/compose.yaml").read_text())
    project = tmp_path / "project"
    (project / "cluster/mlflow/secrets").mkdir(parents=True)
    (project / "kept.yaml").touch()
    for secret in compose["secrets"].values():
        (project / "cluster/mlflow" / secret["file"]).touch()
    shutil.copy(REPOSITORY / ".gitignore", project)
    readme = (CLUSTER / "README.md").read_text()
    (line,) = re.findall(r"^excludes: .*", readme, re.MULTILINE)
    for way, more in (("git", []), ("env", yaml.safe_load(line)["excludes"])):
        package = tmp_path / f"{way}.zip"
        create_package(str(project), package, include_gitignore=way == "git", excludes=more)
        assert {name for name in ZipFile(package).namelist() if name[-1] != "/"} == {
            ".gitignore",
            "kept.yaml",
        }


def test_nothing_here_looks_like_a_secret() -> None:
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"\bAKIA[0-9A-Z]{16}\b|-----BEGIN|\b[0-9a-f]{40,}\b", text), path
            for name, value in re.findall(r"(\w*(?:PASSWORD|SECRET|TOKEN)\w*)=(\S+)", text):
                harmless = (
                    name.endswith(("_PATH", "_FILE"))
                    or value[0] in "\"'$.<"
                    or value in ("...", "token")
                )
                assert harmless, f"{path}: {name}={value}"
