"""What rank 0 does for all: logs, draws, measures, saves, listens. The other ranks stand by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

from t2i_ray import report
from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import Config
from t2i_ray.data import Prepared
from t2i_ray.encoders import Encoder, to_document
from t2i_ray.encoders.saved import pretrained_files
from t2i_ray.family import Family, Objective
from t2i_ray.generate import to_uint8
from t2i_ray.runs import run_store
from t2i_ray.storage import StorageError, Store
from t2i_ray.tracking import About, Tracker, resolve
from t2i_ray.train.cost import Cost
from t2i_ray.train.feed import Feed
from t2i_ray.train.progress import Progress
from t2i_ray.train.pulse import Pulse
from t2i_ray.train.scoring import Scoring

if TYPE_CHECKING:
    from t2i_ray.train.loop import Job

GRID_CAPTIONS = 8
GRID_NOISES = 6
STATISTICS_BATCHES = 16
LOOK_EVERY = 1.0  # seconds between two looks for a reason to go on elsewhere


class Bystander:
    """Every other rank: takes part in nothing but the steps."""

    def __init__(self, *_: object) -> None:
        self.measured: dict[str, float] = {}  # on the weights of the last checkpoint, if at all

    @property
    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return False

    @property
    def look_due(self) -> bool:
        """Whether all ranks are to look for a reason to go on elsewhere."""
        return False

    def log(self, step: int, losses: Mapping[str, float]) -> None:
        """Take down a step's losses."""

    def samples_due(self, step: int) -> bool:  # noqa: ARG002
        """Whether a sample grid is to be drawn after this step."""
        return False

    def sample(self, step: int, objective: Objective) -> None:
        """Draw the sample grid."""

    def evaluation_due(self, step: int) -> bool:  # noqa: ARG002
        """Whether the measures are to be taken after this step."""
        return False

    def evaluate(self, step: int, objective: Objective) -> None:
        """Take the measures on the validation split."""

    def artifact(self, key: str, data: bytes) -> None:
        """Keep a file of the run."""

    def standing(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """What only rank 0 knows, as watch.GAUGES names it."""
        return {}

    def save(self, step: int, objective: Objective) -> None:
        """Save a checkpoint."""

    def give_up(self) -> None:
        """The run has failed for good: MLflow may show also what no checkpoint covers."""

    def close(self, *, in_haste: bool = False) -> bool:  # noqa: ARG002
        """Finish; whether MLflow has everything."""
        return True


class Chief(Bystander):
    """Rank 0."""

    def __init__(
        self,
        job: Job,
        config: Config,
        store: Store,
        checkpoints: Checkpoints,
        checkpoint: Checkpoint | None,
        prepared: Prepared,
        encoder: Encoder,
        feed: Feed,
        world: int,
    ) -> None:
        self._job = job
        self._config = config
        self._root = store
        self._store = run_store(store, config.name)
        self._checkpoints = checkpoints
        self._prepared = prepared
        self._encoder = encoder
        self._feed = feed
        self._scoring = Scoring(config, store, prepared, feed)
        self._scores: tuple[int, dict[str, float]] = (-1, {})  # of which step
        self._marks = job.marks
        self._refreshed = -1  # the step whose averaged generator has its statistics
        self._files: dict[str, bytes] = {}  # not yet written
        self._history: dict[str, list[float]] = {}
        self.measured: dict[str, float] = {}
        state = checkpoint.documents["state"] if checkpoint else None
        if checkpoint and state:
            self.measured = state["measured"]
            history = checkpoint.tensors.get("history", {})
            self._history = {name: column.tolist() for name, column in history.items()}
        self._tracker = Tracker(
            resolve(config),
            About.from_json(job.about).here(),
            store,
            checkpoint.documents["tracking"] if checkpoint else None,
        )
        start = checkpoint.step if checkpoint else 0
        if checkpoint and not job.quiet:
            print(f"{config.name}: continues from step {start}", flush=True)
        self._progress = Progress(config.name, start, config.train.steps, config.train.batch_size)
        self._pulse = Pulse(self._store, start)
        self._cost = Cost(config, world, state)
        self._looked = time.monotonic()

    # ------------------------------------------------------------------ every step

    @property
    def stop_requested(self) -> bool:
        """Whether the driver asked for a stop."""
        return self._pulse.stop_requested

    @property
    def look_due(self) -> bool:
        """Every LOOK_EVERY seconds."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return False
        self._looked = time.monotonic()
        return True

    def log(self, step: int, losses: Mapping[str, float]) -> None:
        """Take down a step's losses, for MLflow and for the loss figure."""
        self._tracker.log(step, {**losses, **self._marks})
        self._marks = {}
        self._history.setdefault("step", []).append(step)
        for name, value in losses.items():
            self._history.setdefault(name, []).append(value)
        self._pulse.step = step
        speed = self._progress.images_per_second(step)
        if line := self._progress.line(step, losses):
            if not self._job.quiet:
                print(line, flush=True)
            self._pulse.images_per_second = speed
            self._tracker.log(step, {"perf/images_per_second": speed})

    def standing(self, step: int) -> dict[str, float]:
        """How far checkpoints and MLflow are behind, as watch.GAUGES names it."""
        durable, when = self._checkpoints.durable
        rows, outage = self._tracker.behind
        return {
            "checkpoint_lag_steps": step - durable,
            "checkpoint_time_seconds": when,
            "spool_rows": rows,
            "mlflow_outage_seconds": outage,
        }

    # ----------------------------------------------------------------- now and then

    def samples_due(self, step: int) -> bool:
        """Every train.sample_every steps."""
        every = self._config.train.sample_every
        return every > 0 and step % every == 0

    def sample(self, step: int, objective: Objective) -> None:
        """The grid of fixed captions by fixed noises, by the averaged generator."""
        if not isinstance(objective, Family):
            return
        captions = self._grid_captions()
        noise = self._feed.noise("grid", count=GRID_NOISES)
        self._refresh(step, objective)
        images = objective.sample(
            noise.repeat(len(captions), 1),
            self._feed.rows(np.repeat(captions, GRID_NOISES)),
        )
        png = report.sample_grid(to_uint8(images), [self._prepared.captions[i] for i in captions])
        self.artifact(f"samples/step_{step:08d}.png", png)

    def _grid_captions(self) -> np.ndarray:
        """The first captions of pictures spread over the validation split, or else training."""
        ids = self._prepared.ids("val")
        ids = ids if len(ids) else self._prepared.ids("train")
        chosen = ids[np.linspace(0, len(ids) - 1, min(GRID_CAPTIONS, len(ids))).astype(int)]
        return np.array([self._prepared.captions_of(sample)[0] for sample in chosen])

    def _refresh(self, step: int, family: Objective) -> None:
        """Estimate the averaged generator's BatchNorm statistics on training captions."""
        if step == self._refreshed or not isinstance(family, Family):
            return
        self._refreshed = step
        family.refresh_ema_statistics([self._feed.piece(i, 0) for i in range(STATISTICS_BATCHES)])

    def evaluation_due(self, step: int) -> bool:
        """Every evaluation.every steps, unless that is done aside."""
        every = 0 if self._config.aside else self._config.evaluation.every
        return every > 0 and step % every == 0

    def evaluate(self, step: int, objective: Objective) -> None:
        """Take the measures on the validation split."""
        self._refresh(step, objective)
        scores = self._scoring.scores(objective)
        self._scores = step, scores
        self._tracker.log(step, scores)

    def save(self, step: int, objective: Objective) -> None:
        """Save a checkpoint; when it is durable, MLflow may show what it covers."""
        self._refresh(step, objective)
        cost = self._cost.count()
        self._tracker.log(step, {**cost, "perf/workers": self._cost.world})
        of, scores = self._scores
        self.measured = {**scores, **cost} if of == step else {}
        if step == self._config.train.steps:
            self.artifact("losses.png", report.loss_figure(self._history))
            if not isinstance(objective, Family):
                weights = objective.encoder_ema.state_dict()
                for name, data in pretrained_files(self._encoder, weights).items():
                    self.artifact(f"encoder/{name}", data)
        history = {
            name: torch.tensor(column, dtype=torch.float64)
            for name, column in self._history.items()
        }
        self._checkpoints.save(
            step,
            {**objective.state(copy=False), "history": history},
            {
                "state": {
                    "step": step,
                    **self._cost.state,
                    "measured": self.measured,
                    "about": self._job.about["tags"],
                },
                "config": self._config.model_dump(mode="json"),
                "encoder": to_document(self._encoder),
                "tracking": self._tracker.snapshot(step),
            },
            score=self.measured.get(self._config.checkpoint.best or ""),
            first=self._write_files,
            on_durable=self._tracker.commit,
        )

    def artifact(self, key: str, data: bytes) -> None:
        """A file of the run, to be kept in storage and shown by MLflow with the next checkpoint."""
        self._files[key] = data
        self._tracker.artifact(f"runs/{self._config.name}/{key}", key)

    def _write_files(self) -> None:
        """In the checkpoint's thread, before it: a run that ended has them all."""
        while self._files:
            key, data = next(iter(self._files.items()))
            self._store.write(key, data)
            del self._files[key]

    def give_up(self) -> None:
        """The run has failed for good: MLflow may show also what no checkpoint covers."""
        self._checkpoints.wait()
        with suppress(StorageError):
            self._write_files()  # no checkpoint will come and do it
        self._tracker.commit()

    def close(self, *, in_haste: bool = False) -> bool:
        """Wait for the last checkpoint, then a while for MLflow to take what is left.

        In haste not so: whoever goes on from the checkpoint has it.
        """
        self._pulse.close()
        self._checkpoints.wait()
        self._checkpoints.close()
        # What is left is in the checkpoint: an outage need not hold up the end.
        patience = 0.5 if in_haste else 5 if self._tracker.in_outage else 20
        published = self._tracker.flush(timeout=patience)
        self._tracker.close()
        return published
