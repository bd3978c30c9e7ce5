"""Checkpoints measured by a task of their own while training goes on: the same numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from runner import Runner, finish, until
from small_configs import TINY

from t2i_ray import launch
from t2i_ray.checkpoint import Checkpoints
from t2i_ray.config import Config, UserError, load_config, parse_config, parse_sweep
from t2i_ray.launch.aside import Aside, measure
from t2i_ray.launch.cluster import lacking
from t2i_ray.runs import Attempt, RunRecord, result_key, run_store
from t2i_ray.storage import LocalStore
from t2i_ray.tracking import Tracker, describe, resolve
from t2i_ray.tracking.server import connect, find_run

STEPS = 60
MEASURED = [20, 40, 60]
EVALUATED = (f"train.steps={STEPS}", "evaluation.every=20", "evaluation.samples=64")
ASIDE = (*EVALUATED, "evaluation.aside=1", "checkpoint.every=30", "checkpoint.keep=9")
Curves = dict[str, list[tuple[int, float]]]


def measures(curves: Curves) -> Curves:
    return {name: curve for name, curve in curves.items() if name.startswith("val/")}


def task_of(process: subprocess.Popen[str], cluster: int) -> int | None:
    """The process of this cluster's Ray that measures, if there is one."""
    assert process.poll() is None, process.communicate()[0]
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::measure"):
                raylet = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                parent = Path(f"/proc/{raylet}/stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == cluster:
                    return int(folder.name)
    return None


@pytest.fixture(scope="module")
def aside(runner: Runner) -> str:
    """A run measured aside to which much happens; what its last attempt printed.

    It is stopped before anything was measured, then finds a damaged checkpoint, trains to its end
    while a task is held, and loses that task.
    """
    process = runner.start_training("aside", *ASIDE)
    runner.wait_for_checkpoint("aside", 20)
    process.send_signal(signal.SIGTERM)
    finish(process, code=128 + signal.SIGTERM)
    assert runner.record("aside").status == runner.mlflow_run("aside").info.status == "KILLED"
    folder = runner.folder / "store/runs/aside"
    assert not (folder / "evaluation").exists()  # cancelled, not waited for
    (folder / "checkpoints/step_00000000").mkdir()
    (folder / "checkpoints/step_00000000/manifest.json").write_text("{}")

    process = runner.start_training("aside", *ASIDE)
    found: list[int | None] = []

    def appeared() -> bool:
        assert runner.cluster.head
        found.append(task_of(process, runner.cluster.head.process.pid))
        return found[-1] is not None

    until(appeared)
    assert found[-1]
    os.kill(found[-1], signal.SIGSTOP)
    runner.wait_for_checkpoint("aside", STEPS)  # training waits for no measuring
    assert not (folder / "evaluation").exists()
    os.kill(found[-1], signal.SIGKILL)  # it is tried once more
    return finish(process)


def test_numbers_are_those_of_measuring_in_line(runner: Runner, aside: str) -> None:
    assert aside
    runner.train_without_ray("in-line", "aside", *EVALUATED)
    expected = measures(runner.curves("in-line", key="in-line"))
    found = measures(runner.curves("aside"))
    assert set(found) == set(expected)
    assert "val/frechet_reader" in found
    for name, curve in expected.items():
        assert [step for step, _ in found[name]] == MEASURED, name
        values = [value for _, value in curve]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-3), name
    losses = [runner.checkpoint(name).tensors["history"]["g_loss"] for name in ("aside", "in-line")]
    assert losses[0].equal(losses[1])  # training knows nothing of it


