"""The training loop: the same code under Ray Train, under torchrun and in one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import Config, parse_config
from t2i_ray.data import Prepared, open_prepared
from t2i_ray.encoders import Encoder, build_encoder, caption_rows, load_encoder
from t2i_ray.gan_cls import GanCls
from t2i_ray.runs import DIVERGED, Status, run_store
from t2i_ray.storage import open_store
from t2i_ray.train.chief import Bystander, Chief
from t2i_ray.train.feed import Feed
from t2i_ray.train.worker import Worker


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker: plain JSON."""

    config: dict[str, Any]
    data: str  # prefix of the prepared data
    encoder: dict[str, Any] | None  # a frozen one's description; None: made from the config
    about: dict[str, Any]  # what MLflow is told of this attempt
    quiet: bool = False  # no progress lines: one of many
    until: int | None = None  # go no further than this step; the run is not over there
    inherits: str | None = None  # prefix of another run's checkpoints: go on with its weights
    marks: dict[str, float] = field(default_factory=dict)  # shown once, with the next losses


@dataclass(frozen=True)
class Outcome:
    """How a worker's loop ended."""

    status: Status
    step: int
    reason: str | None = None
    published: bool = True


Report = Callable[[int, str, dict[str, float]], None]


def train(job: Job, worker: Worker, report: Report | None = None) -> Outcome:
    """Train from the newest sound checkpoint, or from scratch, until done or asked to stop.

    Args:
        job: the run.
        worker: this worker's place; the process group of a larger world must exist.
        report: called on every rank at each checkpoint with step, URI and, on rank 0, what was
            measured on these very weights, with the seconds spent; empty: nothing was.
    """
    config = parse_config(job.config)
    worker.prepare_torch(config)
    store = open_store(config.storage)
    prepared = open_prepared(store, job.data)
    folder = run_store(store, config.name).within("checkpoints")
    checkpoints = Checkpoints(
        folder, keep=config.checkpoint.keep, best_mode=config.checkpoint.best_mode
    )
    checkpoint = _agreed_checkpoint(checkpoints, worker)
    encoder = _encoder(
        config, prepared, checkpoint.documents["encoder"] if checkpoint else job.encoder
    )
    rows = caption_rows(encoder, prepared.captions, store)
    feed = Feed(config, prepared, rows, worker.device)
    gan = _gan(config, encoder, checkpoint, worker)
    if checkpoint and job.inherits:
        _inherit(gan, Checkpoints(store.within(job.inherits), keep=1), checkpoint.step)
    role = Chief if worker.is_chief else Bystander
    chief = role(job, config, store, checkpoints, checkpoint, prepared, encoder, feed, worker)

    step = checkpoint.step if checkpoint else 0
    micro_batches = config.train.micro_batches
    last = config.train.steps if job.until is None else job.until
    status: Status = "FINISHED" if last == config.train.steps else "RUNNING"
    reason = None
    try:
        while step < last:
            pieces = [feed.piece(step, micro) for micro in worker.share(micro_batches)]
            values = gan.step(pieces, step, micro_batches, worker.world)
            step += 1

            ends = step == config.train.steps
            saves = step == last or _checkpoint_due(config, step)
            stop = False
            if saves or step % config.train.log_every == 0:
                losses, stop = worker.total(values, chief.stop_requested)
                if not all(map(math.isfinite, losses.values())):
                    status, reason = "FAILED", f"{DIVERGED} at step {step}: {losses}"
                    chief.give_up()
                    break
                chief.log(step, losses)
            if chief.samples_due(step) or ends:
                chief.sample(step, gan)
            if chief.evaluation_due(step):
                chief.evaluate(step, gan)
            if saves or stop:
                chief.save(step, gan)
                if report:
                    report(step, f"{folder.uri}/step_{step:08d}", chief.measured)
            if stop and not ends:
                status, reason = "KILLED", f"stopped on request at step {step}"
                break
    finally:
        published = chief.close()
    return Outcome(status, step, reason, published)


def _checkpoint_due(config: Config, step: int) -> bool:
    """Every checkpoint.every steps; where the best is kept, also whenever that is measured."""
    every = [config.checkpoint.every]
    if config.checkpoint.best and config.evaluation.every:
        every.append(config.evaluation.every)
    return any(step % steps == 0 for steps in every)


def _agreed_checkpoint(checkpoints: Checkpoints, worker: Worker) -> Checkpoint | None:
    """The newest sound checkpoint as rank 0 sees it, loaded by every rank."""
    newest = checkpoints.latest() if worker.is_chief else None
    step = worker.agree(newest.step if newest else -1)
    if step < 0 or newest:
        return newest
    return checkpoints.load(step)


def _inherit(gan: GanCls, other: Checkpoints, step: int) -> None:
    """Weights and optimisers of another run at this step. Past it, they are in our own already."""
    if step in other.steps():
        tensors = other.load(step).tensors
        gan.load_state({part: v for part, v in tensors.items() if part != "history"})


def _encoder(config: Config, prepared: Prepared, description: dict[str, Any] | None) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # the first weights are the same on every rank
        if description:
            return load_encoder(description)
        captions = np.concatenate([prepared.captions_of(i) for i in prepared.ids("train")])
        return build_encoder(config.encoder, [prepared.captions[i] for i in captions])


def _gan(config: Config, encoder: Encoder, checkpoint: Checkpoint | None, worker: Worker) -> GanCls:
    gan = GanCls(config, encoder.module, encoder.dim, device=worker.device)
    if checkpoint:
        gan.load_state({k: v for k, v in checkpoint.tensors.items() if k != "history"})
    gan.distribute()
    return gan
