"""Runs on a real Ray cluster: equal curves whatever happens to the workers or the driver."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from runner import Runner, finish, until
from servers import S3Server, free_port

from t2i_ray.checkpoint import Checkpoints
from t2i_ray.config import Storage
from t2i_ray.runs import read_run, run_store
from t2i_ray.storage import open_store

STEPS = 60
TWO = "cluster.workers=2"


@pytest.fixture(scope="module")
def unbroken(runner: Runner) -> str:
    """A run of two workers that nothing happened to; its name."""
    runner.train("unbroken", TWO)
    return "unbroken"


def assert_same_run(runner: Runner, name: str, unbroken: str) -> None:
    """Same weights and optimisers, same curves in MLflow, bit for bit, each step once."""
    assert runner.sums(name, STEPS) == runner.sums(unbroken, STEPS)
    curves = runner.curves(name)
    assert curves == runner.curves(unbroken)
    for key in ("d_loss", "g_loss"):
        assert [step for step, _ in curves[key]] == list(range(1, STEPS + 1)), key
    assert runner.record(name).status == runner.mlflow_run(name).info.status == "FINISHED"


def test_a_run_leaves_all_it_promised(runner: Runner, unbroken: str) -> None:
    run = runner.mlflow_run(unbroken)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr_g"] == "0.0002"
    assert run.data.tags["mlflow.source.git.commit"]
    assert run.inputs.dataset_inputs[0].dataset.name == "synthetic-flowers"
    assert run.data.metrics["perf/cpu_seconds"] > 0
    paths = {file.path for file in runner.mlflow().list_artifacts(run.info.run_id)}
    assert {"config.yaml", "losses.png", "samples"} <= paths
    files = {p.name for p in (runner.folder / f"store/runs/{unbroken}/checkpoints").iterdir()}
    assert files == {"step_00000050", "step_00000060"}  # keep: 2
    assert runner.record(unbroken).published


def test_finished_run_is_left_alone(runner: Runner, unbroken: str) -> None:
    before = runner.sums(unbroken, STEPS)
    output = runner.train(unbroken, TWO)
    assert "finished already" in output
    assert runner.sums(unbroken, STEPS) == before
    assert len(runner.record(unbroken).attempts) == 1


def test_same_name_with_another_identity_is_refused(runner: Runner, unbroken: str) -> None:
    output = runner.train(unbroken, TWO, "optim.lr_g=0.001", code=2)
    error = output.strip().splitlines()[-1]
    assert error.startswith("error: name='unbroken'")
    assert "optim.lr_g: 0.0002 there, 0.001 here" in error


def test_killed_worker(runner: Runner, unbroken: str) -> None:
    """SIGKILL of rank 0, which holds the spool: Ray restarts the group."""
    process = runner.start_training("killed-worker", TWO)
    runner.wait_for_checkpoint("killed-worker", 20)
    progress = Path(runner.folder / "store/runs/killed-worker/progress.json")
    os.kill(json.loads(progress.read_text())["pid"], signal.SIGKILL)
    output = finish(process)
    assert "continues from step" in output
    assert_same_run(runner, "killed-worker", unbroken)


def test_stopped_and_continued(runner: Runner, unbroken: str) -> None:
    """SIGTERM: a checkpoint at the step that was reached, KILLED, and on from there."""
    process = runner.start_training("stopped", TWO)
    runner.wait_for_checkpoint("stopped", 10)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=128 + signal.SIGTERM)
    record = runner.record("stopped")
    assert record.status == runner.mlflow_run("stopped").info.status == "KILLED"
    assert 10 <= record.step < STEPS
    assert runner.checkpoint("stopped").step == record.step, output
    # All that was computed is committed.
    steps = [step for step, _ in runner.curves("stopped")["d_loss"]]
    assert steps == list(range(1, record.step + 1))
    output = runner.train("stopped", TWO)
    assert f"continues from step {record.step}" in output
    assert_same_run(runner, "stopped", unbroken)


def test_killed_driver(runner: Runner, unbroken: str) -> None:
    """SIGKILL of the driver, which could not say goodbye: the same command sets all right."""
    process = runner.start_training("killed-driver", TWO)
    runner.wait_for_checkpoint("killed-driver", 10)
    process.kill()
    process.communicate()
    assert runner.record("killed-driver").status == "RUNNING"
    output = runner.train("killed-driver", TWO)
    assert "continues from step" in output
    assert_same_run(runner, "killed-driver", unbroken)


def test_damaged_checkpoint_is_passed_over(runner: Runner, unbroken: str) -> None:
    """Stopped by Ctrl-C; then a bit of its newest checkpoint flips."""
    process = runner.start_training("damaged", TWO)
    runner.wait_for_checkpoint("damaged", 20)
    process.send_signal(signal.SIGINT)
    finish(process, code=128 + signal.SIGINT)
    step = runner.record("damaged").step
    folder = runner.folder / f"store/runs/damaged/checkpoints/step_{step:08d}"
    data = bytearray((folder / "generator.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "generator.safetensors").write_bytes(data)
    output = runner.train("damaged", TWO)
    assert "generator.safetensors is damaged" in output
    assert_same_run(runner, "damaged", unbroken)


def assert_curves_agree(runner: Runner, one: str, two: str, steps: int, tolerance: float) -> None:
    """The losses of two runs' first steps, relatively."""
    first, second = (runner.checkpoint(name).tensors["history"] for name in (one, two))
    assert first["step"][:steps].tolist() == list(range(1, steps + 1))
    for key in ("d_loss", "g_loss", "d_real", "d_wrong", "d_fake"):
        error = ((second[key] - first[key]) / first[key])[:steps].abs().max().item()
        assert error < tolerance, f"{key}: {error}"


