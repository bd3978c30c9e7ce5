"""MLflow shows the committed history: complete, each step once, whatever dies in between."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import LoggedModelStatus, Metric
from mlflow_server import MlflowServer
from PIL import Image
from safetensors.torch import save_file
from small_configs import networks

from t2i_ray import tracking
from t2i_ray.batch_norm import reserve_statistics
from t2i_ray.config import Config, Recurrent, Storage, UserError, flatten, parse_config
from t2i_ray.encoders import build_encoder
from t2i_ray.generate import Pipeline
from t2i_ray.models import Generator
from t2i_ray.storage import LocalStore, Store
from t2i_ray.tracking import About, Dataset, Destination, Tracker, describe, set_status, sync
from t2i_ray.tracking.about import ATTEMPT_TAG, PARAM_LENGTH, REASON_TAG, scrub
from t2i_ray.tracking.publisher import Noting
from t2i_ray.tracking.server import connect, ensure_run, find_run, search
from t2i_ray.tracking.spool import Spool, metric_name, unpacked

History = dict[str, list[tuple[int, float]]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def here(mlflow_server: MlflowServer, request: pytest.FixtureRequest) -> Destination:
    """The server, with an experiment of this test's own."""
    return Destination(mlflow_server.uri, request.node.name)


def about(key: str = "run-abc", attempt: int = 1) -> About:
    return About(key, "run", attempt, params={"optim.lr": "0.1"})


def config_of(place: Path, **more: Any) -> Config:
    document: dict[str, Any] = {"name": "run", "train": {"steps": 10}}
    document["storage"] = {"uri": str(place)}
    return parse_config(document | more)


def history(where: Destination, key: str = "run-abc") -> History:
    """Every value that MLflow has of the run, as (step, value) sorted by step."""
    client = connect(where)
    run = find_run(client, where, key)
    assert run is not None
    points = {k: client.get_metric_history(run.info.run_id, k) for k in run.data.metrics}
    return {k: sorted((p.step, p.value) for p in column) for k, column in points.items()}


def runs_of(where: Destination) -> list[Any]:
    """All runs of the experiment."""
    client = connect(where)
    experiment = client.get_experiment_by_name(where.experiment)
    assert experiment is not None
    return search(client, [experiment.experiment_id])


