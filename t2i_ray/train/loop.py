"""The training loop: the same code under Ray Train, under torchrun and in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.claims import Superseded, check, claim_term
from t2i_ray.config import Config, parse_config
from t2i_ray.data import Prepared, open_prepared
from t2i_ray.encoders import Encoder, build_encoder, caption_rows, load_encoder, scripts_of
from t2i_ray.families import objective_of
from t2i_ray.family import Objective
from t2i_ray.runs import Status, run_store
from t2i_ray.storage import FencedStore, Store, open_store
from t2i_ray.train.chief import MAY_NOT, WAITS, Bystander, Chief
from t2i_ray.train.feed import Feed
from t2i_ray.train.guards import ROLLBACKS_KEY, Guard
from t2i_ray.train.watch import Show, Watch
from t2i_ray.train.worker import Worker


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker: plain JSON."""

    config: dict[str, Any]
    data: str  # prefix of the prepared data
    encoder: dict[str, Any] | None  # one without weights; None: made from the config
    about: dict[str, Any]  # what MLflow is told of this attempt
    quiet: bool = False  # no progress lines: one of many
    until: int | None = None  # go no further than this step; the run is not over there
    inherits: dict[str, Any] | None = None  # at this "step", go on with the weights "of" a prefix
    marks: dict[str, float] = field(default_factory=dict)  # shown once, with the next losses


@dataclass(frozen=True)
class Outcome:
    """How a worker's loop ended."""

    status: Status
    step: int
    reason: str | None = None
    published: bool = True
    moves: bool = False  # it left, with a checkpoint, to be started again at once elsewhere
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # see guards.py


Report = Callable[[int, dict[str, float]], None]
Notice = Callable[[], str | None]


def train(
    job: Job,
    worker: Worker,
    report: Report | None = None,
    notice: Notice | None = None,
    show: Show | None = None,
) -> Outcome:
    """Train from the newest sound checkpoint, or from scratch, until done or asked to stop.

    Args:
        job: the run.
        worker: this worker's place; the process group of a larger world must exist.
        report: called on every rank at each checkpoint, the one to go on from among them, with
            its step and, on rank 0, what was measured on these very weights, with the seconds
            spent; empty: nothing was.
        notice: asked on every rank after the same step, every few seconds: why all must go on
            elsewhere, such as a node that is about to go; None: stay.
        show: called on every rank about once a second, with some of watch.GAUGES.
    """
    config = parse_config(job.config)
    worker.prepare_torch(config)
    while (outcome := _train(job, config, worker, report, notice, show)) is None:
        pass  # gone back to an earlier checkpoint, from which it goes on as after a kill
    return outcome


def _train(
    job: Job,
    config: Config,
    worker: Worker,
    report: Report | None,
    notice: Notice | None,
    show: Show | None,
) -> Outcome | None:
    """Until done, asked to stop or to move, or in need to go back (None): see guards.py."""
    try:
        step, feed, objective, chief, guard = _open(job, config, worker)
    except Superseded as why:
        return Outcome("KILLED", 0, str(why), published=False)
    watch = Watch(config, worker, feed, chief, show)
    resumed = step > 0
    micro_batches = config.train.micro_batches
    last = config.train.steps if job.until is None else job.until
    status: Status = "FINISHED" if last == config.train.steps else "RUNNING"
    reason = wrong = move = None
    try:
        if resumed and report:  # the attempt before may have died right before it could
            report(step, chief.measured)
        while step < last:
            with watch.update(step):
                pieces = [feed.piece(step, micro) for micro in worker.share(micro_batches)]
                values = objective.step(pieces, step, micro_batches, worker.world)
            step += 1

            ends = step == config.train.steps
            saves = step == last or _checkpoint_due(config, step) or guard.saves(step)
            logs = saves or step % config.train.log_every == 0
            stop = False
            if logs or guard.looks_always:
                values |= objective.gradient_norms(worker.world)
                losses, (stop, look) = worker.total(values, chief.stop_requested, chief.look_due)
                if wrong := guard.look(step, losses):
                    break
                if logs:
                    watch.tell(step, losses)
                    chief.log(step, losses)
                move = notice() if notice and look and not ends else None
            if guard.looks_at_pictures(step) and worker.agree(
                chief.lacks_diversity(step, objective)
            ):
                wrong = guard.without_diversity(step)
                break
            if chief.samples_due(step) or ends:
                chief.sample(step, objective)
            if chief.evaluation_due(step):
                chief.evaluate(step, objective)
            if saves or stop or move:
                # While the store is away, the others are told that rank 0 lives.
                while (may := worker.agree(chief.may_save(config.cluster.timeout_s / 4))) == WAITS:
                    pass
                if may == MAY_NOT:
                    status, reason, move = "KILLED", chief.superseded, None
                    break
                guard.reach(step)
                chief.save(step, objective)
                if report and not move:  # else whoever goes on does so, at once
                    report(step, chief.measured)
            if stop and not ends:
                status, reason, move = "KILLED", f"stopped on request at step {step}", None
                break
            if move:
                status, reason = "RUNNING", f"left at step {step}: {move}"
                break
        if wrong and guard.may_go_back:
            chief.go_back(step, wrong)
        elif wrong:
            status, reason = "FAILED", f"{wrong}; {chief.give_up()}"
    finally:
        watch.close()
        published = chief.close(in_haste=bool(move))
    if wrong and guard.may_go_back:
        return None
    if move:  # the first to leave ends all: not before rank 0's checkpoint is durable
        worker.agree(step)
    return Outcome(status, step, reason, published, bool(move), guard.rollbacks)