def test_one_and_two_workers_agree_in_float64(runner: Runner) -> None:
    """The number of workers is no part of the algorithm."""
    exact = ("train.precision=float64", "train.steps=50", "tracking.enabled=false")
    for workers in (1, 2):
        runner.train(f"exact-{workers}", f"cluster.workers={workers}", *exact)
    assert_curves_agree(runner, "exact-1", "exact-2", steps=50, tolerance=1e-8)


def test_one_and_two_workers_agree_in_float32(runner: Runner, unbroken: str) -> None:
    runner.train("alone", "cluster.workers=1", "tracking.enabled=false")
    assert_curves_agree(runner, "alone", unbroken, steps=20, tolerance=1e-3)


def test_mlflow_down_all_the_time(runner: Runner, unbroken: str) -> None:
    """Training does not care; sync sends everything afterwards, once."""
    dead = f"http://127.0.0.1:{free_port()}"
    output = runner.train("mlflow-down", TWO, f"tracking.uri={dead}")
    assert "MLflow is behind" in output
    record = runner.record("mlflow-down")
    assert (record.status, record.published) == ("FINISHED", False)
    assert runner.sums("mlflow-down", STEPS) == runner.sums(unbroken, STEPS)
    store = str(runner.folder / "store")
    uri = f"sqlite:///{runner.folder}/store/mlflow.db"
    runner.run("sync", "mlflow-down", "-s", store, "--tracking-uri", uri)
    runner.run("sync", "mlflow-down", "-s", store, "--tracking-uri", uri)
    assert_same_run(runner, "mlflow-down", unbroken)


def test_on_s3_with_an_mlflow_server(
    runner: Runner, unbroken: str, s3: S3Server, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Elsewhere stored and elsewhere shown, it is the same run; and no secret is anywhere."""
    uri = f"s3://{s3.bucket}/whole"
    output = runner.train(
        "on-s3", TWO, f"storage={{uri: '{uri}', endpoint: '{s3.endpoint}'}}",
        f"tracking.uri={mlflow_server.uri}",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.env.items():
            patch.setenv(name, value)
        store = open_store(Storage(uri=uri, endpoint=s3.endpoint))
        record = read_run(store, "on-s3")
        assert record
        assert (record.status, record.published) == ("FINISHED", True)
        here = Checkpoints(run_store(store, "on-s3").within("checkpoints"), keep=1).latest()
        everything = {key: store.read(key) for key in store.list()}
    there = runner.checkpoint(unbroken)
    assert here
    for group, tensors in there.tensors.items():
        for name, tensor in tensors.items():
            assert tensor.equal(here.tensors[group][name]), f"{group}.{name}"
    curves = runner.curves("on-s3", mlflow_server.uri, record.key)
    assert curves == runner.curves(unbroken)
    picture = tmp_path / "s3.png"
    where = ["-s", uri, "--endpoint", s3.endpoint]
    runner.run("generate", "on-s3", "a red flower", "-o", str(picture), *where)
    assert picture.stat().st_size > 1000

    secret = s3.env["AWS_SECRET_ACCESS_KEY"]
    run = runner.mlflow_run("on-s3", mlflow_server.uri, record.key)
    assert secret not in output
    assert secret not in str(run.to_dictionary())
    assert not [key for key, data in everything.items() if secret.encode() in data]


def test_measured_while_training_and_the_best_is_kept(runner: Runner) -> None:
    runner.train(
        "measured", TWO, "train.steps=40", "evaluation.every=10", "evaluation.samples=64",
        "checkpoint.keep=1", "checkpoint.best=val/frechet_reader", "checkpoint.best_mode=min",
    )  # fmt: skip
    curve = runner.curves("measured")["val/frechet_reader"]
    assert [step for step, _ in curve] == [10, 20, 30, 40]
    best = min(curve, key=lambda point: (point[1], -point[0]))[0]
    kept = sorted((runner.folder / "store/runs/measured/checkpoints").iterdir())
    assert {path.name for path in kept} == {f"step_{step:08d}" for step in (best, 40)}


def test_runs_lists_them(runner: Runner, unbroken: str) -> None:
    output = runner.run("runs", "-s", str(runner.folder / "store"), env={"COLUMNS": "200"})
    (line,) = [line for line in output.splitlines() if f" {unbroken} " in line]
    assert "FINISHED" in line
    assert "60/60" in line


def test_progress_is_told(runner: Runner, unbroken: str) -> None:
    progress = json.loads((runner.folder / f"store/runs/{unbroken}/progress.json").read_text())
    assert progress["step"] == STEPS
    until(lambda: not Path(f"/proc/{progress['pid']}").exists(), seconds=30)
