"""Running t2i-ray as its user does, and reading what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from ray_cluster import RayCluster
from small_configs import TINY, write_config

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import Storage, load_config
from t2i_ray.runs import RunRecord, read_run, run_store
from t2i_ray.storage import open_store
from t2i_ray.tracking import describe
from t2i_ray.train import Job, Worker, train

STEPS = 100
#: A run that is compared with others like it, whatever happens to them.
RUN = (
    "cluster.workers=2", f"train.steps={STEPS}", "evaluation.every=20", "evaluation.samples=64",
    "checkpoint.best=val/frechet_reader", "checkpoint.best_mode=min",
)  # fmt: skip


@dataclass(frozen=True)
class Runner:
    """A storage folder on a cluster."""

    cluster: RayCluster
    folder: Path

    def config(self, name: str, document: Mapping[str, Any] = TINY) -> Path:
        return write_config(self.folder, name, document)

    def start(
        self, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "t2i_ray", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**self.cluster.env, **(env or {})},
            cwd=self.folder,
        )

    def start_training(
        self, name: str, *overrides: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return self.start("train", self.config(name), *overrides, env=env)

    def train(
        self, name: str, *overrides: str, code: int = 0, env: dict[str, str] | None = None
    ) -> str:
        """Train to the end, and give what was printed."""
        return finish(self.start_training(name, *overrides, env=env), code)

    def train_without_ray(self, name: str, like: str, *overrides: str) -> None:
        """The same loop as one worker in this process, on the data of another run."""
        config = load_config(self.config(name), list(overrides))
        about = describe(config, key=name)
        job = Job(config.model_dump(mode="json"), self.record(like).data, None, about.to_json())
        assert train(job, Worker()).status == "FINISHED"

    def run(self, *arguments: str | Path, code: int = 0, env: dict[str, str] | None = None) -> str:
        return finish(self.start(*arguments, env=env), code)

    # ------------------------------------------------------------------ what came of it

    @property
    def storage(self) -> Storage:
        return Storage(uri=str(self.folder / "store"))

    def record(self, name: str) -> RunRecord:
        record = read_run(open_store(self.storage), name)
        assert record is not None
        return record

    def checkpoint(self, name: str) -> Checkpoint:
        store = run_store(open_store(self.storage), name).within("checkpoints")
        checkpoint = Checkpoints(store, keep=1).latest()
        assert checkpoint is not None
        return checkpoint

    def sums(self, name: str, step: int) -> dict[str, str]:
        """sha256 of every tensor file of a checkpoint."""
        folder = self.folder / f"store/runs/{name}/checkpoints/step_{step:08d}"
        manifest = json.loads((folder / "manifest.json").read_text())
        return {
            file: entry["sha256"]
            for file, entry in manifest["files"].items()
            if file.endswith(".safetensors")
        }

    def mlflow(self, uri: str | None = None) -> MlflowClient:
        return MlflowClient(uri or f"sqlite:///{self.folder}/store/mlflow.db")

    def mlflow_run(self, name: str, uri: str | None = None, key: str | None = None) -> Any:
        client = self.mlflow(uri)
        experiments = [e.experiment_id for e in client.search_experiments()]
        key = key or self.record(name).key
        (run,) = client.search_runs(experiments, f"tags.`t2i_ray.run` = '{key}'")
        return run

    def curves(
        self, name: str, uri: str | None = None, key: str | None = None
    ) -> dict[str, list[tuple[int, float]]]:
        """Every loss and accuracy in MLflow as (step, value), in the order of steps."""
        run = self.mlflow_run(name, uri, key)
        client = self.mlflow(uri)
        return {
            key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
            if not key.startswith(("perf/", "test/"))  # test: measured afterwards
        }

    def rank_0(self, name: str) -> int:
        """The process that last gave a sign of training."""
        return int(
            json.loads((self.folder / f"store/runs/{name}/progress.json").read_text())["pid"]
        )

    def wait_for_checkpoint(self, name: str, step: int) -> None:
        """Until the checkpoint of this step, or a later one, is durable."""
        folder = self.folder / f"store/runs/{name}/checkpoints"
        until(
            lambda: any(
                int(path.parent.name.removeprefix("step_")) >= step
                for path in folder.glob("step_*/manifest.json")
            )
        )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a command and check its exit code."""
    try:
        output, _ = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running:\n{process.communicate()[0]}") from None
    assert process.returncode == code, f"exit code {process.returncode}:\n{output}"
    return output


def until(ready: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
