"""Secrets that are planted in the environment turn up in nothing that is written or printed."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from mlflow_server import MlflowServer
from ray_cluster import BIN, PLANTED
from runner import Runner
from servers import Radosgw, free_port
from small_configs import TINY

from t2i_ray.config import load_config
from t2i_ray.launch import worker_environment
from t2i_ray.tracking import Destination, check_access, describe, scrub

# The password of an MLflow server's address. In two parts: else it is in the git diff of this file.
IN_URI = "planted-in-" + "address-70b3da"
APIS = ["/api/jobs/", "/api/train/v2/runs/v1", "/api/v0/actors", "/api/v0/tasks"]
APIS += ["/api/v0/runtime_envs", "/api/cluster_status", "/nodes?view=summary"]


def planted(runner: Runner) -> list[str]:
    """What must be nowhere; the S3 key and the rest are in every process of the cluster.

    Not the user's name: MLflow says who logged a model.
    """
    secrets = [value for name, value in PLANTED.items() if not name.endswith("USERNAME")]
    return [runner.cluster.token, IN_URI, Radosgw.secret_key, *secrets]


def leaks(runner: Runner, name: str, text: str) -> list[str]:
    return [f"{secret} in {name}" for secret in planted(runner) if secret in text]


def written(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file below a folder as text, one character a byte."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes().decode("latin1")


def answers(runner: Runner) -> Iterator[tuple[str, str]]:
    """What Ray's dashboard tells of jobs, trainings, actors, tasks and environments."""
    cluster = runner.cluster
    for path in APIS:
        request = urllib.request.Request(
            f"http://127.0.0.1:{cluster.dashboard_port}{path}",
            headers={"Authorization": f"Bearer {cluster.token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            yield path, answer.read().decode("latin1")


def submit(runner: Runner, *command: str) -> str:
    """A Ray job that fails; its log as ``ray job submit`` prints it."""
    env_vars = {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONWARNINGS": "ignore"}
    options = ["--runtime-env-json", json.dumps({"env_vars": env_vars})]
    done = subprocess.run(
        [str(BIN / "ray"), "job", "submit", *options, "--", *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=runner.cluster.job_env,
        cwd=runner.folder,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_what_fails_tells_no_secret(runner: Runner, mlflow_server: MlflowServer) -> None:
    """A run diverges, profiled; one raises in its workers, its data damaged; a sweep's trial."""
    uri = f"http://someone:{IN_URI}@127.0.0.1:{mlflow_server.port}"
    env = {"MLFLOW_TRACKING_URI": uri}
    outputs = {
        "diverged": runner.train(
            "diverged", "optim.lr_g=1.e+30", "optim.lr_d=1.e+30", "train.profile=0..1", env=env,
            code=1,
        ),
    }  # fmt: skip
    assert "a loss is not finite" in outputs["diverged"]
    run = runner.mlflow_run("diverged", mlflow_server.uri)
    assert run.info.status == "FAILED"  # so the workers' MLflow was this one, without the URI's

    place = runner.folder / "damaged"
    config = str(runner.config("raised"))
    options = [f"storage.uri={place}", f"tracking.uri=http://127.0.0.1:{free_port()}"]
    runner.run("prepare", "synthetic-flowers", "images=300", "image_size=16", "load_size=18",
               "-s", str(place))  # fmt: skip
    for shard in place.glob("data/*/shards/*.npy"):
        shard.write_bytes(shard.read_bytes()[:100])
    command = ["t2i-ray", "train", config, *options, "cluster.max_failures=0"]
    outputs["raised"] = submit(runner, *command)
    record = json.loads((place / "runs/raised/run.json").read_text())
    assert record["status"] == "FAILED"
    assert record["reason"].startswith("worker 0: ")
    assert "Traceback" in outputs["raised"]

    sweep = {
        **TINY,
        "train": {**TINY["train"], "steps": 20},
        "space": {"optim.lr_g": {"grid": [1e30]}},
        "evaluation": {"every": 20, "samples": 64},
        "search": {"seeds": [0], "metric": "val/frechet_reader", "mode": "min"},
    }
    outputs["swept"] = runner.run("tune", runner.config("swept", sweep), env=env, code=1)

    found = [leak for name, output in outputs.items() for leak in leaks(runner, name, output)]
    found += leaks(runner, "MLflow", str(run.to_dictionary()))
    for folder in (runner.folder, runner.cluster.session, mlflow_server.folder):
        for name, text in written(folder):
            found += leaks(runner, name, text)
    for name, text in answers(runner):
        found += leaks(runner, name, text)
    assert found == []
    names = [name for name, _ in written(runner.cluster.session)]
    assert any(name.endswith("job-driver-raised.log") or "job-driver" in name for name in names)
    assert any("worker-" in name and name.endswith(".err") for name in names)


@pytest.mark.parametrize(
    ("field", "variable"),
    [
        (f"tracking.uri=http://someone:{IN_URI}@host", None),
        (f"tracking.uri=http://{IN_URI}@host", None),
        (f"tracking.uri=http://someone:1/{IN_URI}@host", None),
        (f"tracking.uri=postgresql://host/mlflow?user=me&password={IN_URI}", None),
        (f"tracking.uri=mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D{IN_URI}", None),
        (f"storage.uri=s3://key:{IN_URI}@bucket/runs", None),
        (f"storage.endpoint=http://key:{IN_URI}@host", None),
        ("tracking.uri=null", f"ftp://someone:{IN_URI}@host"),
    ],
)
def test_what_is_refused_repeats_no_secret(
    runner: Runner, field: str, variable: str | None
) -> None:
    env = {"MLFLOW_TRACKING_URI": variable} if variable else {}
    output = runner.train("refused", field, code=2, env=env)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "MLFLOW_TRACKING" in line or "AWS_SECRET_ACCESS_KEY" in line
    assert leaks(runner, "output", output) == []


def test_workers_are_told_where_mlflow_is_and_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("{name: run, train: {steps: 1}}")
    config = load_config(tmp_path / "run.yaml")
    for name in ("USERNAME", "PASSWORD"):  # so that they are put back
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    for uri, told in (
        (f"http://someone:{IN_URI}@host:5000/a/?token={IN_URI}", "http://host:5000/a"),
        (f"http://{IN_URI}@host", "http://host"),
        (f"http://someone:1/{IN_URI}@host", None),
        ("postgresql://host/mlflow", None),
        (f"postgresql://someone:{IN_URI}@host/mlflow", None),
        (f"postgresql://host/mlflow?password={IN_URI}", None),
        (f"mssql+pyodbc:///?odbc_connect=SERVER%3Dh%3BPWD%3D{IN_URI}", None),
        (f"mysql://db/x?user=u&pwd={IN_URI}", None),
        ("sqlite:////db/mlflow.db", "sqlite:////db/mlflow.db"),
        ("sqlite:///mlflow.db", f"sqlite:///{here}/mlflow.db"),
        (f"sqlite:////db/mlflow.db?key={IN_URI}", None),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        variables = worker_environment(config)
        assert variables.get("MLFLOW_TRACKING_URI") == told
        assert IN_URI not in str(variables)


def test_values_of_secret_variables_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they come from: here, from a file under git."""
    monkeypatch.setenv("HF_TOKEN", PLANTED["HF_TOKEN"])
    monkeypatch.setenv("SHORT_TOKEN", "demo")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    (tmp_path / "run.yaml").write_text("{name: run, train: {steps: 1}}")
    diff = f"+token = {PLANTED['HF_TOKEN']}\n+demo = eu-north-1\n"
    about = describe(
        load_config(tmp_path / "run.yaml"), key="run-abc", git_commit="c", git_diff=diff
    )
    assert about.texts["git.diff"] == "+token = ***\n+demo = eu-north-1\n"
    assert scrub("mysql://h/d?ssl_password=x&timeout=5") == "mysql://h/d?ssl_password=***&timeout=5"
    assert scrub("mysql://h/d?user=me&pwd=x") == "mysql://h/d?user=me&pwd=***"
    assert scrub("mssql:///?odbc_connect=UID%3Dme%3BPWD%3Dx") == "mssql:///?odbc_connect=***"
    assert scrub("postgresql://me:pa/ss@h/d, http://h/a@b") == "postgresql://h/d, http://h/a@b"


def test_a_token_is_known_in_every_form(
    mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One from a file often ends in a newline, which http.client refuses and repeats."""
    token = "planted&token/5c'4f\\e0"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{token}\n")
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    problem = check_access(Destination(mlflow_server.uri, "e"))
    assert problem
    assert "Invalid header value" in problem
    assert "***" in problem
    assert "planted" not in problem
    monkeypatch.setenv("TWO_TOKEN", f"planted-first\nplanted-second of {token}\n")
    value = os.environ["TWO_TOKEN"]
    for text in (token, quote(token, safe=""), value, repr(value), "planted-first!"):
        assert "planted" not in scrub(text)
    monkeypatch.setenv("A_KEY", odd := 'planted/third+="')
    for text in (quote(odd), quote_plus(odd), quote(odd, safe=""), json.dumps(odd)):
        assert "planted" not in scrub(text)
