"""Workers that come and go: another number of them, lost nodes, nodes that are to go."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Thread

import pytest
import torch
from ray.train import ControllerError, ScalingConfig
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray_cluster import BIN, RayCluster
from runner import Runner, until
from small_configs import write_config

from t2i_ray.checkpoint import Checkpoints
from t2i_ray.config import UserError, load_config, parse_sweep
from t2i_ray.data import prepare
from t2i_ray.launch.cluster import lacking, shortfalls
from t2i_ray.launch.elastic import Room, fitting
from t2i_ray.runs import run_store
from t2i_ray.storage import open_store
from t2i_ray.tracking import describe
from t2i_ray.train import Job, Worker, train
from t2i_ray.train.cost import Cost

#: Learning rates so small that rounding is not amplified over hundreds of steps.
SLOW = (
    "train.precision=float64", "train.steps=100000", "train.batch_size=64", "train.micro_batches=8",
    "optim.lr_g=1e-5", "optim.lr_d=1e-5", "optim.lr_encoder=1e-5", "checkpoint.every=20",
)  # fmt: skip


def test_elastic_settings_are_checked(tmp_path: Path) -> None:
    path = write_config(tmp_path, "a")
    with pytest.raises(UserError, match=r"min_workers=3 is more than cluster.workers=2; make"):
        load_config(path, ["cluster.workers=2", "cluster.min_workers=3"])
    config = load_config(path, ["cluster.workers=2", "cluster.min_workers=1"])
    assert not [*lacking(config, {"CPU": 1.0})]
    (problem,) = lacking(config, {"CPU": 0.0})
    assert "cluster.min_workers=1 need 1 CPUs" in problem
    document = config.model_dump(mode="json") | {"space": {"optim.lr_g": {"grid": [1e-3, 2e-3]}}}
    document["evaluation"]["every"] = document["train"]["steps"]
    with pytest.raises(UserError, match=r"min_workers=1: the trials of a sweep.*leave it out"):
        parse_sweep(document)


@pytest.mark.parametrize(
    ("limits", "final"),
    [({"CPU": 3}, False), ({"CPU": 2}, True), ({"GPU": 8}, True), (None, False)],
)
def test_more_than_an_autoscalers_limits_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int] | None, final: bool
) -> None:
    """The limits as Ray tells them; the autoscalers that come with it tell none."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.nodes", list)
    told = "ray._private.state.state.get_max_resources_from_cluster_config"
    monkeypatch.setattr(told, lambda: limits)
    overrides = ["cluster.workers=3", "train.micro_batches=4", "cluster.address=head:6379"]
    ((problem, in_vain),) = shortfalls(load_config(write_config(tmp_path, "a"), overrides))
    assert "cluster.workers=3 need 3 CPUs and the cluster has 1" in problem
    assert in_vain == final


def test_workers_that_fit_leave_room_for_what_measures_aside() -> None:
    worker = {"CPU": 2.0, "GPU": 0.0}
    nodes = [{"CPU": 5.0}, {"CPU": 4.0}, {"memory": 1.0}]
    assert fitting(nodes, worker, aside=0) == 4
    assert fitting(nodes, worker, aside=1) == 4  # the first node has one over
    assert fitting(nodes, worker, aside=2) == 3
    assert fitting(nodes, worker, aside=9) == 4  # there is no such room anyway
    gpus = [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 8.0}]
    assert fitting(gpus, {"CPU": 2.0, "GPU": 1.0}, aside=8) == 1


def test_a_lost_groups_own_room_counts_until_the_next_one_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray keeps it for the group that is lost, until another is started."""
    room = Room(ScalingConfig(num_workers=(2, 2), resources_per_worker={"CPU": 1}), "run-1", 0)
    nodes = {"a": {"CPU": 1.0}}
    monkeypatch.setattr(room, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(room, "_get_resize_decision", lambda workers: workers)
    monkeypatch.setattr("t2i_ray.launch.elastic.totals", lambda: nodes)
    monkeypatch.setattr("t2i_ray.launch.elastic.available_resources_per_node", dict)
    monkeypatch.setattr("t2i_ray.launch.elastic.state.get_draining_nodes", dict)
    decide = room.make_decision_for_non_running_worker_group
    for _ in range(2):
        assert isinstance(decide(), NoopDecision)
    assert capsys.readouterr().out == "run-1: waits: 2 workers needed, room for 1\n"
    nodes["b"] = {"CPU": 1.0}
    assert decide() == 2
    # Somebody else has it: the start has failed, and the group before it is gone.
    failed = ReschedulingState(ControllerError(RuntimeError("no room")))
    room.after_controller_state_update(InitializingState(), failed)
    assert isinstance(decide(), NoopDecision)


def test_cost_is_that_of_the_workers_there_were(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, "a"), ["cluster.threads=3"])
    state = {"train_seconds": 100.0, "core_seconds": 600.0}
    assert Cost(config, 1, state).count()["perf/cpu_seconds"] == pytest.approx(600, abs=3)
    old = {"train_seconds": 100.0}  # of a checkpoint from before there was more than one number
    assert Cost(config, 2, old).count()["perf/cpu_seconds"] == pytest.approx(600, abs=3)


def test_a_notice_leads_to_a_checkpoint_at_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no step is done twice."""
    monkeypatch.setattr("t2i_ray.train.chief.LOOK_EVERY", 0.0)
    config = load_config(
        write_config(tmp_path, "moves"), ["train.steps=9", "tracking.enabled=false"]
    )
    store = open_store(config.storage)
    about = describe(config, key="k").to_json()
    job = Job(config.model_dump(mode="json"), prepare(config.data, store), None, about)
    looks: list[int] = []

    def notice() -> str | None:
        looks.append(len(looks) + 1)
        return "node x is drained" if len(looks) in (3, 7) else None

    outcomes = [train(job, Worker(), notice=notice) for _ in range(3)]
    assert [(o.status, o.step, o.moves) for o in outcomes] == [
        ("RUNNING", 3, True), ("RUNNING", 7, True), ("FINISHED", 9, False),
    ]  # fmt: skip
    assert outcomes[0].reason == "left at step 3: node x is drained"
    assert looks == list(range(1, 9))  # not after the last step
    checkpoints = Checkpoints(run_store(store, "moves").within("checkpoints"), keep=1)
    newest = checkpoints.latest()
    assert newest
    assert newest.tensors["history"]["step"].tolist() == list(range(1, 10))


