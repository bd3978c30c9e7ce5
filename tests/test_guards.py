"""Runs that go wrong: seen, named, ended or taken back; and the same again after any kill."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from small_configs import TINY, write_config
from small_gan import make_gan, make_pieces

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import Config, UserError, identity_hash, load_config, parse_config, parse_sweep
from t2i_ray.data import prepare
from t2i_ray.evaluate.run import _checkpoint
from t2i_ray.runs import HOPELESS, Scores
from t2i_ray.storage import LocalStore, open_store
from t2i_ray.tracking import describe
from t2i_ray.tracking.spool import Spool
from t2i_ray.train import Job, Outcome, Worker, train
from t2i_ray.train.guards import Guard

#: D of this one soon wins every time; with a hundredth of the rates it does not.
TOO_FAST = (
    "train.steps=24", "guard.discriminator=3", "guard.gradient=1e9", "optim.lr_d=0.01",
    "guard.every=4", "guard.rate=0.01", "checkpoint.every=3",
)  # fmt: skip


def make(folder: Path, name: str, *overrides: str) -> tuple[Config, Job]:
    config = load_config(write_config(folder, name, TINY), list(overrides))
    data = prepare(config.data, open_store(config.storage))
    about = describe(config, key=name).to_json()
    return config, Job(config.model_dump(mode="json"), data, None, about)


def run(folder: Path, name: str, *overrides: str) -> Outcome:
    return train(make(folder, name, "tracking.enabled=false", *overrides)[1], Worker())


def checkpoints(folder: Path, name: str) -> Checkpoints:
    return Checkpoints(LocalStore(folder / f"store/runs/{name}/checkpoints"), keep=1)


def newest(folder: Path, name: str) -> Checkpoint:
    checkpoint = checkpoints(folder, name).latest()
    assert checkpoint is not None
    return checkpoint


def guard(step: int = 0, **fields: Any) -> Guard:
    return Guard(parse_config({"name": "a", "train": {"steps": 100}, "guard": fields}), step)


WINS = {"d_acc_real": 1.0, "d_acc_fake": 1.0, "grad_g": 1e-9, "grad_d": 1.0}

# -------------------------------------------------------------------------------- looking


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ({"g_loss": math.nan, "d_loss": 1.0}, "a loss is not finite at step 7: g_loss=nan"),
        ({"g_loss": 0.1, "grad_d": math.inf}, "a gradient is not finite at step 7: grad_d=inf"),
        ({"g_loss": math.inf, "grad_d": math.nan}, "a loss is not finite at step 7: g_loss=inf"),
    ],
)
def test_what_is_not_finite_is_named(losses: dict[str, float], says: str) -> None:
    reason = guard().look(7, losses)
    assert reason
    assert reason.startswith(says)
    assert reason.startswith(HOPELESS)


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        ({"d_acc_fake": 0.99}, {}),
        ({"d_acc_real": 0.99}, {}),
        ({"grad_g": 1e-3}, {}),
        ({}, {"discriminator": 0}),
    ],
)
def test_a_collapsed_discriminator_wins_all_the_time(
    other: dict[str, float], fields: dict[str, Any]
) -> None:
    collapsed = guard(discriminator=3)
    assert [collapsed.look(step, WINS) is None for step in (1, 2, 3)] == [True, True, False]
    one = guard(**{"discriminator": 3, **fields})
    assert [one.look(s, {**WINS, **(other if s == 2 else {})}) for s in (1, 2, 3)] == [None] * 3
    if fields:
        return
    again = Guard(parse_config({"name": "a", "train": {"steps": 100}}), 2, one.state())
    assert again.state() == one.state()  # it goes on counting where it was


def test_a_family_without_a_discriminator_has_none_that_collapses() -> None:
    assert guard(discriminator=1).look(1, {"g_loss": 1.0, "grad_g": 0.0}) is None


def test_lengths_of_gradients_are_those_of_all_parameters() -> None:
    gan = make_gan()
    gan.step(make_pieces(2), step=0, micro_batches=2, world=1)
    for name, parts in (("g", ["generator"]), ("d", ["discriminator", "encoder"])):
        gradients = [
            parameter.grad.flatten()
            for part in parts
            for parameter in gan.networks[part].parameters()
            if parameter.grad is not None
        ]
        length = torch.cat(gradients).norm()
        torch.testing.assert_close(gan.gradient_norms(2)[f"grad_{name}"] * 2, length)


# ---------------------------------------------------------------------------- going back


def test_only_what_is_sound_may_be_gone_back_to() -> None:
    one = guard(action="rollback", every=10, discriminator=5, rollbacks=1)
    one.reach(10)
    assert (one.good, one.holds(10), one.holds(14), one.holds(100)) == (10, False, True, False)
    one.look(19, WINS)
    one.reach(20)
    assert (one.good, one.holds(20)) == (10, True)
    noted = one.go_back(23, "why")
    config = parse_config(
        {"name": "a", "train": {"steps": 100}, "guard": {"action": "rollback", "rate": 0.25}}
    )
    before: dict[str, Any] = {"since": None, "good": 10, "rollbacks": []}
    assert Guard(config, 10, before, noted).rate == 0.25
    assert Guard(config, 8, {**before, "good": 5}, noted).rate == 1  # it will go wrong again
    assert Guard(config, 10, before, [{**noted[0], "to": 30}]).rate == 1


def test_held_rows_are_not_committed_by_a_durable_checkpoint() -> None:
    spool = Spool()
    for step in range(1, 5):
        spool.metrics(step, {"loss": step / 10}, step)
        if step == 2:
            spool.snapshot(2)
            spool.commit(2)
    spool.done(1)
    document = json.loads(json.dumps(spool.snapshot(4, held=True)))
    restored = Spool.restore(document)
    assert [point.step for point in restored.pending()[0]] == [2]
    restored.metrics(5, {"loss": 0.5}, 5)
    restored.snapshot(5)
    restored.commit(5)
    assert [point.step for point in restored.pending()[0]] == [2, 3, 4, 5]
    document.pop("committed")
    assert [point.step for point in Spool.restore(document).pending()[0]] == [2, 3, 4]


def test_scores_and_checkpoints_of_later_steps_are_forgotten(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    scores, kept = Scores(store, "a"), Checkpoints(store.within("c"), keep=5)
    for step in (10, 20, 30):
        scores.add(step, {"val/x": step})
        kept.save(step, {}, {}, needed=[10])
        kept.wait()
    scores.forget_after(20)
    kept.forget_after(20)
    assert [row["step"] for row in Scores(store, "a").rows] == [10, 20]
    assert kept.steps() == [10, 20]
    few = Checkpoints(store.within("c"), keep=1)
    few.save(40, {}, {}, needed=[10])
    few.wait()
    assert few.steps() == [10, 40]


# ---------------------------------------------------------------------------- whole runs


def test_a_run_that_diverges_ends_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    end = run(tmp_path, "wild", "optim.schedule=halving", "optim.lr_g=1e30", "train.steps=4")
    assert end.status == "FAILED"
    assert end.reason
    assert end.reason.startswith(HOPELESS)
    assert end.reason.endswith("; no good checkpoint")
    assert not checkpoints(tmp_path, "wild").steps()


def test_pictures_that_are_all_alike_end_a_run(tmp_path: Path) -> None:
    options = ("train.steps=6", "guard.every=4", "checkpoint.every=3")
    end = run(tmp_path, "alike", *options, "guard.diversity=9")
    assert end.status == "FAILED"
    assert end.reason == (
        "the generator has collapsed at step 4: its pictures differ by less than guard.diversity=9"
        "; the last good checkpoint is of step 3"
    )
    assert run(tmp_path, "differ", *options, "guard.diversity=1e-6").status == "FINISHED"


def test_a_run_that_goes_back_again_and_again_fails(tmp_path: Path) -> None:
    end = run(
        tmp_path, "hopeless", "guard.action=rollback", "guard.every=2", "guard.diversity=9",
        "guard.rollbacks=2", "train.steps=6", "guard.discriminator=0",
    )  # fmt: skip
    assert end.status == "FAILED"
    assert [(one["at"], one["to"]) for one in end.rollbacks] == [(2, 0), (2, 0)]


SCRIPT = """
import json, os, signal, sys
from t2i_ray.train import Job, Worker, train
job, kills = json.loads(sys.argv[1]), json.loads(sys.argv[2])
def report(step, values):
    if [step, os.path.exists(job["noted"])] in kills:
        os.kill(os.getpid(), signal.SIGKILL)
