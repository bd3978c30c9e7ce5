"""What rank 0 does for all: logs, draws, measures, saves, listens."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import torch

from t2i_ray import report
from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.claims import Superseded
from t2i_ray.config import Config
from t2i_ray.data import Prepared
from t2i_ray.encoders import Encoder, to_document
from t2i_ray.encoders.saved import pretrained_files, tower_files
from t2i_ray.family import Family, Objective
from t2i_ray.pretrain import Tower
from t2i_ray.runs import Scores, run_store
from t2i_ray.storage import StorageError, Store
from t2i_ray.tracking import FALLBACKS_TAG, ROLLBACKS_TAG, About, Tracker, resolve, tag
from t2i_ray.train.bystander import MAY, MAY_NOT, WAITS, Bystander
from t2i_ray.train.cost import Cost
from t2i_ray.train.drawing import Drawing
from t2i_ray.train.feed import Feed
from t2i_ray.train.guards import ROLLBACKS_KEY, Guard
from t2i_ray.train.job import Job
from t2i_ray.train.progress import Progress
from t2i_ray.train.pulse import Pulse
from t2i_ray.train.scoring import Scoring

LOOK_EVERY = 1.0  # seconds between two looks for a reason to go on elsewhere


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
        guard: Guard,
    ) -> None:
        self._job = job
        self._guard = guard
        self._config = config
        self._root = store
        self._store = run_store(store, config.name)
        self._checkpoints = checkpoints
        self._encoder = encoder
        self._drawing = Drawing(prepared, feed)
        self._scoring = Scoring(config, store, prepared, feed)
        self._scores: tuple[int, dict[str, float]] = (-1, {})  # of which step
        self._marks = job.marks
        self._files: dict[str, bytes] = {}  # not yet written
        self._lock = threading.Lock()
        self._history: dict[str, list[float]] = {}
        super().__init__()
        state = checkpoint.documents["state"] if checkpoint else None
        if checkpoint and state:
            self.measured = state["measured"]
            history = checkpoint.tensors.get("history", {})
            self._history = {name: column.tolist() for name, column in history.items()}
        start = checkpoint.step if checkpoint else 0
        about = About.from_json(job.about).here()
        if config.data.wrong != "other_class":
            about = replace(about, tags={**about.tags, FALLBACKS_TAG: str(feed.fallbacks)})
        if guard.rollbacks:
            about = replace(about, tags={**about.tags, ROLLBACKS_TAG: tag(guard.told())})
            if guard.rollbacks[-1]["to"] == start:
                self._marks = {**self._marks, "guard/rate": guard.rate}
        snapshot = checkpoint.documents["tracking"] if checkpoint else None
        self._tracker = Tracker(resolve(config), about, store, snapshot)
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
        before = self._history.setdefault("step", [])
        for name, value in losses.items():  # one that a former version did not log starts late
            self._history.setdefault(name, [math.nan] * len(before)).append(value)
        before.append(step)
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
        if isinstance(objective, Family):
            self.artifact(f"samples/step_{step:08d}.png", self._drawing.grid(step, objective))

    def lacks_diversity(self, step: int, objective: Objective) -> bool:
        """Whether the pictures of the sample grid are too much alike."""
        if not isinstance(objective, Family):
            return False
        diversity = self._drawing.diversity(step, objective)
        self._tracker.log(step, {"guard/diversity": diversity})
        return self._guard.lacks_diversity(diversity)

    def evaluation_due(self, step: int) -> bool:
        """Every evaluation.every steps, unless that is done aside."""
        every = 0 if self._config.aside else self._config.evaluation.every
        return every > 0 and step % every == 0

    def evaluate(self, step: int, objective: Objective) -> None:
        """Take the measures on the validation split."""
        self._drawing.refresh(step, objective)
        scores = self._scoring.scores(objective)
        self._scores = step, scores
        self._tracker.log(step, scores)

    def may_save(self, patience: float) -> int:
        """MAY; WAITS if the last checkpoint is not written after so many seconds; MAY_NOT."""
        written = False
        try:
            written = self._checkpoints.wait(patience)
        except Superseded as why:
            self.superseded = str(why)
        self.superseded = self.superseded or self._pulse.superseded
        return MAY_NOT if self.superseded else MAY if written else WAITS

    def save(self, step: int, objective: Objective) -> None:
        """Save a checkpoint; when it is durable, MLflow may show what it covers."""
        self._drawing.refresh(step, objective)
        cost = self._cost.count()
        self._tracker.log(step, {**cost, "perf/workers": self._cost.world})
        of, scores = self._scores
        self.measured = {**scores, **cost} if of == step else {}
        if step == self._config.train.steps:
            self.artifact("losses.png", report.loss_figure(self._history))
            if not isinstance(objective, Family):
                for name, data in self._pretrained(objective).items():
                    self.artifact(f"encoder/{name}", data)
        held = self._guard.holds(step)
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
                    "guard": self._guard.state(),
                },
                "config": self._config.model_dump(mode="json"),
                "encoder": to_document(self._encoder),
                "tracking": self._tracker.snapshot(step, held),
            },
            score=self.measured.get(self._config.checkpoint.best or ""),
            needed=[self._guard.good],
            first=self._write_files,
            on_durable=None if held else self._tracker.commit,
        )

    def _pretrained(self, objective: Objective) -> dict[str, bytes]:
        """What ``encoder.init_from`` reads, by name."""
        files = {}
        if isinstance(tower := objective.networks.get("tower_ema"), Tower):
            files = tower_files(tower.sizes, tower.state_dict())
        return files | pretrained_files(self._encoder, objective.encoder_ema.state_dict())

    def artifact(self, key: str, data: bytes) -> None:
        """A file of the run, to be kept in storage and shown by MLflow with the next checkpoint."""
        with self._lock:
            self._files[key] = data
        self._tracker.artifact(f"runs/{self._config.name}/{key}", key)

    def _write_files(self) -> None:
        """In the checkpoint's thread, before it: a run that ended has them all."""
        while self._files:
            with self._lock:
                key, data = next(iter(self._files.items()))
            self._store.write(key, data)
            with self._lock:
                if self._files.get(key) is data:  # else there is a newer one by now
                    del self._files[key]

    def go_back(self, step: int, reason: str) -> None:
        """Forget what is later than the point to go back to, where training will go on."""
        to, noted = self._guard.good, self._guard.go_back(step, reason)
        print(f"{self._config.name}: {reason}; goes back to step {to}", flush=True)
        self._checkpoints.wait()
        self._store.write_json(ROLLBACKS_KEY, noted)  # first: see guards.py
        Scores(self._root, self._config.name).forget_after(to)
        self._checkpoints.forget_after(to)  # last: whoever is killed before it comes here again

    def give_up(self) -> str:
        """The run has failed for good: MLflow may show also what no checkpoint covers.

        Says which checkpoint is the last good one.
        """
        self._checkpoints.wait()
        with suppress(StorageError):
            self._write_files()  # no checkpoint will come and do it
        self._tracker.commit()
        good = [step for step in self._checkpoints.steps() if step <= self._guard.good]
        return f"the last good checkpoint is of step {good[-1]}" if good else "no good checkpoint"

    def close(self, *, in_haste: bool = False) -> bool:
        """Wait for the last checkpoint, then a while for MLflow to take what is left.

        In haste not so: whoever goes on from the checkpoint has it.
        """
        try:
            self._checkpoints.wait()
        except Superseded as why:
            self.superseded = str(why)
        self._checkpoints.close()
        # What is left is in the checkpoint: an outage need not hold up the end.
        patience = 0.5 if in_haste else 5 if self._tracker.in_outage else 20
        published = self._tracker.flush(timeout=patience)
        self._tracker.close()
        self._pulse.close()  # last: without a sign, the driver takes this process for gone
        return published
