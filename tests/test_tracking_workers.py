"""Workers publish to their driver's MLflow, or leave all to the driver."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from runner import Runner
from small_configs import TINY

from t2i_ray import tracking
from t2i_ray.config import Config, UserError, parse_config
from t2i_ray.doctor.node import try_mlflow
from t2i_ray.launch import with_absolute_paths, worker_environment
from t2i_ray.storage import JOB_VARIABLE, open_store
from t2i_ray.tracking import About, Tracker, resolve, set_status, sync
from t2i_ray.tracking.server import connect, find_run

STEPS = list(range(1, 61))


def config_of(place: Path, uri: str | None = None) -> Config:
    document: dict[str, Any] = {"name": "run", "train": {"steps": 10}}
    return parse_config({**document, "storage": {"uri": str(place)}, "tracking": {"uri": uri}})


def steps_shown(runner: Runner, name: str, uri: str) -> list[int]:
    return [step for step, _ in runner.curves(name, uri)["d_loss"]]


def test_workers_that_are_not_told_the_address_leave_all_to_the_driver(runner: Runner) -> None:
    """A query may hold a password, so this one is not told; theirs would be in the storage.

    A relative path is the driver's: Ray gives each worker a working directory of its own.
    """
    uri = f"sqlite:///{runner.folder}/here.db?timeout=60"
    env = {"MLFLOW_TRACKING_URI": uri}
    sweep = {
        **TINY,
        "space": {"optim.lr_g": {"grid": [2e-4]}},
        "evaluation": {"every": 60, "samples": 64},
        "search": {"seeds": [0], "metric": "val/frechet_reader", "mode": "min"},
    }
    relative = {"MLFLOW_TRACKING_URI": "sqlite:///here.db?timeout=60"}
    output = runner.train("untold", env=relative)
    assert "MLflow: untold: the driver's is not known here" in output
    for _ in range(3):  # on a slow machine it may be behind, and says what to do
        swept = runner.run("tune", runner.config("unswept", sweep), env=env)
        if "MLflow is behind; the same command again" not in swept:
            break
    assert "MLflow is behind" not in output + swept
    output += swept
    ours = runner.mlflow(uri).search_runs(["0", "1"])
    (trial,) = [run.info.run_name for run in ours if run.info.run_name not in ("untold", "unswept")]
    for name in ("untold", trial):
        assert steps_shown(runner, name, uri) == STEPS
        assert runner.mlflow_run(name, uri).info.status == "FINISHED"
        assert runner.record(name).published
    theirs = runner.mlflow()
    experiments = [each.experiment_id for each in theirs.search_experiments()]
    names = {run.info.run_name for run in theirs.search_runs(experiments)}
    assert not names & {"untold", "unswept", trial}
    assert list(runner.cluster.session.rglob("here.db")) == []


def test_a_worker_that_finds_another_mlflow_publishes_and_drops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, store = config_of(tmp_path), open_store(config_of(tmp_path).storage)
    uri = f"sqlite:///{tmp_path}/drivers.db?timeout=60"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    driver = resolve(config)
    told = worker_environment(config)
    assert "MLFLOW_TRACKING_URI" not in told

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("T2I_RAY_MLFLOW", told["T2I_RAY_MLFLOW"])
    worker = resolve(config)
    assert worker is not None
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(worker, About("run-abc", "run"), store)
    assert "it sends all when the run ends" in caplog.text
    for step in range(1, 11):
        tracker.log(step, {"loss": step})
    snapshot = tracker.snapshot(10)
    tracker.commit(10)
    assert tracker.flush(60)
    tracker.close()
    assert tracker.behind[0] == 10
    assert not sync(worker, snapshot, store, 60)
    assert not tracking.add(worker, snapshot, store, {10: {"val/x": 1.0}}, 60)
    assert not set_status(worker, "run-abc", "FINISHED", timeout=0)
    assert try_mlflow(config, "node").state == "warning"
    assert not (tmp_path / "mlflow.db").exists()
    # A trial's process starts workers of its own, which are to know of the driver's, not of this.
    assert worker_environment(config)["T2I_RAY_MLFLOW"] == told["T2I_RAY_MLFLOW"]

    assert driver is not None
    assert sync(driver, snapshot, store, 60)
    run = find_run(connect(driver), driver, "run-abc")
    assert run is not None
    history = connect(driver).get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1, 11))


@pytest.mark.parametrize(
    ("driver", "worker", "same"),
    [
        ("postgresql://u:pa/ss@db:5/x", "postgresql+psycopg2://other@db:5/x?sslmode=require", True),
        ("postgresql://u:p@db/x", "postgresql://u:p@db2/x", False),
        ("postgresql:///x?host=a&password=p", "postgresql:///x?password=q&host=a", True),
        ("mssql+pyodbc:///?odbc_connect=SERVER%3Da%3BPWD%3Dp",
         "mssql+pyodbc:///?odbc_connect=SERVER%3Db%3BPWD%3Dp", False),
        ("mysql://u:p@db/x", None, False),
    ],
)  # fmt: skip
def test_whether_two_addresses_are_of_the_same_place(
    driver: str, worker: str | None, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a worker on S3 has none at all, it goes on without."""
    on_s3 = config_of(tmp_path).model_dump(mode="json") | {"storage": {"uri": "s3://bucket/p"}}
    config = parse_config(on_s3)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", driver)
    told = worker_environment(config)
    assert told.keys().isdisjoint({"MLFLOW_TRACKING_URI"})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name, value in {**told, "MLFLOW_TRACKING_URI": worker}.items():
        if value:
            monkeypatch.setenv(name, value)
    found = resolve(config)
    assert found is not None
    assert found.elsewhere != same


def test_sqlite_files_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    config = with_absolute_paths(config_of(tmp_path, "sqlite:///mlflow.db"))
    assert config.tracking.uri == absolute
    assert with_absolute_paths(config_of(tmp_path)).tracking.uri is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert worker_environment(config_of(tmp_path))["MLFLOW_TRACKING_URI"] == absolute
    for memory in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(UserError, match="give http"):
            resolve(config_of(tmp_path, memory))
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    relative = "a relative path would be looked for in the Ray job's temporary folder"
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI=mlflow.db: {relative}"):
        resolve(config_of(tmp_path))
    with pytest.raises(UserError, match=f"tracking.uri=mlflow.db: {relative}"):
        with_absolute_paths(config_of(tmp_path, "sqlite:///mlflow.db"))
