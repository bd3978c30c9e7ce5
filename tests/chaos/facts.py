"""What came of a run, so that it can be compared with another; and what it left behind."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunInfo

from chaos.run import Lost, Run
from t2i_ray.storage import LocalStore
from t2i_ray.tracking import Destination
from t2i_ray.tracking.server import connect

#: Ray's own, which outlive a run.
STANDING = (
    "ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::TrainStateActor",
    "ray::_AutoscalingCoordinatorActor",
)  # fmt: skip
#: In a run's folder: what tells of its attempts.
OF_ATTEMPTS = ("claims/", "checkpoints/", "run.json", "lease.json", "progress.json")
#: Parameters and tags that a run has for itself, not in common with its twin.
OWN_PARAMS = ("name", "storage.", "tracking.", "cluster.timeout_s")
OWN_TAGS = ("mlflow.", "t2i_ray.run", "t2i_ray.attempt", "t2i_ray.model", "t2i_ray.storage")


def facts_of(run: Run) -> dict[str, Any]:
    """All that must not depend on what happened to the run, by name.

    Raises:
        Lost: a step is not there once, or the run is not shown once.
    """
    checkpoint = run.checkpoints.latest()
    if checkpoint is None or checkpoint.step != run.steps:
        raise Lost(f"the last checkpoint is {checkpoint and checkpoint.step}")
    manifest = run.store.read_json(f"checkpoints/step_{run.steps:08d}/manifest.json")
    facts: dict[str, Any] = {
        f"weights {file}": entry["sha256"]
        for file, entry in manifest["files"].items()
        if file.endswith(".safetensors")
    }
    facts["checkpoints"] = run.checkpoints.steps()
    facts["checkpoint folders"] = {key.split("/")[1] for key in run.store.list("checkpoints")}
    facts["scores"] = [
        {key: value for key, value in row.items() if not key.startswith("perf/")}
        for row in run.store.read_json("scores.json", [])
    ]
    keys = [key for key in run.store.list() if not key.startswith(OF_ATTEMPTS)]
    facts["files"] = sorted(keys)
    facts |= {f"file {key}": _sum(run.store.read(key)) for key in keys if key.endswith(".png")}
    return facts | _shown(run)


def _shown(run: Run) -> dict[str, Any]:
    """What MLflow has of it."""
    record = run.record
    assert record
    client = connect(Destination(run.site.mlflow.uri, ""))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`t2i_ray.run` = '{record.key}'")
    if len(found) != 1:
        raise Lost(f"MLflow has {len(found)} runs of it")
    (shown,) = found
    facts: dict[str, Any] = {
        "status": (record.status, shown.info.status),
        "models": _models(run, client, shown.info),
        "datasets": [entry.dataset.digest for entry in shown.inputs.dataset_inputs],
    }
    for kind, values, own in (
        ("param", shown.data.params, OWN_PARAMS), ("tag", shown.data.tags, OWN_TAGS),
    ):  # fmt: skip
        facts |= {f"{kind} {k}": v for k, v in values.items() if not k.startswith(own)}
    for key in sorted(shown.data.metrics):
        history = sorted(
            (m.step, m.value) for m in client.get_metric_history(shown.info.run_id, key)
        )
        steps = Counter(step for step, _ in history)
        if twice := [step for step, count in steps.items() if count > 1]:
            raise Lost(f"MLflow has {key} more than once at steps {twice}")
        if key.endswith("_loss") and list(steps) != list(range(1, run.steps + 1)):
            raise Lost(f"MLflow lacks steps of {key}: it has {len(steps)}")
        if not key.startswith("perf/"):
            facts[f"history {key}"] = history
    at = _experiment(run, shown.info) / shown.info.run_id / "artifacts"
    for name in _files(at):
        if not name.startswith("attempt_"):  # what a later command was given
            facts[f"artifact {name}"] = _sum((at / name).read_bytes()) if ".png" in name else ""
    if "artifact config.yaml" not in facts:
        raise Lost(f"no artifacts in {at}")
    return facts


def _models(run: Run, client: MlflowClient, info: RunInfo) -> list[Any]:
    """Of each model that MLflow has of this run: whether it is whole, and its files."""
    found = client.search_logged_models([info.experiment_id], f"source_run_id = '{info.run_id}'")
    models = _experiment(run, info) / "models"
    return sorted((str(m.status), _files(models / m.model_id / "artifacts")) for m in found)


def _experiment(run: Run, info: RunInfo) -> Path:
    """Where MLflow keeps its files."""
    return Path(run.site.mlflow.artifacts, str(info.experiment_id))


def _files(folder: Path) -> list[str]:
    """Paths of all files, relative to the folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(facts: dict[str, Any], twin: dict[str, Any]) -> list[str]:
    """Names of what is not the same."""
    return [key for key in sorted({*facts, *twin}) if facts.get(key) != twin.get(key)]


def left_behind(run: Run, seconds: float = 30) -> list[str]:
    """What should be gone by now, after a while: processes, placement groups, files, a lease."""
    deadline = time.monotonic() + seconds
    while (left := _left(run)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _left(run: Run) -> list[str]:
    site = run.site
    left = [f"process {pid}: {title}" for pid, title in site.processes().items()
            if not title.startswith(STANDING)]  # fmt: skip
    left += [f"orphan {pid}: {title}" for pid, title in site.orphans.items()]
    left += [f"command {driver.pid}" for driver in run.drivers if driver.poll() is None]
    groups = site.cluster.get("/api/v0/placement_groups?limit=1000")["data"]["result"]["result"]
    left += [f"placement group {g['placement_group_id']}" for g in groups
             if g["state"] != "REMOVED"]  # fmt: skip
    if not run.store.read_json("lease.json", {}).get("released"):
        left.append("lease.json: not released")
    store = run.place.store
    names = store.list()
    if isinstance(store, LocalStore):
        names = [str(path) for path in store.root.rglob("*")]
    else:
        left += [f"upload {upload['Key']}" for upload in site.uploads()]
    names += [str(path) for path in site.cache.rglob("*")]
    left += [f"file {key}" for key in names if key.endswith((".part", "/stop")) or ".probe-" in key]
    for path in run.temporary - run.temporary_before:
        left.append(f"temporary {path}: {[str(p.relative_to(path)) for p in path.rglob('*')]}")
    return left
