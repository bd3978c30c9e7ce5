"""Runs in an MLflow that nobody trained: sweeps with curves, grids, and every kind of end."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from t2i_ray import report
from t2i_ray.tracking import Destination
from t2i_ray.tracking.server import connect

CAPTIONS = [
    "this flower has <b>five</b> pink petals & a brown centre",
    "a flower with round yellow petals",
    "blue petals over dark soil",
    "the petals are white, the background is grass",
]
COLOURS = [(220, 110, 150), (230, 200, 60), (70, 100, 210), (235, 235, 235)]


@dataclass
class Past:
    """Writes runs of one experiment; those of one seed share captions and noise."""

    uri: str
    artifacts: Path
    experiment: str
    steps: int = 40
    grids: bool = True
    made: dict[str, str] = field(default_factory=dict)  # run name -> id

    def __post_init__(self) -> None:
        self.client: MlflowClient = connect(Destination(self.uri, ""))
        place = str(self.artifacts / "mlartifacts") if self.uri.startswith("sqlite") else None
        self.id = self.client.create_experiment(self.experiment, place)

    def sweep(self, name: str, metric: str = "val/agreement/mean") -> str:
        """A parent run; its id."""
        tags = {"t2i_ray.sweep": name}
        params = {"search.metric": metric, "space.encoder": "{}", "space.optim.lr_g": "{}"}
        return self.run(name, tags=tags, params=params, curves=False)

    def trial(
        self, sweep: str, setting: Mapping[str, Any], seed: int, score: float, **more: Any
    ) -> str:
        """A child of a sweep. More: stage, status, reason, and what `run` takes."""
        label = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items())
        stage = more.pop("stage", "search")
        tags = {
            "mlflow.parentRunId": self.made[sweep],
            "t2i_ray.sweep": sweep,
            "t2i_ray.setting": label,
            "t2i_ray.values": json.dumps(setting),
            "t2i_ray.stage": stage,
            **({"t2i_ray.reason": more.pop("reason")} if "reason" in more else {}),
        }
        split = "test" if stage == "confirm" else "val"
        name = f"{sweep}-{stage}-{len(self.made):03d}-seed-{seed}"
        params = {key: str(value) for key, value in setting.items() if key != "encoder"}
        params |= {"encoder.kind": "bigru", **more.pop("params", {})}
        scores = {f"{split}/agreement/mean": score, f"{split}/frechet_reader": 90 - 80 * score}
        return self.run(name, tags, params, seed=seed, scores=scores, **more)

    def run(
        self,
        name: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        *,
        seed: int = 0,
        scores: Mapping[str, float] | None = None,
        status: str = "FINISHED",
        curves: bool = True,
        level: float = 1.0,
        seconds: float = 100.0,
    ) -> str:
        """Any run; its id. A score that is there is reached in four measurements."""
        run = self.client.create_run(self.id, run_name=name, tags={"hw.cpu": "a processor"})
        self.made[name] = run_id = str(run.info.run_id)
        every = {"seed": str(seed), "model.noise_dim": "32", "data.image_size": "32"}
        points = self._losses(seed, level) if curves else []
        for metric, score in (scores or {}).items():
            if metric.startswith("test/"):
                points.append(Metric(metric, score, 1, self.steps))
                metric = metric.replace("test/", "val/")
            for i in range(1, 5):
                value = score * (1 - 0.5 ** (2 * i)) + 0.01 * math.sin(7 * seed + i) * (i < 4)
                value = score if i == 4 else value
                points.append(Metric(metric, value, 1, self.steps * i // 4))
        if curves:
            points.append(Metric("perf/cpu_seconds", seconds + seed, 1, self.steps))
        self.client.log_batch(
            run_id,
            points,
            [Param(key, value) for key, value in (every | dict(params or {})).items()],
            [RunTag(key, value) for key, value in (tags or {}).items()],
        )
        if curves and self.grids and status == "FINISHED":
            self.grid(run_id, seed, min(1.0, max((scores or {"": 0.5}).values())))
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def _losses(self, seed: int, level: float) -> list[Metric]:
        rng = np.random.default_rng(seed)
        points = []
        for step in range(1, self.steps + 1):
            falls = math.exp(-6 * step / self.steps)
            g_loss = level * (1 + falls) + rng.normal(0, 0.1)
            d_loss = 1.4 / level * (0.6 + 0.4 * falls) + rng.normal(0, 0.05)
            points += [Metric("g_loss", g_loss, step, step), Metric("d_loss", d_loss, step, step)]
        return points

    def grid(self, run_id: str, seed: int, clear: float, captions: list[str] = CAPTIONS) -> None:
        """A sample grid of flowers, the clearer the better the score."""
        folder = self.artifacts / run_id / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        png = draw_grid(seed, round(clear, 1), tuple(captions))
        (folder / f"step_{self.steps:08d}.png").write_bytes(png)
        self.client.log_artifacts(run_id, str(folder), "samples")


@functools.cache
def draw_grid(seed: int, clear: float, captions: tuple[str, ...]) -> bytes:
    """Flowers of one seed among noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    images = []
    for i in range(len(captions)):
        for _ in range(6):
            shape = np.cos(5 * np.arctan2(y, x) + 6 * rng.random()) * 0.18 + 0.7
            flower = (np.hypot(x, y) < shape)[..., None] * np.array(COLOURS[i % 4])
            ground = np.array([70, 120, 60]) * (np.hypot(x, y) >= shape)[..., None]
            image = (flower + ground) * clear + (1 - clear) * 255 * rng.random((32, 32, 3))
            images.append(image.clip(0, 255))
    return report.sample_grid(np.array(images, np.uint8), list(captions))


def encoders_sweep(past: Past) -> None:
    """Three encoders at two learning rates with three seeds; then the best ones confirmed."""
    past.sweep("encoders")
    levels = {"bigru": (0.55, 1.2, 60), "<script>alert(1)</script>": (0.62, 4.5, 140)}
    levels["minilm"] = (0.60, 2.0, 90)
    rng = np.random.default_rng(1)
    for encoder, (score, level, seconds) in levels.items():
        more: dict[str, Any] = {"level": level, "seconds": float(seconds)}
        for rate in (0.001, 0.0003):
            setting = {"encoder": encoder, "optim.lr_g": rate}
            for seed in range(3):
                value = score + (0.03 if rate == 0.001 else 0) + rng.normal(0, 0.01)
                end: dict[str, Any] = {}
                if rate == 0.0003 and seed == 2 and encoder != "minilm":
                    end = {"status": "KILLED", "reason": "pruned at step 20"}
                if rate == 0.0003 and seed == 1 and encoder == "minilm":
                    end = {"status": "FAILED", "reason": "g_loss is NaN at step 12 <i>&</i> | $x$"}
                past.trial("encoders", setting, seed, value, **more, **end)
        for seed in range(100, 105):
            setting = {"encoder": encoder, "optim.lr_g": 0.001}
            luck = 0.02 * math.sin(seed)
            value = score + luck + rng.normal(0, 0.006)
            past.trial("encoders", setting, seed, value, stage="confirm", **more)
