"""Runs on a real Ray cluster: equal curves whatever happens to the workers or the driver."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from runner import RUN, STEPS, Runner, finish, until
from small_configs import TINY, write_config

from t2i_ray.checkpoint import DamagedCheckpoint
from t2i_ray.config import UserError, load_config, with_overrides
from t2i_ray.data import prepare
from t2i_ray.generate import Pipeline
from t2i_ray.launch.driver import make_shared
from t2i_ray.storage import LocalStore, StorageError, open_store
from t2i_ray.tracking import describe
from t2i_ray.train import Job, Worker, train

EXAMPLES = str(Path(__file__).parent.parent / "examples")


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
    assert runner.record(unbroken).published


def test_data_without_held_out_pictures(tmp_path: Path) -> None:
    """The grid is of training captions then; measuring is refused before a worker starts."""
    lines = [{"image": f"{i}.png", "caption": f"shade {i}", "split": "train"} for i in range(24)]
    for i, line in enumerate(lines):
        Image.new("RGB", (18, 18), (i * 9, 0, 99)).save(tmp_path / line["image"])
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "folder", "path": str(tmp_path)}
    document = {**TINY, "data": {**TINY["data"], "source": source}}
    config = load_config(write_config(tmp_path, "shades", document), ["train.steps=2"])
    store = open_store(config.storage)
    data = prepare(config.data, store)
    job = Job(config.model_dump(mode="json"), data, None, describe(config, key="k").to_json())
    assert train(job, Worker()).status == "FINISHED"
    assert (tmp_path / "store/runs/shades/samples/step_00000002.png").exists()
    document = with_overrides(job.config, ["evaluation.every=2"])
    with pytest.raises(UserError, match="the split val has 0 pictures"):
        make_shared(document, data)


def test_measured_while_training_and_the_best_is_kept(runner: Runner, unbroken: str) -> None:
    curve = runner.curves(unbroken)["val/frechet_reader"]
    assert [step for step, _ in curve] == [20, 40, 60, 80, 100]
    best = min(curve, key=lambda point: (point[1], -point[0]))[0]
    kept = {path.name for path in (runner.folder / f"store/runs/{unbroken}/checkpoints").iterdir()}
    assert kept == {f"step_{step:08d}" for step in (best, 90, 100)}  # keep: 2


def test_a_storage_that_is_away_when_a_run_is_measured(
    runner: Runner,
    unbroken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read, refused = LocalStore.read, list[str]()

    def away_once(store: LocalStore, key: str) -> bytes:
        if "/readers" in f"{store.uri}/{key}" and not refused:
            refused.append(key)
            raise StorageError("refused")
        return read(store, key)

    monkeypatch.setattr(LocalStore, "read", away_once)
    measured = ("evaluation.every=20", "evaluation.samples=64")
    runner.train_without_ray(
        "patient", unbroken, "train.steps=20", "tracking.enabled=false", *measured
    )
    assert refused
    assert "the storage is away, trying on: refused" in capsys.readouterr().out


def test_finished_run_is_left_alone(runner: Runner, unbroken: str) -> None:
    before = runner.sums(unbroken, STEPS)
    output = runner.train(unbroken, *RUN)
    assert "finished already" in output
    assert runner.sums(unbroken, STEPS) == before
    assert len(runner.record(unbroken).attempts) == 1


def test_same_name_with_another_identity_is_refused(runner: Runner, unbroken: str) -> None:
    output = runner.train(unbroken, *RUN, "optim.lr_g=0.001", code=2)
    error = output.strip().splitlines()[-1]
    assert error.startswith("error: name='unbroken'")
    assert "optim.lr_g: 0.0002 there, 0.001 here" in error


def test_broken_in_every_way(runner: Runner, unbroken: str) -> None:
    """A worker killed, a wish to stop, a damaged file, the driver killed, a worker that hangs."""
    name = "broken"
    checkpoints = runner.folder / f"store/runs/{name}/checkpoints"

    # SIGKILL of rank 0, which holds the spool: Ray restarts the group.
    process = runner.start_training(name, *RUN)
    runner.wait_for_checkpoint(name, 10)
    os.kill(runner.rank_0(name), signal.SIGKILL)

    # SIGTERM: a checkpoint at the step that was reached, all of it committed, KILLED.
    runner.wait_for_checkpoint(name, 30)
    process.send_signal(signal.SIGTERM)
    output = finish(process, code=128 + signal.SIGTERM)
    assert "continues from step" in output
    record = runner.record(name)
    assert record.status == runner.mlflow_run(name).info.status == "KILLED"
    assert 30 <= record.step < STEPS
    assert runner.checkpoint(name).step == record.step, output
    steps = [step for step, _ in runner.curves(name)["d_loss"]]
    assert steps == list(range(1, record.step + 1))

    # Ctrl-C, and a bit of the newest checkpoint flips: the one before it is taken.
    process = runner.start_training(name, *RUN)
    runner.wait_for_checkpoint(name, record.step + 10)
    process.send_signal(signal.SIGINT)
    output = finish(process, code=128 + signal.SIGINT)
    assert f"continues from step {record.step}" in output
    step = runner.record(name).step
    file = checkpoints / f"step_{step:08d}/generator.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    # SIGKILL of the driver, which could not say goodbye: the same command sets all right.
    process = runner.start_training(name, *RUN)
    runner.wait_for_checkpoint(name, step + 1)
    process.kill()
    output, _ = process.communicate()
    assert "generator.safetensors is damaged" in output
    assert runner.record(name).status == "RUNNING"

    # SIGSTOP of rank 0: its peer waits in a collective, Ray for its answer; neither for ever.
    before = runner.rank_0(name)
    process = runner.start_training(name, *RUN, "cluster.timeout_s=8")
    until(lambda: runner.rank_0(name) != before)
    pid = runner.rank_0(name)
    os.kill(pid, signal.SIGSTOP)
    # Meanwhile somebody gives the same command.
    refusal = runner.train(name, *RUN, code=2).strip().splitlines()[-1]
    assert refusal.startswith(f"error: name='{name}': process {process.pid} on ")
    output = finish(process)
    assert "continues from step" in output
    assert runner.rank_0(name) != pid
    assert len(runner.record(name).attempts) == 4
    assert_same_run(runner, name, unbroken)
    until(lambda: not Path(f"/proc/{pid}").exists(), seconds=30)


@pytest.mark.parametrize("family", ["cgan", "cvae", "least_squares:LeastSquares"])
def test_every_family_trains_and_draws(
    runner: Runner, unbroken: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is a user's own, in examples/."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("T2I_RAY_TARGETS", family)
    name = family.partition(":")[0]
    options = [f"model.family={family}", "train.steps=20", "tracking.enabled=false"]
    runner.train_without_ray(
        name, unbroken, *options, "evaluation.every=20", "evaluation.samples=64"
    )
    history = runner.checkpoint(name).tensors["history"]
    assert ("d_loss" in history) == (family != "cvae")
    assert len(history["g_loss"]) == 20
    assert (runner.folder / f"store/runs/{name}/losses.png").exists()
    pictures = Pipeline.from_checkpoint(runner.checkpoint(name)).images(["a red flower"], [0])
    assert pictures.shape == (1, 16, 16, 3)


def test_an_encoder_of_ones_own_trains_and_draws(
    runner: Runner, unbroken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "bag_of_words:BagOfWords"  # in examples/
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("T2I_RAY_TARGETS", target)
    encoder = f"encoder={{kind: custom, target: '{target}', options: {{dim: 24}}}}"
    runner.train_without_ray("bag", unbroken, encoder, "train.steps=20", "tracking.enabled=false")
    checkpoint = runner.checkpoint("bag")
    average = checkpoint.tensors["encoder_ema"]["bag.weight"]
    trained = checkpoint.tensors["encoder"]["bag.weight"]
    assert not torch.equal(average, trained)
    pipeline = Pipeline.from_checkpoint(checkpoint)
    one, same, other = pipeline.encode(["a red flower", "flower a red", "a blue flower"])
    torch.testing.assert_close(one, same)
    assert not torch.allclose(one, other)
    assert pipeline.check("a red zebra") == (["zebra"], None)
    assert pipeline.images(["a red flower"], [0]).shape == (1, 16, 16, 3)


def test_weights_to_inherit_must_be_there(runner: Runner, unbroken: str) -> None:
    config = load_config(runner.config(unbroken), list(RUN))
    data, about = runner.record(unbroken).data, describe(config, key=unbroken).to_json()
    job = Job(config.model_dump(mode="json"), data, None, about)
    with pytest.raises(DamagedCheckpoint, match="runs/nobody"):
        train(replace(job, inherits={"of": "runs/nobody", "step": STEPS}), Worker())
    with pytest.raises(RuntimeError, match=f"step {STEPS + 1}.*step {STEPS}"):
        train(replace(job, inherits={"of": "runs/nobody", "step": STEPS + 1}), Worker())


def assert_curves_agree(runner: Runner, one: str, two: str, steps: int, tolerance: float) -> None:
    """The losses of two runs' first steps, relatively."""
    first, second = (runner.checkpoint(name).tensors["history"] for name in (one, two))
    assert first["step"][:steps].tolist() == list(range(1, steps + 1))
    for key in ("d_loss", "g_loss", "d_real", "d_wrong", "d_fake"):
        expected, found = first[key][:steps], second[key][:steps]
        error = ((found - expected) / expected).abs().max().item()
        assert error < tolerance, f"{key}: {error}"