def train(tracker: Tracker, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        tracker.log(step, {"loss/d": step * scale, "loss/g": -step * scale})


def curve(last: int, scale: float = 1.0) -> History:
    """What MLflow must show of ``train`` after so many steps."""
    steps = range(1, last + 1)
    return {"loss/d": [(s, s * scale) for s in steps], "loss/g": [(s, -s * scale) for s in steps]}


def travel(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Through a checkpoint, as strict JSON."""
    document: dict[str, Any] = json.loads(json.dumps(snapshot, allow_nan=False))
    return document


# ------------------------------------------------------------------------------- the spool


def test_the_spool_gives_out_only_what_the_snapshot_held() -> None:
    spool = Spool()
    for step in (1, 2):
        spool.metrics(step, {"a": step, "b": -step}, 1000 + step)
    spool.artifact("x.png", "x.png")
    spool.snapshot(2)
    spool.metrics(2, {"late": 5.0}, 1009)  # measured at the same step, after the snapshot
    spool.artifact("late.png", "late.png")
    assert spool.pending() == ([], 0)
    assert spool.empty()
    spool.commit(2)
    points, rows = spool.pending(3)  # two rows of two would be four
    assert rows == 1
    assert points == [("a", 1.0, 1001, 1), ("b", -1.0, 1001, 1)]
    spool.done(rows)
    points, rows = spool.pending()
    assert points == [("a", 2.0, 1002, 2), ("b", -2.0, 1002, 2)]
    spool.done(rows)
    assert spool.pending() == ([], 0)
    artifact = spool.pending_artifact()
    assert artifact is not None
    assert artifact.key == "x.png"
    spool.done_artifact()
    assert spool.pending_artifact() is None
    assert spool.empty()
    spool.commit()
    assert [point.key for point in spool.pending()[0]] == ["late"]


def test_a_row_larger_than_the_limit_still_comes_out() -> None:
    spool = Spool()
    spool.metrics(1, {f"m{i}": i for i in range(10)}, 0)
    spool.metrics(2, {"m0": 0}, 0)
    spool.commit()
    points, rows = spool.pending(4)
    assert (len(points), rows) == (10, 1)


def test_the_spool_survives_the_checkpoint_with_nan_and_infinity() -> None:
    spool = Spool()
    spool.metrics(7, {"nan": math.nan, "inf": math.inf, "tenth": 0.1}, 12)
    restored = Spool.restore(travel(spool.snapshot(7)))
    points, rows = restored.pending()
    assert rows == 1
    assert math.isnan(points[0].value)
    assert points[1].value == sys.float_info.max
    assert points[2] == ("tenth", 0.1, 12, 7)
    assert restored.step == 7


def test_commits_may_skip_snapshots_but_not_invent_them() -> None:
    spool = Spool()
    for step in (1, 2, 3):
        spool.metrics(step, {"a": step}, step)
        spool.snapshot(step)
    spool.commit(2)
    spool.commit(1)  # an older upload that ends late
    assert spool.pending()[1] == 2
    with pytest.raises(KeyError):
        spool.commit(4)


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("agreement/petal colour", "agreement/petal colour"),
        ("f(x)=1%", "f_x__1_"),
        ("/a//b/", "a/b"),
        ("../up", "_../up"),
        ("", "_."),
        ("x" * 300, "x" * 249),
    ],
)
def test_metric_names_become_what_mlflow_accepts(name: str, accepted: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(name) == accepted
    _validate_metric_name(metric_name(name))


# ------------------------------------------------------------------- the committed history


def test_nothing_is_published_before_its_checkpoint_and_each_step_once(
    here: Destination, store: Store
) -> None:
    tracker = Tracker(here, about(), store)
    store.write("runs/run/grid.png", b"a picture")
    train(tracker, range(1, 11))
    tracker.artifact("runs/run/grid.png", "samples/grid.png")
    tracker.artifact("runs/run/gone.png", "samples/gone.png")
    snapshot = travel(tracker.snapshot(10))
    train(tracker, range(11, 15))
    assert tracker.flush(30)
    assert history(here) == {}

    tracker.commit(10)
    assert tracker.flush(30)
    assert history(here) == curve(10)
    tracker.close()

    again = Tracker(here, about(attempt=2), store, snapshot)
    assert again.flush(30)  # all of it again
    again.close()
    assert history(here) == curve(10)
    client = connect(here)
    run = find_run(client, here, "run-abc")
    assert run is not None
    assert [a.path for a in client.list_artifacts(run.info.run_id, "samples")] == [
        "samples/grid.png"
    ]
    file = client.download_artifacts(run.info.run_id, "samples/grid.png")
    assert Path(file).read_bytes() == b"a picture"
    times = [m.timestamp for m in client.get_metric_history(run.info.run_id, "loss/d")]
    measured = unpacked("q", snapshot["spool"]["times"])
    assert times == measured.tolist()  # when it was measured, not when it was sent


def test_nan_and_infinity_pass_the_server_and_are_stored_once(
    here: Destination, store: Store
) -> None:
    tracker = Tracker(here, about(), store)
    tracker.log(1, {"loss": math.nan})
    tracker.log(2, {"loss": math.inf})
    snapshot = travel(tracker.snapshot(2))
    tracker.commit(2)
    assert tracker.flush(30)
    tracker.close()
    again = Tracker(here, about(attempt=2), store, snapshot)
    assert again.flush(30)
    again.close()
    first, second = history(here)["loss"]
    assert first[0] == 1
    assert math.isnan(first[1])
    assert second == (2, sys.float_info.max)


def test_a_resumed_run_is_found_again_and_runs_on(here: Destination, store: Store) -> None:
    tracker = Tracker(here, about(), store)
    train(tracker, range(1, 11))
    snapshot = travel(tracker.snapshot(10))
    tracker.commit(10)
    train(tracker, range(11, 14))  # lost in the kill
    assert tracker.flush(30)
    tracker.close()
    assert set_status(here, "run-abc", "KILLED", "SIGTERM")

    tracker = Tracker(here, about(attempt=2), store, snapshot)
    train(tracker, range(11, 21))
    tracker.snapshot(20)
    tracker.commit(20)
    assert tracker.flush(30)
    tracker.close()
    assert history(here) == curve(20)
    (run,) = runs_of(here)
    assert run.info.status == "RUNNING"
    tags = [run.data.tags[f"t2i_ray.{name}"] for name in ("run", "step", "attempt")]
    assert tags == ["run-abc", "20", "2"]


def test_steps_published_beyond_the_checkpoint_stay_as_they_are(
    here: Destination, store: Store
) -> None:
    """The newest checkpoint turned out damaged, or a failed run was started again."""
    tracker = Tracker(here, about(), store)
    train(tracker, range(1, 11))
    snapshot = travel(tracker.snapshot(10))
    train(tracker, range(11, 16))
    tracker.commit()
    assert tracker.flush(30)
    tracker.close()

    # The second attempt dies before it can publish; the third has its snapshot.
    second = Spool.restore(snapshot["spool"])
    for step in range(11, 21):
        second.metrics(step, {"loss/d": step, "loss/g": -step}, 1)
    snapshot["spool"] = travel(second.snapshot(20))
    tracker = Tracker(here, about(attempt=3), store, snapshot)
    assert tracker.flush(30)
    train(tracker, range(21, 26))
    tracker.commit()
    assert tracker.flush(30)
    tracker.close()
    assert history(here) == curve(25)


def test_what_is_logged_late_is_not_shown_twice_either(here: Destination, store: Store) -> None:
    """All checkpoints were damaged: the run begins anew, and looks into MLflow at once."""
    for attempt in (1, 2):
        tracker = Tracker(here, about(attempt=attempt), store)
        assert tracker.flush(30)
        train(tracker, range(1, 9))
        tracker.log(8, {"perf/cpu_seconds": attempt})
        tracker.commit()
        assert tracker.flush(30)
        tracker.close()
    found = history(here)
    assert found.pop("perf/cpu_seconds") == [(8, 1.0)]
    assert found == curve(8)


def test_sync_adds_what_is_missing_and_changes_nothing(here: Destination, store: Store) -> None:
    first = Tracker(here, About("run-abc", "run", tags={"env.ray": "old", "a": "b"}), store)
    train(first, range(1, 11))
    snapshot = travel(first.snapshot(10))
    first.commit(10)
    assert first.flush(30)
    first.close()
    second = Tracker(here, About("run-abc", "run", attempt=2, tags={"env.ray": "new"}), store)
    train(second, range(1, 6), scale=2.0)  # measured again, and refused: MLflow has these
    second.commit()
    assert second.flush(30)
    second.close()
    assert set_status(here, "run-abc", "FAILED")

    spool = Spool.restore(snapshot["spool"])
    for step in range(9, 13):  # another measurement of 9 and 10
        spool.metrics(step, {"loss/d": step, "loss/g": -step}, 77)
    snapshot["spool"] = travel(spool.snapshot(12))
    assert not sync(here, snapshot, store, 30)
    assert sync(here, snapshot, store, 30, attempt=2)
    assert sync(here, snapshot, store, 30, attempt=2)
    assert history(here) == curve(12)
    run = find_run(connect(here), here, "run-abc")
    assert run is not None
    assert run.info.status == "FAILED"
    assert run.data.tags["env.ray"] == "new"
    assert run.data.tags["a"] == "b"
    assert run.data.tags[ATTEMPT_TAG] == "2"


KILLED_WHILE_PUBLISHING = """
    import json, sys
    from pathlib import Path
    from t2i_ray.storage import LocalStore
    from t2i_ray.tracking import About, Destination, Tracker

    uri, experiment, folder = sys.argv[1:]
    tracker = Tracker(
        Destination(uri, experiment), About("run-abc", "run"), LocalStore(Path(folder))
    )
    for step in range(1, 2001):
        tracker.log(step, {f"m{i}": step * i for i in range(10)})
    Path(folder, "spool.json").write_text(json.dumps(tracker.snapshot(2000), allow_nan=False))
    tracker.commit(2000)
    tracker.flush(600)
"""


def test_a_publisher_killed_in_the_middle_leaves_an_exact_history(
    here: Destination, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "child").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WHILE_PUBLISHING)]
    child = subprocess.Popen([*command, here.uri, here.experiment, str(tmp_path / "child")])
    try:
        client, run = connect(here), None
        while run is None or "m9" not in run.data.metrics:
            assert child.poll() is None
            time.sleep(0.05)
            run = find_run(client, here, "run-abc")
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert 0 < len(history(here)["m9"]) < 2000

    snapshot = json.loads((tmp_path / "child" / "spool.json").read_text())
    tracker = Tracker(here, about(attempt=2), store, snapshot)
    tracker.log(2001, {"m9": 1.0})
    tracker.commit()
    assert tracker.flush(120)
    tracker.close()
    seen = history(here)
    for i in range(10):
        expected = [(step, float(step * i)) for step in range(1, 2001)]
        assert seen[f"m{i}"] == expected + ([(2001, 1.0)] if i == 9 else [])


def test_outages_at_the_start_in_the_middle_and_at_the_end(
    mlflow_server: MlflowServer, here: Destination, store: Store, caplog: Any
) -> None:
    mlflow_server.stop()
    try:
        tracker = Tracker(here, about(), store)
        train(tracker, range(1, 11))
        tracker.snapshot(10)
        tracker.commit(10)
        assert not tracker.flush(1.5)
        assert [r.message for r in caplog.records if "MLflow" in r.message] != []
        caplog.clear()
        mlflow_server.start()
        assert tracker.flush(30)
        assert history(here) == curve(10)
        assert [r.message[:14] for r in caplog.records] == ["MLflow is back"]  # and no second one

        mlflow_server.stop()
        train(tracker, range(11, 21))
        tracker.snapshot(20)
        tracker.commit(20)
        assert not tracker.flush(1)
        train(tracker, range(21, 31))
        tracker.commit()
        assert not tracker.flush(1)
        left = travel(tracker.snapshot(30))  # the run ends, and MLflow is still away
        tracker.close()
        assert not set_status(here, "run-abc", "FINISHED", timeout=0)
    finally:
        mlflow_server.start()
    assert sync(here, left, store, 30)
    assert set_status(here, "run-abc", "FINISHED")
    assert history(here) == curve(30)
    run = find_run(connect(here), here, "run-abc")
    assert run is not None
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optim.lr": "0.1"}


def test_a_store_that_is_away_does_not_hold_up_the_metrics(
    here: Destination, tmp_path: Path
) -> None:
    class Away(LocalStore):
        def read(self, key: str) -> bytes:
            raise OSError("no route to host")

    tracker = Tracker(here, about(), Away(tmp_path))
    tracker.artifact("a.png", "a.png")
    train(tracker, range(1, 4))
    tracker.commit()
    assert not tracker.flush(2)
    train(tracker, range(4, 6))
    tracker.commit()
    assert not tracker.flush(2)
    tracker.close()
    assert history(here) == curve(5)


# ------------------------------------------------------------------------ one run, one owner


def test_many_creators_at_once_make_one_run(here: Destination) -> None:
    together = threading.Barrier(4)
    found: list[str] = []

    def create() -> None:
        client = connect(here)
        together.wait()
        found.append(ensure_run(client, here, about()).info.run_id)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(runs_of(here)) == 1


def test_of_runs_that_were_made_twice_the_older_stays(here: Destination) -> None:
    """As by a request that is sent again because its answer was lost."""
    client = connect(here)
    first = ensure_run(client, here, about())
    tags = {tag: first.data.tags[tag] for tag in first.data.tags if tag.startswith("t2i_ray.")}
    client.create_run(first.info.experiment_id, run_name="run", tags=tags)
    assert len(runs_of(here)) == 2
    assert ensure_run(client, here, about()).info.run_id == first.info.run_id
    assert len(runs_of(here)) == 1


def test_an_earlier_attempt_stops_publishing_for_good(
    here: Destination, store: Store, caplog: Any
) -> None:
    zombie = Tracker(here, about(), store)
    train(zombie, range(1, 6))
    zombie.commit()
    assert zombie.flush(30)
    owner = Tracker(here, about(attempt=2), store, travel(zombie.snapshot(5)))
    assert owner.flush(30)
    zombie.log(6, {"loss/d": 666.0})
    zombie.commit()
    assert not zombie.flush(30)
    assert "attempt 2 has taken over from attempt 1; nothing more is published" in caplog.text
    assert not sync(here, travel(zombie.snapshot(6)), store, 30)  # nor by another door
    train(owner, range(6, 8))
    owner.commit()
    assert owner.flush(30)
    assert history(here) == curve(7)
    zombie.close()
    owner.close()


def test_statuses(here: Destination, store: Store, caplog: Any) -> None:
    assert not set_status(here, "run-abc", "FAILED", timeout=0)
    assert "no run run-abc" in caplog.text
    url = tracking.announce(here, about())
    client = connect(here)

    def run() -> Any:
        return find_run(client, here, "run-abc")

    assert url == f"{here.uri}/#/experiments/{run().info.experiment_id}/runs/{run().info.run_id}"
    assert set_status(here, "run-abc", "FAILED", "loss/d is NaN at step 12")
    assert run().info.status == "FAILED"
    assert run().data.tags[REASON_TAG] == "loss/d is NaN at step 12"
    assert run().info.end_time > run().info.start_time
    assert set_status(here, "run-abc", "RUNNING")
    assert run().info.status == "RUNNING"
    assert REASON_TAG not in run().data.tags
    assert set_status(here, "run-abc", "FINISHED")
    assert run().info.status == "FINISHED"


# ---------------------------------------------------------------------------- what is logged


def test_params_tags_files_and_dataset(here: Destination, store: Store, tmp_path: Path) -> None:
    config = config_of(tmp_path, data={"source": {"kind": "folder", "path": "x" * 7000}})
    dataset = Dataset("flowers", "d" * 64, "s3://bucket/data/flowers-1")

    def attempt(number: int, config: Config) -> Any:
        described = describe(
            config,
            key="run-abc",
            attempt=number,
            dataset=dataset,
            git_commit="f" * 40,
            git_diff="-old\n+new\n",
            tags={"t2i_ray.parent": "sweep"},
        )
        tracker = Tracker(here, About.from_json(travel(described.to_json())), store)
        assert tracker.flush(30)
        tracker.close()
        run = find_run(client, here, "run-abc")
        assert run is not None
        return run

    client = connect(here)
    run = attempt(1, config)
    assert set(run.data.params) == set(flatten(config))
    assert run.data.params["optim.lr_g"] == "0.0002"
    assert run.data.params["data.flip"] == "true"
    assert run.data.params["tracking.uri"] == "null"
    assert run.data.params["model.g_channels"] == "[512, 256, 128, 64]"
    long = run.data.params["data.source.path"]
    assert len(long) == PARAM_LENGTH
    assert "7000 characters" in long
    assert run.data.tags["mlflow.source.git.commit"] == "f" * 40
    assert run.data.tags["t2i_ray.parent"] == "sweep"
    assert run.data.tags["env.torch"] == torch.__version__
    assert int(run.data.tags["hw.cores"]) >= 1
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("flowers", "d" * 36)
    assert json.loads(entry.dataset.source) == {"uri": "s3://bucket/data/flowers-1"}
    file = client.download_artifacts(run.info.run_id, "config.yaml")
    assert parse_config(yaml.safe_load(Path(file).read_text())) == config
    file = client.download_artifacts(run.info.run_id, "git.diff")
    assert Path(file).read_text() == "-old\n+new\n"

    # Operational values may change; MLflow's params can't, so the change is a tag.
    changed = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"keep": 9})}
    )
    run = attempt(2, changed)
    assert run.data.params["checkpoint.keep"] == "3"
    assert run.data.tags["t2i_ray.attempt.2.params"] == "checkpoint.keep=9"
    assert run.data.tags[ATTEMPT_TAG] == "2"
    assert len(run.inputs.dataset_inputs) == 1
    paths = [a.path for a in client.list_artifacts(run.info.run_id, "attempt_2")]
    assert "attempt_2/config.yaml" in paths
    file = client.download_artifacts(run.info.run_id, "config.yaml")
    assert parse_config(yaml.safe_load(Path(file).read_text())) == changed


LEAKS = """
    import sys
    from pathlib import Path
    from t2i_ray.config import parse_config
    from t2i_ray.storage import open_store
    from t2i_ray.tracking import Tracker, announce, describe, resolve, set_status

    folder, experiment = sys.argv[1:]
    config = parse_config({
        "name": "run", "train": {"steps": 1}, "storage": {"uri": folder},
        "tracking": {"experiment": experiment},
        "data": {"source": {"kind": "folder", "path": "https://me:hunter2@host/data"}},
    })
    destination = resolve(config)
    about = describe(config, key="run-abc", tags={"origin": "git+https://me:hunter2@host/repo"})
    print(destination, about.params, about.tags, announce(destination, about, timeout=0))
    tracker = Tracker(destination, about, open_store(config.storage))
    tracker.log(1, {"loss": 1.0})
    print(tracker.snapshot(1))
    tracker.commit(1)
    print("flushed", tracker.flush(20 if sys.stdin.read() == "up" else 1))
    tracker.close()
    set_status(destination, "run-abc", "FAILED", "https://me:hunter2@host", timeout=0)
"""


def test_a_password_in_the_environment_is_told_to_nobody(
    mlflow_server: MlflowServer, here: Destination, tmp_path: Path
) -> None:
    outputs = []
    for port, state in ((mlflow_server.port, "up"), (9, "down")):
        uri = f"http://me:hunter2@127.0.0.1:{port}"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(LEAKS), str(tmp_path), here.experiment],
            input=state,
            env=os.environ | {"MLFLOW_TRACKING_URI": uri},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"flushed {state == 'up'}" in done.stdout
        outputs.append(done.stdout + done.stderr)
    assert "MlflowException: API request to http://127.0.0.1:9/" in outputs[1]
    assert history(here) == {"loss": [(1, 1.0)]}
    for path in [*tmp_path.rglob("*"), *mlflow_server.folder.rglob("*")]:
        if path.is_file():
            outputs.append(path.read_bytes().decode("latin1"))
    assert [text for text in outputs if "hunter2" in text] == []


def test_scrub() -> None:
    assert scrub("postgresql+psycopg://me:p%40ss@db:5/x") == "postgresql+psycopg://db:5/x"
    assert scrub("see http://a/b and mail@example.org") == "see http://a/b and mail@example.org"


# ------------------------------------------------------------------------------ where it is


def test_where_mlflow_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path.resolve()
    found = tracking.resolve(config_of(tmp_path))
    assert found == Destination(f"sqlite:///{root}/mlflow.db", "t2i_ray", f"{root}/mlartifacts")
    assert tracking.resolve(config_of(tmp_path, tracking={"enabled": False})) is None

    s3 = {"storage": {"uri": "s3://bucket/p"}}
    with pytest.raises(UserError, match=r"tracking\.uri=null.*s3://bucket/p.*MLFLOW_TRACKING_URI"):
        tracking.resolve(config_of(tmp_path, **s3))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert tracking.resolve(config_of(tmp_path, **s3)) == Destination("http://host:5000", "t2i_ray")
    database = {"uri": "postgresql://db/mlflow", "experiment": "e"}
    assert tracking.resolve(config_of(tmp_path, tracking=database, **s3)) == Destination(
        "postgresql://db/mlflow", "e", "s3://bucket/p/mlartifacts"
    )
    with pytest.raises(UserError, match=r"tracking\.uri=\./runs: give http"):
        tracking.resolve(config_of(tmp_path, tracking={"uri": "./runs"}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI=file:///tmp/mlruns: give http"):
        tracking.resolve(config_of(tmp_path))
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as error:
        tracking.resolve(config_of(tmp_path, tracking={"uri": "http://me:hunter2@host"}))
    assert "hunter2" not in str(error.value)


FIRST_USE = """
    import sys
    from t2i_ray.tracking import About, announce, resolve
    from t2i_ray.config import parse_config
    storage = {"uri": sys.argv[1]}
    config = parse_config({"name": "run", "train": {"steps": 1}, "storage": storage})
    print(announce(resolve(config), About("run-abc", "run")))
"""


def test_two_processes_may_be_the_first_to_use_sqlite_and_are_quiet(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FIRST_USE), str(tmp_path)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    outputs = [child.communicate() for child in children]
    assert [stderr for _, stderr in outputs] == ["", ""]
    assert outputs[0][0].startswith("http://127.0.0.1:5000/#/experiments/1/runs/")
    assert outputs[0] == outputs[1]


def test_tracking_can_be_off(store: Store) -> None:
    threads = threading.active_count()
    tracker = Tracker(None, about(), store, {})
    train(tracker, range(1, 3))
    tracker.artifact("a", "a")
    assert tracker.snapshot(2) == {}
    tracker.commit(2)
    assert tracker.flush(1)
    tracker.close()
    assert sync(None, {}, store, 1)
    assert tracking.announce(None, about()) is None
    assert threading.active_count() == threads


# --------------------------------------------------------------------------------- the model


def model_folder(folder: Path) -> Path:
    """A generator that was never trained, with what it takes to load it."""
    encoder_config = {"kind": "bigru", "embedding_dim": 4, "hidden_dim": 4, "dim": 8}
    config = config_of(
        folder,
        encoder=encoder_config,
        data={"image_size": 16, "load_size": 16},
        model=networks(5, 6, [8, 4]),
    )
    torch.manual_seed(0)
    assert isinstance(config.encoder, Recurrent)
    encoder = build_encoder(config.encoder, ["a red flower", "a blue flower"])
    model = config.model
    generator = Generator(model.noise_dim, encoder.dim, model.text_dim, model.g_channels)
    reserve_statistics(generator)
    folder.mkdir(parents=True)
    for name, module in (("generator_ema", generator), ("encoder_ema", encoder.module)):
        tensors = {k: v.contiguous() for k, v in module.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "encoder.json").write_text(json.dumps(encoder.describe()))
    return folder


def test_mlflow_draws_a_picture_from_a_caption(
    here: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "exported")
    with pytest.raises(LookupError, match="no run run-abc"):
        tracking.log_model(here, "run-abc", folder, step=10)
    tracking.announce(here, about())
    uri = tracking.log_model(here, "run-abc", folder, step=10, register=True)
    assert tracking.log_model(here, "run-abc", folder, step=10, register=True) == uri

    captions = ["a red flower", "a blue zebra", "қызыл гүл"]
    rows = [[caption, 3 + i] for i, caption in enumerate(captions)]
    question = {"columns": ["caption", "seed"], "data": rows}
    (tmp_path / "input.json").write_text(json.dumps({"dataframe_split": question}))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local"]
    command += ["-m", "models:/run/1", "-t", "json"]
    command += ["-i", str(tmp_path / "input.json"), "-o", str(tmp_path / "output.json")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": here.uri, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "output.json").read_text())["predictions"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(row["png"]))) for row in answer]
    assert [picture.format for picture in pictures] == ["PNG"] * 3
    assert [row["warning"] for row in answer] == [
        "",
        "1 unknown to this model's text encoder: zebra",
        "the encoder knows none of its 2 words; 2 unknown to this model's text encoder: қызыл, гүл",
    ]
    drawn = np.stack([np.asarray(picture) for picture in pictures])
    expected = Pipeline.from_folder(folder).images(captions, [3, 4, 5])
    assert drawn.shape == (3, 16, 16, 3)
    assert np.abs(drawn.astype(int) - expected).max() <= 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", here.uri)
    storage = Storage(uri=str(tmp_path))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with tracking.download_model("models:/run/1", storage) as fetched:
        assert {p.name for p in fetched.iterdir()} == {p.name for p in folder.iterdir()}
    with (
        pytest.raises(UserError, match="model models:/run/2: "),
        tracking.download_model("models:/run/2", storage),
    ):
        pass
    assert not list(temporary.iterdir())


def test_a_model_is_there_once_whatever_failed_before(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    here = Destination(database, "models", f"{tmp_path}/artifacts")
    folder = model_folder(tmp_path / "exported")
    tracking.announce(here, about(), timeout=60)
    client = connect(here)
    run = find_run(client, here, "run-abc")
    assert run is not None
    number, run_id = run.info.experiment_id, run.info.run_id
    client.log_batch(run_id, metrics=[Metric("val/x", 0.5, 1, 10), Metric("val/x", 0.7, 2, 20)])

    def log() -> str:
        return tracking.log_model(here, "run-abc", folder, step=10)

    away = tmp_path / "artifacts/models"  # a file where folders are to be made
    away.parent.mkdir()
    away.write_text("")
    for _ in range(3):
        with pytest.raises(OSError, match=str(away)):
            log()
    assert not client.get_run(run_id).outputs.model_outputs
    away.unlink()
    # As of another process that was at it, and was killed.
    client.create_logged_model(number, "generator", run_id, {"t2i_ray.step": "10"})

    uri = log()
    client.delete_tag(run_id, "t2i_ray.model")  # the answer to its setting was lost
    assert log() == uri
    (model,) = client.search_logged_models([number])
    assert model.model_uri == uri
    assert model.status == LoggedModelStatus.READY
    assert model.params == run.data.params
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics] == [
        ("val/x", 0.5, 10)
    ]
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 10)
    assert tracking.log_model(here, "run-abc", folder, step=20) != uri


def test_an_mlflow_that_answers_slowly_is_waited_for(
    here: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer takes a part of the patience, all together longer than it."""
    answer = Noting.__getattr__

    def slowly(self: Noting, name: str) -> Any:
        time.sleep(1)
        return answer(self, name)

    monkeypatch.setattr(Noting, "__getattr__", slowly)
    began = time.monotonic()
    tracker = Tracker(here, about("slow"), LocalStore(tmp_path))
    tracker.log(1, {"g_loss": 1.0})
    tracker.commit()
    assert tracker.flush(timeout=4)
    assert time.monotonic() > began + 4
    tracker.close()