class _Opened(NamedTuple):
    """All that a worker's loop works with."""

    step: int  # of the checkpoint that it goes on from; 0: from scratch
    feed: Feed
    objective: Objective
    chief: Bystander
    guard: Guard


def _open(job: Job, config: Config, worker: Worker) -> _Opened:
    """As the newest sound checkpoint has it, or anew.

    Raises:
        Superseded: on every rank, if somebody else is at work on the run.
    """
    store = _fenced(open_store(config.storage), config.name, job, worker)
    prepared = open_prepared(store, job.data)
    checkpoints = Checkpoints(
        run_store(store, config.name).within("checkpoints"),
        keep=config.checkpoint.keep,
        best_mode=config.checkpoint.best_mode,
    )
    checkpoint = _agreed_checkpoint(checkpoints, worker)
    guard = _guard(config, run_store(store, config.name), checkpoint)
    encoder = _encoder(config, prepared, checkpoint, job)
    rows = caption_rows(encoder, prepared.captions, store)
    feed = Feed(config, prepared, rows, worker.device, read=encoder.rows)
    weights = _weights(job, store, checkpoint)
    objective = _objective(config, encoder, worker, weights, feed.words)
    for learner in objective.learners.values():
        learner.scale = guard.rate
    role = Chief if worker.is_chief else Bystander
    chief = role(
        job, config, store, checkpoints, checkpoint, prepared, encoder, feed, worker.world, guard
    )
    return _Opened(checkpoint.step if checkpoint else 0, feed, objective, chief, guard)


def _fenced(store: Store, name: str, job: Job, worker: Worker) -> Store:
    """The store, through which rank 0 writes as long as nobody has taken over.

    Raises:
        Superseded: on every rank, if somebody has already.
    """
    place, attempt = run_store(store, name), job.about["attempt"]
    why = Superseded(f"attempt {attempt} of {name} is not the latest one")
    if worker.is_chief:
        try:
            own = claim_term(place, attempt)
        except Superseded as error:
            why = error
        else:
            worker.agree(True)
            return FencedStore(store, lambda: check(place, own))
    if not worker.agree(False):
        raise why
    return store


def _guard(config: Config, place: Store, checkpoint: Checkpoint | None) -> Guard:
    """What was seen up to this checkpoint, on which all ranks have agreed."""
    step, state = 0, None
    if checkpoint:
        step, state = checkpoint.step, checkpoint.documents["state"].get("guard")
    noted = place.read_json(ROLLBACKS_KEY, []) if config.guard.counts else []
    return Guard(config, step, state, noted)


def _checkpoint_due(config: Config, step: int) -> bool:
    """Every checkpoint.every steps; where the best is kept, or measured aside, also to measure."""
    every = [config.checkpoint.every]
    if config.evaluation.every and (config.checkpoint.best or config.aside):
        every.append(config.evaluation.every)
    return any(step % steps == 0 for steps in every)


def _agreed_checkpoint(checkpoints: Checkpoints, worker: Worker) -> Checkpoint | None:
    """The newest sound checkpoint as rank 0 sees it, loaded by every rank."""
    newest = checkpoints.latest() if worker.is_chief else None
    step = worker.agree(newest.step if newest else -1)
    if step < 0 or newest:
        return newest
    return checkpoints.load(step)


def _encoder(
    config: Config, prepared: Prepared, checkpoint: Checkpoint | None, job: Job
) -> Encoder:
    """As the checkpoint has it, or the driver, or a new one."""
    target = getattr(config.encoder, "target", None)
    if checkpoint:
        encoder = load_encoder(checkpoint.documents["encoder"], target, config.storage)
        if not encoder.trainable:  # it may have to compute rows
            encoder.module.load_state_dict(checkpoint.tensors["encoder_ema"])
        return encoder
    ids = np.concatenate([prepared.captions_of(i) for i in prepared.ids("train")])
    captions = [prepared.captions[i] for i in ids]
    if job.encoder:
        encoder = load_encoder(job.encoder, target, config.storage)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # the first weights are the same on every rank
            encoder = build_encoder(config.encoder, captions, config.storage)
    encoder.scripts = scripts_of(captions)
    return encoder


def _weights(job: Job, store: Store, own: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint to load: the run's own, or the one that it inherits where it stands now.

    Raises:
        RuntimeError: the run has not come so far.
        DamagedCheckpoint: what it inherits is not there, or not whole.
    """
    if job.inherits is None:
        return own
    step = own.step if own else 0
    if step < job.inherits["step"]:
        raise RuntimeError(
            f"{job.config['name']} inherits weights at step {job.inherits['step']}, but its own "
            f"newest checkpoint is of step {step}"
        )
    if step > job.inherits["step"]:  # our own have them already
        return own
    return Checkpoints(store.within(job.inherits["of"]), keep=1).load(step)


def _objective(
    config: Config, encoder: Encoder, worker: Worker, weights: Checkpoint | None, words: int
) -> Objective:
    made = objective_of(config)(config, encoder.module, encoder.dim, worker.device, words)
    if weights:
        made.load_state({k: v for k, v in weights.tensors.items() if k != "history"})
    made.distribute()
    return made
