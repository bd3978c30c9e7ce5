"""Sweeps: what is tried, that it goes on after the driver was killed, and what comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from runner import TINY, Runner, until

from t2i_ray.config import Sweep, UserError, load_sweep, parse_sweep
from t2i_ray.sweep import space as spaces
from t2i_ray.sweep.space import Trial, settings

SHIPPED = sorted((Path(__file__).parent.parent / "tune_configs").glob("*.yaml"))
RATES = {"optim.lr_g": {"grid": [0.002, 0.0001]}}


def document(space: dict[str, Any], **search: Any) -> dict[str, Any]:
    tiny = {**TINY, "train": {**TINY["train"], "steps": 60, "sample_every": 0}}
    evaluation = {"every": 20, "samples": 64}
    return {"name": "sweep", **tiny, "evaluation": evaluation, "space": space, "search": search}


def sweep(space: dict[str, Any], **search: Any) -> Sweep:
    return parse_sweep(document(space, **search))


def trials(found: Sweep) -> list[Trial]:
    return spaces.trials(found, settings(found), found.search.seeds)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_load(path: Path) -> None:
    assert trials(load_sweep(path))


@pytest.mark.parametrize(
    ("space", "search", "says"),
    [
        ({"optim.lr": {"grid": [1]}}, {}, ["space.optim.lr", "optim.lr", "unknown key"]),
        ({"optim.lr_g": {"grid": [1], "choice": [2]}}, {}, ["grid", "exactly one"]),
        ({"optim.lr_g": {"grid": []}}, {}, ["empty", "at least one"]),
        ({"optim.lr_g": {"loguniform": [0, 1]}}, {}, ["loguniform=[0.0, 1.0]"]),
        ({"optim.lr_g": {"grid": [-1]}}, {}, ["space.optim.lr_g", "-1"]),
        ({"optim.lr_g": {"gird": [1]}}, {}, ["gird", "unknown key"]),
        ({"encoder": {"grid": {"a": {"kind": "word2vec"}}}}, {}, ["space.encoder", "word2vec"]),
        ({"cluster.threads": {"grid": [1]}}, {}, ["space.cluster.threads"]),
        ({"seed": {"grid": [1, 2]}}, {}, ["space.seed", "search.seeds"]),
        ({**RATES, "train.matching": {"grid": [1], "when": {"encoder": ["x"]}}}, {}, ["when.enc"]),
        ({}, {}, ["space", "at least one"]),
        (RATES, {"metric": "d_loss"}, ["search.metric=", "d_loss"]),
        (RATES, {"metric": "val/frechet_reader"}, ["search.mode=max", "min"]),
        (RATES, {"scheduler": {"kind": "asha", "grace": 15}}, ["grace=15", "multiple"]),
        (RATES, {"scheduler": {"kind": "asha", "grace": 80}}, ["grace=80", "train.steps=60"]),
        (RATES, {"scheduler": {"kind": "hyperband"}}, ["hyperband", "asha"]),
        (RATES, {"seeds": []}, ["search.seeds"]),
    ],
)
def test_bad_sweeps_are_one_line(
    space: dict[str, Any], search: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        sweep(space, **search)
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_a_grid_has_every_combination_and_each_seed() -> None:
    found = trials(sweep({**RATES, "train.matching": {"grid": [0, 1]}}, seeds=[3, 5]))
    seen = {(t.config.optim.lr_g, t.config.train.matching, t.config.seed) for t in found}
    assert seen == {(g, m, s) for g in (0.002, 0.0001) for m in (0.0, 1.0) for s in (3, 5)}
    assert len({t.config.name for t in found}) == len(found) == 8
    assert {t.config.checkpoint.every for t in found} == {20}


def test_what_is_drawn_stays_when_something_is_added() -> None:
    rates = {"optim.lr_g": {"loguniform": [1e-4, 1e-2]}}
    few = settings(sweep(rates, method="random", trials=60))
    more = settings(
        sweep({**rates, "optim.beta1": {"uniform": [0, 0.9]}}, method="random", trials=70)
    )
    drawn = [point.values["optim.lr_g"] for point in few]
    assert drawn == [point.values["optim.lr_g"] for point in more][:60]
    assert all(1e-4 <= rate <= 1e-2 for rate in drawn)
    middle = sorted(math.log10(rate) for rate in drawn)[30]
    assert -3.4 < middle < -2.6  # uniform in the logarithm


def test_a_conditional_dimension_varies_only_where_it_applies() -> None:
    space = {
        "encoder": {
            "grid": {
                "small": {"kind": "bigru", "dim": 8},
                "large": {"kind": "bigru", "dim": 32},
            }
        },
        "encoder.hidden_dim": {"grid": [4, 8], "when": {"encoder": ["large"]}},
    }
    found = [trial.config.encoder for trial in trials(sweep(space))]
    shape = sorted((e.dim, e.hidden_dim) for e in found if e.kind == "bigru")
    assert shape == [(8, 256), (32, 4), (32, 8)]


# ------------------------------------------------------------------------------ on the cluster


def write(runner: Runner, name: str, text: dict[str, Any]) -> str:
    path = runner.folder / f"{name}.yaml"
    storage = {"uri": str(runner.folder / "store")}
    path.write_text(yaml.safe_dump({**text, "name": name, "storage": storage}))
    return str(path)


def test_a_sweep_survives_its_driver(runner: Runner) -> None:
    """SIGKILL in the middle: what had finished is not run again, and MLflow has each trial once."""
    text = document(RATES, seeds=[0, 1], concurrent=1)
    path = write(runner, "killed-sweep", text)
    process = runner.start("tune", path)
    record = runner.folder / "store/runs/killed-sweep-000-seed-0/run.json"
    until(lambda: record.exists() and json.loads(record.read_text())["published"])
    process.kill()
    process.communicate()

    output = runner.run("tune", path)
    names = [f"killed-sweep-{i:03d}-seed-{seed}" for seed in (0, 1) for i in (0, 1)]
    records = [runner.record(name) for name in names]
    assert [r.status for r in records] == ["FINISHED"] * 4, output
    assert len(records[0].attempts) == 1
    client = runner.mlflow()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(ids, "attributes.run_name = 'killed-sweep'")
    children = client.search_runs(ids, f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert sorted(child.info.run_name for child in children) == sorted(names)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["t2i_ray.trials.finished"] == "4"
    assert parent.data.params["space.optim.lr_g"]
    answer = json.loads((runner.folder / "store/sweeps/killed-sweep/answer.json").read_text())
    for row in answer["parts"][0]["rows"]:
        last = [
            dict(runner.curves(name)["val/agreement/mean"])[60]
            for name, trial in zip(names, trials(parse_sweep(text)), strict=True)
            if trial.setting.label == row["setting"]
        ]
        assert row["scores"] == last
        assert row["mean"] == pytest.approx(sum(last) / 2)
    assert parent.data.tags["t2i_ray.best"] == answer["parts"][0]["rows"][0]["setting"]

    # A trial is the run that it would be by itself.
    runner.train_without_ray(
        "alone-again", names[3], "seed=1", "optim.lr_g=0.0001", "tracking.enabled=false"
    )
    alone, trial = runner.checkpoint("alone-again"), runner.checkpoint(names[3])
    for name, tensor in alone.tensors["generator"].items():
        assert tensor.equal(trial.tensors["generator"][name]), name

    other = write(runner, "killed-sweep", document({"optim.lr_g": {"grid": [0.5]}}))
    error = runner.run("tune", other, code=2).strip().splitlines()[-1]
    assert error.startswith("error: name='killed-sweep'")


def test_what_is_stopped_early_and_what_fails(runner: Runner) -> None:
    """One setting learns nothing and is pruned, one diverges; the sweep goes on, and says so."""
    text = document(
        {"optim.lr_g": {"grid": [0.02, 0.0000001, 1e30]}},
        metric="val/frechet_reader",
        mode="min",
        scheduler={"kind": "asha", "grace": 20, "reduction": 2},
        concurrent=1,
    )
    output = runner.run("tune", write(runner, "mixed", text))
    statuses = [runner.record(f"mixed-{i:03d}-seed-0") for i in range(3)]
    assert statuses[0].status == "FINISHED"
    assert statuses[1].status == "KILLED"
    assert statuses[1].reason == "pruned at step 20"
    assert statuses[2].status == "FAILED", output
    assert len(statuses[2].attempts) == 1
    assert "a loss is not finite" in output
    for record in statuses:
        run = runner.mlflow_run(record.name)
        assert run.info.status == record.status
        assert run.data.tags["t2i_ray.sweep"] == "mixed"


def test_a_measure_that_nobody_takes_is_refused(runner: Runner) -> None:
    path = write(runner, "unmeasured", document(RATES, metric="val/agreement/scent"))
    error = runner.run("tune", path, code=2).strip().splitlines()[-1]
    assert "search.metric=val/agreement/scent" in error
    assert "val/agreement/petal_colour" in error
    assert not list((runner.folder / "store/runs").glob("unmeasured*"))