def test_one_and_two_workers_agree_in_float64(runner: Runner, unbroken: str) -> None:
    """The number of workers is no part of the algorithm, nor is Ray."""
    exact = ("train.precision=float64", "train.steps=50", "tracking.enabled=false")
    runner.train("exact-2", "cluster.workers=2", *exact)
    runner.train_without_ray("exact-1", unbroken, *exact)
    assert_curves_agree(runner, "exact-1", "exact-2", steps=50, tolerance=1e-8)


def test_one_and_two_workers_agree_in_float32(runner: Runner, unbroken: str) -> None:
    runner.train_without_ray("alone", unbroken, "train.steps=20", "tracking.enabled=false")
    assert_curves_agree(runner, "alone", unbroken, steps=20, tolerance=1e-3)


def test_runs_lists_them(runner: Runner, unbroken: str) -> None:
    output = runner.run("runs", "-s", str(runner.folder / "store"), env={"COLUMNS": "200"})
    (line,) = [line for line in output.splitlines() if f" {unbroken} " in line]
    assert "FINISHED" in line
    assert f"{STEPS}/{STEPS}" in line


def test_progress_is_told(runner: Runner, unbroken: str) -> None:
    progress = json.loads((runner.folder / f"store/runs/{unbroken}/progress.json").read_text())
    assert progress["step"] == STEPS
    until(lambda: not Path(f"/proc/{progress['pid']}").exists(), seconds=30)