def test_a_run_is_finished_when_all_is_measured(runner: Runner, aside: str) -> None:
    lines = [line for line in aside.splitlines() if "val/frechet_reader" in line]
    assert [int(re.findall(r"step (\d+)", line)[0]) for line in lines] == MEASURED
    assert aside.index(lines[-1]) < aside.index("aside: finished at step 60/60")
    record = runner.record("aside")
    assert record.published
    assert record.status == runner.mlflow_run("aside").info.status == "FINISHED"
    folder = runner.folder / "store/runs/aside"
    saved = {int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").iterdir()}
    assert saved >= {20, 30, 40, 60}
    document = json.loads((folder / result_key("val", 40)).read_text())
    assert (document["step"], document["count"], document["split"]) == (40, 64, "val")
    assert document["metrics"]["val/frechet_reader"]
    for value in document["values"]:  # what must stand beside a number
        assert value["low"] < value["high"], value["name"]
        assert (value["seed"], value["count"] > 0) == (0, True), value["name"]
    run = runner.mlflow_run("aside")
    files = runner.mlflow().list_artifacts(run.info.run_id, "evaluation/val")
    assert [file.path for file in files] == [result_key("val", step) for step in MEASURED]


def test_a_task_that_fails_costs_its_step_and_a_warning(aside: str) -> None:
    (warning,) = re.findall("aside: warning: (.*)", aside)
    assert warning.startswith("step 0 was not measured: DamagedCheckpoint: ")
    assert "manifest.json is damaged" in warning


def test_a_task_whose_checkpoint_is_gone_says_so(runner: Runner, aside: str) -> None:
    assert aside
    config = load_config(runner.config("aside"), list(ASIDE)).model_dump(mode="json")
    record = runner.record("aside").model_dump(mode="json")
    assert measure(config, record, 50) is None
    there = set(measures(runner.curves("aside")))
    assert set(measure(config, record, 60) or {}) == there
    config["evaluation"]["measures"].append("diversity")  # as an attempt to come may have it
    assert set(measure(config, record, 60) or {}) == {*there, "val/diversity_reader"}


# ---------------------------------------------------------------------- without a cluster


def config_of(folder: Path, **more: Any) -> Config:
    evaluation = {"every": 20, "samples": 64, "aside": 1}
    document = {**TINY, "name": "a", "storage": {"uri": str(folder)}, "evaluation": evaluation}
    return parse_config(document | more)


def record_of(attempt: int = 1, status: Any = "RUNNING") -> RunRecord:
    attempts = [Attempt(number=attempt, started="2020-01-01T00:00:00+00:00")]
    return RunRecord(
        name="a",
        id="0",
        hash="0",
        identity={},
        data="d",
        steps=60,
        status=status,
        attempts=attempts,
    )


def put_checkpoint(store: LocalStore, step: int) -> None:
    """Something that passes for one as long as nobody reads it."""
    store.write(f"runs/a/checkpoints/step_{step:08d}/manifest.json", b"{}")


def test_checkpoints_that_are_gone_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, config = LocalStore(tmp_path), config_of(tmp_path)
    put_checkpoint(store, 20)
    store.write_json(f"runs/a/{result_key('val', 20)}", {})  # another attempt's work
    aside = Aside(config, record_of(), store, lambda: False)
    put_checkpoint(store, 70)  # and 40 and 60 were there and are not any more
    assert aside.finish()
    assert aside.finish()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("a: warning: ")
    assert "40, 60" in line
    assert "checkpoint.keep=2" in line


def test_stopped_while_the_last_ones_were_measured_is_not_finished(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put_checkpoint(store, 60)
    assert not Aside(config_of(tmp_path), record_of(), store, lambda: True).finish()
    store.write_json(f"runs/a/{result_key('val', 60)}", {})
    assert Aside(config_of(tmp_path), record_of(), store, lambda: True).finish()


def test_sync_sends_what_was_measured_of_every_step(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Also if a later attempt, killed at once, has no checkpoint of its own."""
    tracking = {"uri": mlflow_server.uri, "experiment": "aside"}
    config, store = config_of(tmp_path, tracking=tracking), LocalStore(tmp_path)
    spooled = Tracker(resolve(config), describe(config, key="a-0-0"), store)
    spooled.log(60, {"d_loss": 1.0})
    documents = {"config": config.model_dump(mode="json"), "tracking": spooled.snapshot(60)}
    spooled.close()
    folder = run_store(store, "a")
    checkpoints = Checkpoints(folder.within("checkpoints"), keep=1)
    checkpoints.save(60, {}, documents)
    checkpoints.wait()
    for split, at, step, value in (
        ("val", 20, 20, 0.2),
        ("val", 60, 60, 0.6),
        ("val", None, 60, 0.7),  # measured by hand
        ("test", None, 60, 0.8),
    ):
        measured = {"step": step, "metrics": {f"{split}/x": value}}
        folder.write_json(result_key(split, at), measured)
    for _ in range(2):  # the second finds nothing to add
        assert launch.sync(store, record_of(attempt=2, status="KILLED"), model=False)
    destination = resolve(config)
    assert destination
    client = connect(destination)
    run = find_run(client, destination, "a-0-0")
    assert run
    found = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert found == {"d_loss": [(60, 1.0)], "val/x": [(20, 0.2), (60, 0.6)], "test/x": [(60, 0.8)]}
    files = [
        file.path
        for folder in ("evaluation", "evaluation/val")
        for file in client.list_artifacts(run.info.run_id, folder)
        if not file.is_dir
    ]
    assert files == [result_key(*of) for of in (("test",), ("val",), ("val", 20), ("val", 60))]


def test_what_does_not_go_with_it_is_refused(tmp_path: Path) -> None:
    best = {"every": 10, "best": "val/frechet_reader", "best_mode": "min"}
    with pytest.raises(UserError, match=r"checkpoint.best=val/frechet_reader.*aside=1: .*set"):
        config_of(tmp_path, checkpoint=best)
    alone = {**TINY["model"], "family": "matching"}
    assert config_of(tmp_path, checkpoint=best, model=alone).aside == 0  # rank 0 measures
    document = config_of(tmp_path).model_dump(mode="json")
    document["space"] = {"optim.lr_g": {"grid": [0.001, 0.002]}}
    with pytest.raises(UserError, match=r"evaluation.aside=1: a trial is ranked.*aside=0"):
        parse_sweep(document)


def test_too_few_cpus_are_told_before_a_worker_starts(tmp_path: Path) -> None:
    two = config_of(tmp_path, cluster={"workers": 2})
    assert not [*lacking(two, {"CPU": 3.0})]
    (problem,) = lacking(two, {"CPU": 2.0})
    assert "evaluation.aside=1" in problem
    assert "3 CPUs and the cluster has 2;" in problem
    (problem,) = lacking(two, {"CPU": 1.0})
    assert "cluster.workers=2 need 2 CPUs" in problem
    on_gpu = config_of(tmp_path, cluster={"workers": 1, "gpu": True})
    assert len([*lacking(on_gpu, {"CPU": 1.0})]) == 2
