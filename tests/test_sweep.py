"""Sweeps: what is tried, that it goes on after the driver was killed, and what comes out."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from mlflow_server import MlflowServer
from ray_cluster import RayCluster
from runner import Runner, finish, until
from small_configs import TINY

from t2i_ray.config import Sweep, UserError, load_sweep, parse_sweep
from t2i_ray.runs import RunRecord, Scores, read_run, write_run
from t2i_ray.storage import LocalStore, Store
from t2i_ray.sweep import space as spaces
from t2i_ray.sweep.answer import collect, winners
from t2i_ray.sweep.driver import _winners
from t2i_ray.sweep.plan import Plan
from t2i_ray.sweep.population import Population, Takeover
from t2i_ray.sweep.space import Trial, settings
from t2i_ray.sweep.tasks import Task
from t2i_ray.sweep.tpe import Tpe

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
        ({"evaluation.samples": {"grid": [64]}}, {}, ["space.evaluation.samples"]),
        ({"train.steps": {"grid": [20, 60]}}, {}, ["space.train.steps"]),
        ({**RATES, "train.matching": {"grid": [1], "when": {"encoder": ["x"]}}}, {}, ["when.enc"]),
        ({}, {}, ["space", "at least one"]),
        (RATES, {"metric": "d_loss"}, ["search.metric=", "d_loss"]),
        (RATES, {"metric": "val/frechet_reader"}, ["search.mode=max", "min"]),
        (RATES, {"metric": "val/precision_reader"}, ["evaluation.measures", "val/frechet_reader"]),
        (RATES, {"metric": "val/nearest_reader"}, ["search.metric="]),
        (
            RATES,
            {"method": "tpe", "also": {"val/frechet_reader": "max"}},
            ["search.also.val/frechet_reader=max", "write min"],
        ),
        (RATES, {"scheduler": {"kind": "asha", "grace": 15}}, ["grace=15", "multiple"]),
        (RATES, {"scheduler": {"kind": "asha", "grace": 80}}, ["grace=80", "train.steps=60"]),
        (RATES, {"scheduler": {"kind": "hyperband"}}, ["hyperband", "asha"]),
        (RATES, {"seeds": []}, ["search.seeds"]),
        (RATES, {"also": {"perf/cpu_seconds": "min"}}, ["search.also", "grid", "tpe"]),
        (RATES, {"method": "tpe", "also": {"d_loss": "min"}}, ["search.also=d_loss"]),
        (
            RATES,
            {
                "method": "tpe",
                "also": {"perf/cpu_seconds": "min"},
                "scheduler": {"kind": "asha", "grace": 20},
            },
            ["search.scheduler.kind=asha", "fifo"],
        ),
        (
            RATES,
            {"method": "tpe", "also": {"perf/gpu_seconds": "min"}},
            ["search.also=perf/gpu_seconds", "cluster.gpu=false", "perf/cpu_seconds"],
        ),
        (RATES, {"scheduler": {"kind": "pbt", "every": 20}}, ["space.optim.lr_g", "pbt"]),
        (
            {"train.steps": {"uniform": [60, 90]}},
            {"method": "random", "scheduler": {"kind": "pbt", "every": 20}},
            ["space.train.steps"],
        ),
        (
            {"optim.lr_g": {"loguniform": [0.001, 0.01]}},
            {"scheduler": {"kind": "pbt", "every": 20}},
            ["search.method=grid", "random"],
        ),
        (
            {"optim.lr_g": {"loguniform": [0.001, 0.01]}},
            {"method": "random", "scheduler": {"kind": "pbt", "every": 30}},
            ["search.scheduler.every=30", "evaluation.every=20"],
        ),
        (RATES, {"confirm": {"seeds": [1, 2, 3]}}, ["search.confirm.seeds", "5"]),
        (RATES, {"confirm": {"seeds": [0, 1, 2, 3, 4]}}, ["search.confirm.seeds=[0]", "fresh"]),
        (RATES, {"confirm": {"by": "encoder"}}, ["search.confirm.by=encoder", "optim.lr_g"]),
        (RATES, {"trials_per_gpu": 2}, ["search.trials_per_gpu=2", "cluster.gpu"]),
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


def test_what_is_measured_while_training_can_rank() -> None:
    given = document(RATES, metric="val/kernel_reader", mode="min")
    given["evaluation"]["measures"] = ["kernel"]
    assert parse_sweep(given).search.metric == "val/kernel_reader"
    given["search"]["metric"] = "val/agreement/mean"
    with pytest.raises(
        UserError, match=r"search.mode=min: val/agreement/mean is better when large"
    ):
        parse_sweep(given)


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


def test_each_kind_of_encoder_has_its_own_model() -> None:
    def models(run: dict[str, Any], space: dict[str, Any]) -> list[tuple[Any, ...]]:
        found = parse_sweep({**document(space), "encoder": run})
        sections = [trial.config.encoder.model_dump() for trial in trials(found)]
        return [tuple(map(each.get, ("model", "revision", "init_from"))) for each in sections]

    bert, gpt2 = "google-bert/bert-base-uncased", "openai-community/gpt2"
    kinds = {"encoder.kind": {"grid": ["xlnet", "bert", "gpt2"]}}
    given = {"kind": "xlnet", "model": "/models/xlnet", "revision": "a"}
    others = [(bert, None, None), (gpt2, None, None)]
    assert models({"kind": "xlnet"}, kinds) == [("xlnet/xlnet-base-cased", None, None), *others]
    assert models(given, kinds) == [("/models/xlnet", "a", None), *others]
    both = {**kinds, "encoder.model": {"grid": ["/models/any"]}}
    assert {model for model, *_ in models(given, both)} == {"/models/any"}
    places = {"encoder.init_from": {"grid": [None, "/pretrained"]}}
    assert models(given, places) == [("/models/xlnet", "a", None), (None, None, "/pretrained")]


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


def test_families_are_compared_like_any_field() -> None:
    space = {
        "model.family": {"grid": ["gan_cls", "cvae"]},
        "model.sigma": {"grid": [0.1, 0.3], "when": {"model.family": ["cvae"]}},
    }
    found = trials(sweep(space))
    models = [(trial.config.model.family, trial.config.model.sigma) for trial in found]
    assert models == [("gan_cls", 0.3), ("cvae", 0.1), ("cvae", 0.3)]
    assert [trial.setting.label for trial in found] == [
        "family=gan_cls",
        "family=cvae sigma=0.1",
        "family=cvae sigma=0.3",
    ]


def test_a_field_may_stand_before_what_it_depends_on() -> None:
    encoders = {"a": {"kind": "bigru", "dim": 8}, "b": {"kind": "bigru", "dim": 32}}
    space = {
        "optim.beta1": {"grid": [0.1, 0.2], "when": {"encoder.hidden_dim": ["4"]}},
        "encoder.hidden_dim": {"grid": [4, 8], "when": {"encoder": ["b"]}},
        "encoder": {"grid": encoders},
    }
    found = [trial.config for trial in trials(sweep(space))]
    shape = {
        (c.encoder.dim, c.encoder.hidden_dim, c.optim.beta1)
        for c in found
        if c.encoder.kind == "bigru"
    }
    assert shape == {(8, 256, 0.5), (32, 4, 0.1), (32, 4, 0.2), (32, 8, 0.5)}
    assert len(found) == 4


# ------------------------------------------------------------------- plans, without a cluster


def task(trial: Trial, **more: Any) -> Task:
    return Task(trial, {"tags": {}, **more})


def play(store: Store, one: Task, score: float, step: int = 60, seconds: float = 0.0) -> None:
    """As if the task had been run: what it would leave on storage."""
    name = one.name
    Scores(store, name).add(step, {"val/agreement/mean": score, "perf/cpu_seconds": seconds})
    record = read_run(store, name) or RunRecord(
        name=name, id="", hash="", identity={}, data="", steps=60, attempts=[]
    )
    record.status = "FINISHED" if step == 60 else "RUNNING"
    write_run(store, record)


def drain(plan: Plan) -> list[Task]:
    found = []
    while one := plan.next():
        found.append(one)
    return found


def test_tpe_finds_the_better_part_and_asks_the_same_again(tmp_path: Path) -> None:
    def score(one: Task) -> float:
        return -abs(math.log10(one.trial.config.optim.lr_g) + 3)  # best at 1e-3

    store = LocalStore(tmp_path)
    space = {"optim.lr_g": {"loguniform": [1e-5, 1e-1]}}
    described = sweep(space, method="tpe", trials=24)

    def search(many: int) -> list[float]:
        plan = Tpe(store, described, task)
        seen: list[float] = []
        while not plan.done and len(seen) < many:
            one = plan.next()
            assert one is not None
            play(store, one, score(one))
            seen.append(one.trial.config.optim.lr_g)
            plan.ended(one)
        return seen

    interrupted = search(13)
    rates = search(24)
    assert rates[:13] == interrupted
    assert len(rates) == 24
    off = [abs(math.log10(rate) + 3) for rate in rates]
    assert sum(off[12:]) / 12 < 0.7  # 1.0 is expected of rates drawn at random


def test_tpe_waits_for_all_seeds_and_knows_of_several_objectives(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    space = {
        "encoder": {"choice": {"a": TINY["encoder"], "b": {**TINY["encoder"], "dim": 16}}},
        "optim.beta1": {"uniform": [0.3, 0.9], "when": {"encoder": ["b"]}},
        "optim.lr_g": {"loguniform": [1e-4, 1e-2]},
    }
    described = sweep(space, method="tpe", trials=6, seeds=[0, 1], also={"perf/cpu_seconds": "min"})
    plan = Tpe(store, described, task)
    first, second = plan.next(), plan.next()
    assert first
    assert second
    assert first.trial.setting == second.trial.setting
    assert {first.trial.config.seed, second.trial.config.seed} == {0, 1}
    for number, one in enumerate((first, second)):
        play(store, one, 0.5 + number, seconds=10.0 * number)
        assert plan._study.best_trials == []  # until both have ended
        plan.ended(one)
    assert plan._study.best_trials[0].values == [1.0, 5.0]
    assert plan.total == 12
    for one in drain(plan):
        of_b = one.trial.setting.labels["encoder"] == "b"
        assert ("optim.beta1" in one.trial.setting.values) == of_b


def test_a_lost_trial_is_no_result(tmp_path: Path) -> None:
    """Its process died after it was measured once: Optuna must not take that for its score."""
    store = LocalStore(tmp_path)
    space = {"optim.lr_g": {"loguniform": [1e-4, 1e-2]}}
    plan = Tpe(store, sweep(space, method="tpe", also={"perf/cpu_seconds": "min"}), task)
    lost, pruned = plan.next(), plan.next()
    assert lost
    assert pruned
    play(store, lost, 0.9, step=20)
    plan.ended(lost)
    assert [trial.state.name for trial in plan._study.trials] == ["FAIL", "RUNNING"]


def test_the_same_run_twice_is_one_seed(tmp_path: Path) -> None:
    store, described = LocalStore(tmp_path), sweep(RATES)
    one = trials(described)[0]
    again = Trial(one.setting, one.config.model_copy(update={"name": "sweep-again"}))
    for trial in (one, again):
        play(store, task(trial), 0.5)
    (row,) = collect(store, described, [one, again], {}).parts[0].rows
    assert row.scores == [0.5]
    assert row.error is None


def test_whom_to_confirm_is_chosen_once(tmp_path: Path) -> None:
    store, described = LocalStore(tmp_path), sweep(RATES, confirm={})
    first, second = trials(described)
    play(store, task(first), 0.5)
    assert _winners(store, described, [first, second]) == [first.setting]
    play(store, task(second), 0.9)  # it had failed, and was tried again
    assert _winners(store, described, [first, second]) == [first.setting]
    assert winners(store, described, [first, second]) == [second.setting]


def test_the_best_of_each_encoder_is_confirmed(tmp_path: Path) -> None:
    encoders = {"a": TINY["encoder"], "b": {**TINY["encoder"], "dim": 16}}
    space = {"encoder": {"grid": encoders}, **RATES}
    store, described = LocalStore(tmp_path), sweep(space, confirm={"by": "encoder"})
    tried = trials(described)
    for one, score in zip(tried, (0.1, 0.2, 0.4, 0.3), strict=True):
        play(store, task(one), score)
    chosen = winners(store, described, tried)
    assert {setting.labels["encoder"] for setting in chosen} == {"a", "b"}
    assert {setting.label for setting in chosen} == {tried[i].setting.label for i in (1, 2)}


def test_another_count_or_step_of_the_same_measure_is_no_result(tmp_path: Path) -> None:
    """Somebody measured a half-trained trial by hand, and then the sweep went on."""
    store, described = LocalStore(tmp_path), sweep(RATES, confirm={})
    (one, *_) = spaces.trials(described, settings(described), [101], stage="confirm")
    play(store, task(one), 0.5)
    place = f"runs/{one.name}/evaluation/test.json"
    measured = {"step": 20, "count": 1000, "metrics": {"test/agreement/mean": 0.1}}
    store.write_json(place, measured)
    assert collect(store, described, [one], {}).parts[-1].rows[0].scores == []
    store.write_json(place, {**measured, "step": 60})
    assert collect(store, described, [one], {}).parts[-1].rows[0].scores == [0.1]


def members(size: int = 4) -> Sweep:
    space = {"optim.lr_g": {"loguniform": [1e-4, 1e-2]}}
    return sweep(space, method="random", trials=size, scheduler={"kind": "pbt", "every": 20})


def generations(store: Store, sweep: Sweep, order: int = 1, stop_at: int = 60) -> list[Takeover]:
    """Play a population: the larger its learning rate, the better a member."""
    plan = Population(store, sweep, trials(sweep), task)
    rates = {t.name: t.trial.config.optim.lr_g for t in plan.tasks}
    while not plan.done:
        running = drain(plan)
        assert plan.next() is None
        for one in running[::order]:
            until = one.document["until"]
            if until > stop_at:
                return plan.takeovers
            folder = f"runs/{one.name}/checkpoints/step_{until:08d}"
            store.write(f"{folder}/weights", f"{one.name} at {until}".encode())
            store.write(f"{folder}/manifest.json", b"{}")
            play(store, one, rates[one.name], until)
            plan.ended(one)
    return plan.takeovers


def test_the_weak_take_over_the_strong_whatever_the_order(tmp_path: Path) -> None:
    there, back, broken = (LocalStore(tmp_path / name) for name in ("there", "back", "broken"))
    found = generations(there, members())
    assert generations(back, members(), order=-1) == found
    generations(broken, members(), stop_at=20)  # the driver was killed in the second generation
    assert generations(broken, members()) == found

    assert [takeover.step for takeover in found] == [20, 40]
    rates = {trial.name: trial.config.optim.lr_g for trial in trials(members())}
    worst, best = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    for takeover in found:
        assert (takeover.member, takeover.donor) == (worst, best)
        rate = takeover.after["optim.lr_g"]
        assert 1e-4 <= rate <= 1e-2
        assert rate != takeover.before["optim.lr_g"]
    assert found[1].before == found[0].after
    # Of what was inherited, only the last is kept.
    (inherited,) = [key for key in there.list(f"runs/{worst}/inherited") if "weights" in key]
    assert inherited.endswith("step_00000040/weights")
    assert there.read(inherited) == f"{best} at 40".encode()


def test_a_member_that_failed_is_left_out(tmp_path: Path) -> None:
    store, described = LocalStore(tmp_path), members(2)
    plan = Population(store, described, trials(described), task)
    first, second = drain(plan)
    play(store, first, 0.5, 20)
    record = read_run(store, first.name)
    assert record
    write_run(store, record.model_copy(update={"name": second.name, "status": "FAILED"}))
    plan.ended(second)
    plan.ended(first)
    assert plan.takeovers == []
    assert not plan.done


def test_who_is_at_the_last_step_is_not_stopped_there(tmp_path: Path) -> None:
    """Rungs may lie on it. Whom a scheduler would pause goes on; of a stop, storage is told."""
    from t2i_ray.sweep.tuning import _Judge

    class Scheduler:
        known: ClassVar[list[dict[str, Any]]] = []

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return str(result["decision"])

        def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self.known.append(result)

    class Judged(_Judge, Scheduler):
        pass

    store = LocalStore(tmp_path)
    judge, trial = Judged(store, 60), SimpleNamespace(config={"trial": {"config": {"name": "x"}}})
    assert judge.on_trial_result(None, trial, {"decision": "PAUSE", "step": 40}) == "CONTINUE"
    assert judge.on_trial_result(None, trial, {"decision": "STOP", "step": 60}) == "CONTINUE"
    assert not store.exists("runs/x/pruned")
    assert judge.on_trial_result(None, trial, {"decision": "STOP", "step": 40}) == "STOP"
    assert store.exists("runs/x/pruned")
    judge.on_trial_complete(None, trial, {"done": True})  # it failed before it was measured
    judge.on_trial_complete(None, trial, {"step": 60})
    assert judge.known == [{"step": 60}]


# ------------------------------------------------------------------------------ on the cluster


def test_a_sweep_survives_its_driver(runner: Runner) -> None:
    """SIGKILL, then SIGTERM: what had finished is not run again; MLflow has each trial once."""
    rates = [0.002, 0.0001, 0.001]
    text = document({"optim.lr_g": {"grid": rates}}, concurrent=1)
    text["train"]["steps"] = 160
    path = runner.config("killed-sweep", text)
    process = runner.start("tune", path)
    record = runner.folder / "store/runs/killed-sweep-000-seed-0/run.json"
    until(lambda: record.exists() and json.loads(record.read_text())["published"])
    refusal = runner.run("tune", path, code=2).strip().splitlines()[-1]
    assert refusal.startswith(f"error: name='killed-sweep': process {process.pid} on ")
    process.kill()
    process.communicate()

    second = runner.folder / "store/runs/killed-sweep-001-seed-0"

    def progress() -> tuple[int, int]:
        """Process and step of the second trial, which may have begun before the driver's end."""
        file = second / "progress.json"
        stands = json.loads(file.read_text()) if file.exists() else {}
        return stands.get("pid", 0), stands.get("step", 0)

    before, _ = progress()
    process = runner.start("tune", path)
    until(lambda: progress()[0] != before and progress()[1] > 0)
    process.terminate()
    finish(process, 128 + signal.SIGTERM)
    stopped = runner.record(second.name)
    assert (stopped.status, stopped.reason) == ("KILLED", "the sweep was stopped")
    assert stopped.step > 0
    assert runner.mlflow_run(second.name).info.status == "KILLED"

    store = str(runner.folder / "store")
    override = f"tracking.uri=sqlite:///{store}/mlflow.db"  # where it is anyway
    process = runner.start("tune", "--resume", "killed-sweep", override, "--storage", store)
    third = runner.folder / "store/runs/killed-sweep-002-seed-0"
    until(lambda: (third / "scores.json").exists())
    os.kill(json.loads((third / "progress.json").read_text())["pid"], signal.SIGKILL)
    output = finish(process)
    names = [f"killed-sweep-{i:03d}-seed-0" for i in range(3)]
    records = [runner.record(name) for name in names]
    assert [r.status for r in records] == ["FINISHED"] * 3, output
    assert len(records[0].attempts) == 1
    assert len(records[2].attempts) == 2  # its process was killed
    client = runner.mlflow()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(ids, "attributes.run_name = 'killed-sweep'")
    children = client.search_runs(ids, f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert sorted(child.info.run_name for child in children) == sorted(names)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["t2i_ray.trials.finished"] == "3"
    assert parent.data.params["space.optim.lr_g"]
    answer = json.loads((runner.folder / "store/sweeps/killed-sweep/answer.json").read_text())
    for row in answer["parts"][0]["rows"]:
        last = [
            dict(runner.curves(name)["val/agreement/mean"])[160]
            for name, trial in zip(names, trials(parse_sweep(text)), strict=True)
            if trial.setting.label == row["setting"]
        ]
        assert row["scores"] == last == [row["mean"]]
    assert parent.data.tags["t2i_ray.best"] == answer["parts"][0]["rows"][0]["setting"]

    # A trial is the run that it would be by itself.
    overrides = [f"optim.lr_g={rates[2]}", "train.steps=160", "tracking.enabled=false"]
    runner.train_without_ray("alone-again", names[2], *overrides)
    alone, trial = runner.checkpoint("alone-again"), runner.checkpoint(names[2])
    for name, tensor in alone.tensors["generator"].items():
        assert tensor.equal(trial.tensors["generator"][name]), name

    error = runner.run("tune", "--resume", "nobody", "--storage", store, code=2)
    assert error.startswith("error: --resume nobody")
    assert "killed-sweep" in error
    assert runner.run("tune", code=2).startswith("error: tune: give")

    other = runner.config("killed-sweep", document({"optim.lr_g": {"grid": [0.5]}}))
    error = runner.run("tune", other, code=2).strip().splitlines()[-1]
    assert error.startswith("error: name='killed-sweep'")


def test_mlflow_may_be_away(runner: Runner, tmp_path: Path) -> None:
    """When it is back, the same command gives it all: curves, later measures, and the links."""
    server = MlflowServer(tmp_path)  # not started yet
    text = document({"optim.lr_g": {"grid": [0.001]}})
    text["train"]["steps"] = 20
    text["tracking"] = {"uri": server.uri}
    path = runner.config("in-the-dark", text)
    output = runner.run("tune", path)
    assert "MLflow is behind; the same command again" in output
    name, store = "in-the-dark-000-seed-0", ["--storage", str(runner.folder / "store")]
    record = runner.record(name)
    assert (record.status, record.published) == ("FINISHED", False)
    output = runner.run("evaluate", name, "--count", "64", *store)
    assert f"t2i-ray sync {name}" in output
    try:
        server.start()
        runner.run("tune", path)
        assert runner.record(name).published
        curves = runner.curves(name, server.uri)
        assert [step for step, _ in curves["d_loss"]] == list(range(1, 21))
        trial = runner.mlflow_run(name, server.uri)
        client = runner.mlflow(server.uri)
        parent = client.get_run(trial.data.tags["mlflow.parentRunId"])
        paths = [file.path for file in client.list_artifacts(parent.info.run_id, "compare")]
    finally:
        server.stop()
    assert trial.info.status == parent.info.status == "FINISHED"
    measured = runner.folder / f"store/runs/{name}/evaluation/test.json"
    expected = json.loads(measured.read_text())["metrics"]["test/agreement/mean"]
    assert trial.data.metrics["test/agreement/mean"] == expected
    assert parent.data.tags["t2i_ray.trials.finished"] == "1"
    assert "search.metric" in parent.data.params
    assert "compare/report.html" in paths


def test_what_is_stopped_early_and_what_fails(runner: Runner) -> None:
    """One setting learns nothing and is pruned, one diverges; the sweep goes on, and says so."""
    text = document(
        {"optim.lr_g": {"grid": [0.02, 0.0000001, 1e30]}},
        metric="val/frechet_reader",
        mode="min",
        scheduler={"kind": "asha", "grace": 20, "reduction": 2},
        concurrent=1,
    )
    output = runner.run("tune", runner.config("mixed", text))
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


def test_a_population_trades_weights(runner: Runner) -> None:
    """With nothing changed on the way, who takes over at step 20 ends where the donor ends."""
    text = document(
        {"optim.lr_g": {"loguniform": [0.0001, 0.02]}},
        method="random",
        trials=2,
        metric="val/frechet_reader",
        mode="min",
        scheduler={"kind": "pbt", "every": 40, "share": 0.5, "factors": [1, 1], "resample": 0},
    )
    output = runner.run("tune", runner.config("population", text))
    (line,) = [line for line in output.splitlines() if "takes over" in line]
    weak, strong = line.split(": ")[1].split(" takes over ")
    one, other = runner.checkpoint(weak), runner.checkpoint(strong)
    for part in ("generator", "discriminator", "optimizer_g"):
        for name, tensor in one.tensors[part].items():
            assert tensor.equal(other.tensors[part][name]), (part, name)
    assert runner.record(weak).status == "FINISHED"
    tags = runner.mlflow_run(weak).data.tags
    assert f"step 40: {weak} takes over {strong}: optim.lr_g" in tags["t2i_ray.lineage"]
    rates = runner.curves(weak)["pbt/optim.lr_g"]
    assert [step for step, _ in rates] == [1, 41]
    assert rates[1][1] == runner.curves(strong)["pbt/optim.lr_g"][1][1]
    assert [step for step, _ in runner.curves(weak)["val/frechet_reader"]] == [20, 40, 60]


def test_search_then_confirm_with_fresh_seeds(runner: Runner) -> None:
    """TPE searches; the best setting is trained again and measured on test."""
    small = {**TINY["encoder"], "dim": 16}
    text = document(
        {
            "encoder": {"choice": {"large": TINY["encoder"], "small": small}},
            "optim.lr_g": {"loguniform": [0.0005, 0.02]},
        },
        method="tpe",
        trials=3,
        confirm={"samples": 64},
    )
    text["train"]["steps"] = 20
    path = runner.config("confirmed", text)
    runner.run("tune", path)
    answer = json.loads((runner.folder / "store/sweeps/confirmed/answer.json").read_text())
    search, confirm = answer["parts"]
    assert sum(row["finished"] for row in search["rows"]) == 3
    assert confirm["metric"] == "test/agreement/mean"
    (row,) = confirm["rows"]
    assert row["setting"] == search["rows"][0]["setting"]  # the best comes first
    assert row["finished"] == len(row["scores"]) == 5
    assert row["mean"] == pytest.approx(sum(row["scores"]) / 5)
    assert row["error"] is not None
    for seed in (101, 105):
        run = runner.mlflow_run(f"confirmed-confirm-000-seed-{seed}")
        assert run.data.params["seed"] == str(seed)
        assert run.data.tags["t2i_ray.stage"] == "confirm"
        assert run.data.metrics["test/agreement/mean"] in row["scores"]


def test_trials_of_two_workers(runner: Runner) -> None:
    """Each is a Ray Train run of its own; one is stopped early, and the other as by itself."""
    text = document(
        {"optim.lr_g": {"grid": [0.02, 0.0000001]}},
        metric="val/frechet_reader",
        mode="min",
        scheduler={"kind": "asha", "grace": 20, "reduction": 2},
        concurrent=1,
    )
    text["cluster"] = {"workers": 2}
    runner.run("tune", runner.config("pairs", text))
    first, second = (runner.record(f"pairs-{number:03d}-seed-0") for number in (0, 1))
    assert (first.status, first.step) == ("FINISHED", 60)
    assert (second.status, second.reason) == ("KILLED", "pruned at step 20")
    curve = runner.curves(first.name)["val/frechet_reader"]
    assert [step for step, _ in curve] == [20, 40, 60]

    text["cluster"] = {"workers": 5}
    text["train"]["micro_batches"] = 8
    error = runner.run("tune", runner.config("crowd", text), code=2).strip().splitlines()[-1]
    assert "cluster.workers=5" in error
    assert not (runner.folder / "store/sweeps/crowd").exists()  # the name is still free


def test_a_cluster_grows_for_a_sweep(tmp_path: Path) -> None:
    """It begins with a head that runs nothing; Ray's autoscaler starts nodes for what waits."""
    cluster = RayCluster(tmp_path / "ray", cpus=0, grows=2)
    (tmp_path / "runs").mkdir()
    runner = Runner(cluster, tmp_path / "runs")
    text = document({"optim.lr_g": {"grid": [0.002, 0.001]}})
    text["train"]["steps"] = text["evaluation"]["every"] = 800
    text["storage"] = {"shared": True}
    try:
        cluster.start()
        output = runner.run("tune", runner.config("growing", text))
    finally:
        cluster.stop()
    assert "or it must grow" in output
    assert "1 at a time, and more as the cluster grows" in output
    goes = [runner.record(f"growing-{number:03d}-seed-0").attempts for number in range(2)]
    (_, ended), (started, _) = sorted((go.started, go.ended or "") for (go,) in goes)
    assert started < ended


def test_a_measure_that_nobody_takes_is_refused(runner: Runner) -> None:
    path = runner.config("unmeasured", document(RATES, metric="val/agreement/scent"))
    error = runner.run("tune", path, code=2).strip().splitlines()[-1]
    assert "search.metric=val/agreement/scent" in error
    assert "val/agreement/petal_colour" in error
    assert not list((runner.folder / "store").glob("*/unmeasured*"))  # the name is still free
