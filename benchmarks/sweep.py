"""What a trial costs beside its training: the same short trials by Ray's own pattern and by ours.

    python benchmarks/sweep.py --trials 8 --steps 60

Ray's own pattern (its guide "Hyperparameter Tuning with Ray Tune"): a driver function for each
trial, with an inner TorchTrainer of one worker and a TuneReportCallback. Ours: ``sweep.tune``. Both
train ``tune_configs/smoke.yaml`` at several learning rates by the same loop, with the same
evaluations and checkpoints, and must end with equal weights.

Each has a process and a fresh Ray of its own, both started alike, with the variables that our own
cluster gets, and with a dashboard: Ray Train's helpers ask it. A driver function asks for no CPU,
else fewer trials would fit at a time than of ours. What Train and Tune do by default stays so: e.g.
reports wait for the controller's poll, every 2 s. MLflow is off in both; data and reader are made
before.

"Call to return" is ``Tuner.fit()`` or all of ``tune()`` on a Ray that is up. Gaps are noted inside
the trials: from the return of one's loop, its last checkpoint durable, to the end of the first step
of the next one in its place, or to its first result, which takes ``--every`` steps and an
evaluation more. The shorter the trials, the larger the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from t2i_ray.checkpoint import Checkpoints
from t2i_ray.cli.commit import git_commit
from t2i_ray.config import Sweep, load_sweep
from t2i_ray.data import open_prepared, prepare
from t2i_ray.evaluate import ensure_reader
from t2i_ray.runs import run_store
from t2i_ray.storage import open_store
from t2i_ray.train import Job, Report, Worker

SMOKE = Path(__file__).parent.parent / "tune_configs/smoke.yaml"
LOW, HIGH = 1e-4, 4e-3  # learning rates


def configured(options: argparse.Namespace, name: str) -> Sweep:
    growth = (HIGH / LOW) ** (1 / max(1, options.trials - 1))
    rates = [float(f"{LOW * growth**i:.4g}") for i in range(options.trials)]
    overrides = {
        "name": name,
        "storage.uri": options.storage,
        "tracking.enabled": False,
        "train.steps": options.steps,
        "evaluation.every": options.every,
        "space": {"optim.lr_g": {"grid": rates}},
        "search": {"concurrent": options.concurrent},
    }
    return load_sweep(SMOKE, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])


def timed(train: Callable[..., Any]) -> Callable[..., Any]:
    """The training loop, which notes when it began, its first step and result, and its end."""

    def timed_train(job: Job, worker: Worker, report: Report, **more: Any) -> Any:
        from t2i_ray.gan_cls import GanCls

        moments = {"begun": time.time()}
        plain_step = GanCls.step

        def step(*arguments: Any) -> Any:
            values = plain_step(*arguments)
            moments.setdefault("step", time.time())
            return values

        def noted_report(step: int, values: dict[str, float]) -> None:
            moments.setdefault("result", time.time())
            report(step, values)

        with patch.object(GanCls, "step", step):
            outcome = train(job, worker, noted_report, **more)
        moments["ended"] = time.time()
        place = Path(job.config["storage"]["uri"]) / f"moments/{job.config['name']}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(moments))
        return outcome

    return timed_train


def by_ours(sweep: Sweep, _data: str) -> None:
    from t2i_ray.sweep import tune, tuning
    from t2i_ray.sweep.trial import Trainable

    class Timed(Trainable):
        def _trainable_func(self, config: dict[str, Any]) -> Any:
            from t2i_ray.train import train

            with patch("t2i_ray.sweep.trial.train", timed(train)):
                return super()._trainable_func(config)

    with patch.object(tuning, "Trainable", Timed):
        if tune(sweep):
            raise SystemExit("the sweep failed")


def by_ray(sweep: Sweep, data: str) -> None:
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from t2i_ray.sweep.space import settings, trials
    from t2i_ray.tracking import describe

    folder, cpus = f"{sweep.run.storage.uri}/results", {"CPU": sweep.run.cluster.threads}

    def train_loop(job: dict[str, Any]) -> None:
        from t2i_ray.train import train as loop

        def report(step: int, scores: dict[str, float]) -> None:
            train.report({"step": step, **scores})

        timed(loop)(Job(**job), Worker(), report)

    def driver(config: dict[str, Any]) -> None:
        run_config = train.RunConfig(
            name=f"train-{tune.get_context().get_trial_id()}",
            storage_path=folder,
            callbacks=[TuneReportCallback()],
        )
        scaling = train.ScalingConfig(num_workers=1, resources_per_worker=cpus)
        TorchTrainer(
            train_loop,
            train_loop_config=config["job"],
            scaling_config=scaling,
            run_config=run_config,
        ).fit()

    jobs = []
    search = sweep.search
    for config in [trial.config for trial in trials(sweep, settings(sweep), search.seeds)]:
        about = describe(config, key=config.name).to_json()
        document = config.model_dump(mode="json")
        job = {"config": document, "data": data, "encoder": None, "about": about, "quiet": True}
        jobs.append(job)
    tuner = tune.Tuner(
        tune.with_resources(driver, {"memory": 2**20}),  # Tune refuses to ask for nothing at all
        param_space={"job": tune.grid_search(jobs)},
        tune_config=tune.TuneConfig(
            metric=search.metric, mode=search.mode, max_concurrent_trials=search.concurrent
        ),
        run_config=tune.RunConfig(name="tune", storage_path=folder),
    )
    if errors := tuner.fit().errors:
        raise errors[0]


PATTERNS = {"ray": by_ray, "ours": by_ours}


def run_pattern(options: argparse.Namespace) -> None:
    """In a process of its own: start Ray, run the trials, and note when what was done."""
    import ray

    sweep = configured(options, options.pattern)
    times = [time.time()]
    ray.init("local", logging_level="error", include_dashboard=True, _node_ip_address="127.0.0.1")
    times.append(time.time())
    PATTERNS[options.pattern](sweep, options.data)
    times.append(time.time())
    (Path(options.storage) / f"{options.pattern}.json").write_text(json.dumps(times))


def measure(options: argparse.Namespace) -> None:
    """Both patterns, one after the other, and a table."""
    from t2i_ray.launch.cluster import OWN_CLUSTER_SETTINGS, RAY_SETTINGS

    run = configured(options, "ours").run
    store = open_store(run.storage)
    data = prepare(run.data, store)
    ensure_reader(store, open_prepared(store, data), run.data)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # RAY_TMPDIR: else Ray Train's helpers take from /tmp/ray the address of another cluster, or of
    # one that is gone; then each trial ends ten seconds later.
    env |= {**RAY_SETTINGS, **OWN_CLUSTER_SETTINGS, "RAY_TMPDIR": options.storage}
    for pattern in reversed(PATTERNS) if options.reverse else PATTERNS:
        log = Path(options.storage) / f"{pattern}.log"
        command = [sys.executable, __file__, *sys.argv[1:], "--pattern", pattern]
        command += ["--storage", options.storage, "--data", data]
        with log.open("wb") as out:
            code = subprocess.run(command, stdout=out, stderr=out, env=env).returncode
        if code:
            raise SystemExit(f"{log.read_text()[-5000:]}\n{pattern}: exit code {code}")
    check_equal(options)
    print(f"{'seconds':55}{'ray':>8}{'ours':>8}{'ratio':>8}")
    for (name, theirs), (_, mine) in zip(*(figures(options, p) for p in PATTERNS), strict=True):
        print(f"{name:55}{theirs:8.2f}{mine:8.2f}{theirs / mine:8.1f}")


def check_equal(options: argparse.Namespace) -> None:
    """The last weights, and all losses, of every trial are the same by both patterns."""
    store = open_store(configured(options, "ours").run.storage)
    for i in range(options.trials):
        places = [run_store(store, f"{name}-{i:03d}-seed-0/checkpoints") for name in PATTERNS]
        one, other = (Checkpoints(place, keep=1).load(options.steps) for place in places)
        for group, tensors in one.tensors.items():
            for name, tensor in tensors.items():
                assert tensor.equal(other.tensors[group][name]), (i, group, name)
    print(f"{options.trials} trials have equal weights and losses in both")


def figures(options: argparse.Namespace, pattern: str) -> list[tuple[str, float]]:
    """What is printed of a pattern, in seconds."""
    folder = Path(options.storage)
    before, up, done = json.loads((folder / f"{pattern}.json").read_text())
    trials = [json.loads(file.read_text()) for file in folder.glob(f"moments/{pattern}-*")]
    trials.sort(key=lambda trial: trial["begun"])
    ends = sorted(trial["ended"] for trial in trials)
    # A trial that began when all places were taken has that of the first one to end.
    pairs = list(zip(ends, trials[options.concurrent :], strict=False))
    to_step = [trial["step"] - end for end, trial in pairs]
    to_result = [trial["result"] - end for end, trial in pairs]
    return [
        ("call to return", done - up),
        ("  with Ray's start before", done - before),
        ("  until the first trial's first step", trials[0]["step"] - up),
        ("  since the last trial's end", done - ends[-1]),
        ("a trial, first step to end: median", median(t["ended"] - t["step"] for t in trials)),
        ("a trial's end to the next one's first step: median", median(to_step)),
        ("  longest", max(to_step)),
        ("a trial's end to the next one's first result: median", median(to_result)),
        ("  longest", max(to_result)),
        ("  of it steps and evaluation", median(t["result"] - t["step"] for t in trials)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Trials by Ray's own pattern, and by ours.")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="of a trial")
    parser.add_argument("--every", type=int, default=20, help="steps between two evaluations")
    parser.add_argument("--concurrent", type=int, default=1, help="trials at a time")
    parser.add_argument("--reverse", action="store_true", help="ours first")
    for hidden in ("--pattern", "--storage", "--data"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pattern:
        run_pattern(options)
        return
    if options.trials <= options.concurrent:
        parser.error("more --trials than --concurrent: else no trial follows another")
    commit, diff = git_commit()
    print(
        f"commit {commit[:7]}{' with changes' if diff else ''}; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"load average {os.getloadavg()[0]:.1f} (0 is quiet)\n"
        f"{options.trials} trials of {options.steps} steps, evaluated every {options.every}, "
        f"{options.concurrent} at a time; {'ours' if options.reverse else 'ray'} first",
        flush=True,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as options.storage:
        measure(options)


if __name__ == "__main__":
    main()