class Output:
    """What a command prints, as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text = ""
        self._seen = 0  # up to where it was waited for
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.text += line

    def wait_for(self, *texts: str) -> None:
        """Until each has come after the one before it."""
        for text in texts:
            until(partial(self._has, text))
            assert text in self.text[self._seen :], (
                f"no {text!r} after {self._seen} characters of:\n{self.text}"
            )
            self._seen = self.text.index(text, self._seen) + len(text)

    def _has(self, text: str) -> bool:
        return text in self.text[self._seen :] or self.process.poll() is not None

    def finish(self, code: int) -> str:
        """All of it, once the command has ended."""
        found = self.process.wait(timeout=900)
        self._thread.join()
        assert found == code, f"exit code {found}:\n{self.text}"
        return self.text


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """A head without CPUs, and two nodes with one each, whose loss is noticed soon."""
    env = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    cluster = RayCluster(tmp_path / "ray", cpus=0, nodes=(1, 1), env=env)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def drain(cluster: RayCluster, address: str) -> None:
    """Give notice that a node will go in a minute."""
    found = cluster.get("/nodes?view=summary")["data"]["summary"]
    (node,) = [node["raylet"]["nodeId"] for node in found if node["ip"] == address]
    command = [
        str(BIN / "ray"), "drain-node", f"--address=127.0.0.1:{cluster.port}",
        f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test",
        "--deadline-remaining-seconds=60",
    ]  # fmt: skip
    subprocess.run(command, env=cluster.env, check=True, timeout=60)


def test_workers_come_and_go_and_the_curve_stays(cluster: RayCluster, tmp_path: Path) -> None:
    """2 -> 1 (a node is lost) -> 2 (a new one) -> 1 -> 0 (drained): each step once, as of one.

    The new one is drained as a pod is that is to go: by a SIGTERM for its ``ray start --block``.
    """
    folder = tmp_path / "runs"
    folder.mkdir()
    runner = Runner(cluster, folder)
    output = Output(
        runner.start_training(
            "elastic", *SLOW, "cluster.workers=2", "cluster.min_workers=1", "cluster.resize_s=1",
            "cluster.max_failures=1", "storage.shared=true",
        )
    )  # fmt: skip
    runner.wait_for_checkpoint("elastic", 20)
    cluster.nodes[1].kill()
    output.wait_for("continues from step")
    pod = cluster.add_node(1, {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60"})
    output.wait_for("there is room for more workers", "continues from step")
    pod.process.send_signal(signal.SIGTERM)
    output.wait_for("is drained", "continues from step")
    runner.wait_for_checkpoint("elastic", runner.checkpoint("elastic").step + 10)
    drain(cluster, "127.0.0.2")
    output.wait_for("is drained", "waits: 1 workers needed, room for 0")
    output.process.send_signal(signal.SIGTERM)
    text = output.finish(code=128 + signal.SIGTERM)

    for why in ("there is room for more workers", "node [0-9a-f]{8} is drained"):
        stay = re.search(rf"left at step (\d+): {why}.*?from step (\d+)", text, re.S)
        assert stay, text
        assert stay[1] == stay[2], why
    record = runner.record("elastic")
    *_, left = re.findall(r"left at step (\d+)", text)
    assert (record.status, record.step) == ("KILLED", int(left))
    assert len(record.attempts) == 1
    client, run = runner.mlflow(), runner.mlflow_run("elastic")
    points = client.get_metric_history(run.info.run_id, "perf/workers")
    numbers = [int(point.value) for point in sorted(points, key=lambda point: point.step)]
    assert [number for number, _ in groupby(numbers)] == [2, 1, 2, 1]

    config = load_config(runner.config("twin"), [*SLOW, "tracking.enabled=false"])
    about = describe(config, key="twin").to_json()
    job = Job(config.model_dump(mode="json"), record.data, None, about, until=record.step)
    assert train(job, Worker()).step == record.step
    curves, history = runner.curves("elastic"), runner.checkpoint("twin").tensors["history"]
    for key in ("d_loss", "g_loss", "d_real", "d_wrong", "d_fake"):
        steps, values = zip(*curves[key], strict=True)
        assert list(steps) == list(range(1, record.step + 1)), key
        found = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found, history[key], rtol=1e-8, atol=0)