train(Job(**job["job"]), Worker(), report)
"""


def test_killed_or_not_a_run_goes_back_alike(tmp_path: Path) -> None:
    """Killed before it goes wrong, between two points, and again right after it went back."""
    ends: dict[str, Any] = {}
    for name in ("unbroken", "killed"):
        config, job = make(tmp_path, name, *TOO_FAST, "guard.action=rollback")
        if name == "unbroken":
            ends[name] = train(job, Worker()).rollbacks
            assert ends[name]
            assert all(one["to"] % 4 == 0 and one["to"] > 0 for one in ends[name])
            back = ends[name][0]["to"]
        else:
            noted = str(tmp_path / f"store/runs/{name}/rollbacks.json")
            argument = json.dumps({"job": vars(job), "noted": noted})
            for kill in ([back // 3 * 3 + 3, False], [back, True]):
                done = subprocess.run(
                    [sys.executable, "-c", SCRIPT, argument, json.dumps([kill])],
                    env={**os.environ, "PYTHONWARNINGS": "default"}, check=False,
                )  # fmt: skip
                assert done.returncode == -signal.SIGKILL
            ends[name] = train(job, Worker()).rollbacks
    assert ends["killed"] == ends["unbroken"]
    one, other = newest(tmp_path, "unbroken"), newest(tmp_path, "killed")
    for part, tensors in one.tensors.items():
        for key, tensor in tensors.items():
            assert tensor.equal(other.tensors[part][key]), (part, key)
    curves = {name: curves_of(config, name) for name in ends}
    assert curves["killed"] == curves["unbroken"]
    assert [step for step, _ in curves["killed"]["d_loss"]] == list(range(1, 25))
    assert curves["killed"]["guard/rate"] == [(back + 1, 0.01)]


def test_what_may_be_gone_back_over_is_not_measured(tmp_path: Path) -> None:
    run(
        tmp_path, "held", "guard.action=rollback", "guard.every=4", "checkpoint.every=3",
        "train.steps=10", "checkpoint.keep=9",
    )  # fmt: skip
    folder, kept = LocalStore(tmp_path / "store/runs/held"), checkpoints(tmp_path, "held")
    assert kept.steps() == [3, 4, 6, 8, 9, 10]
    for stopped, measured in ((10, 10), (9, 8), (8, 8), (6, 4)):
        kept.forget_after(stopped)
        assert _checkpoint(folder, "held", None).step == measured
    kept.forget_after(3)
    with pytest.raises(UserError, match="no sound checkpoint yet"):
        _checkpoint(folder, "held", None)


def curves_of(config: Config, name: str) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient(f"sqlite:///{Path(config.storage.uri) / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    (found,) = client.search_runs(experiments, f"tags.`t2i_ray.run` = '{name}'")
    assert "back to step" in found.data.tags["t2i_ray.rollbacks"]
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(found.info.run_id, key))
        for key in found.data.metrics
        if not key.startswith("perf/")
    }


# ------------------------------------------------------------------------------- configs


def test_guards_that_only_stop_are_no_part_of_a_runs_identity() -> None:
    def hashed(**fields: Any) -> str:
        run = parse_config({"name": "a", "train": {"steps": 1}, "guard": fields})
        return identity_hash(run, "d")

    assert hashed() == hashed(discriminator=3, every=7)
    assert hashed(action="rollback") != hashed()
    assert hashed(action="rollback", every=7) != hashed(action="rollback")


def test_going_back_is_refused_where_others_rely_on_what_was_measured() -> None:
    back = {"guard": {"action": "rollback"}, "train": {"steps": 10}, "evaluation": {"every": 5}}
    with pytest.raises(UserError, match=r"evaluation.aside=0, or guard.action=stop"):
        parse_config({"name": "a", **back, "evaluation": {"every": 5, "aside": 1}})
    with pytest.raises(UserError, match=r"set guard\.action=stop"):
        parse_sweep({"name": "a", **back, "space": {"optim.lr_g": {"grid": [1e-4]}}})
