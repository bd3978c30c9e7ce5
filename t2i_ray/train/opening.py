"""What a worker's loop works with, as the newest sound checkpoint has it, or anew."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.claims import Superseded, check, claim_term
from t2i_ray.config import Config, UserError
from t2i_ray.data import Prepared, open_prepared
from t2i_ray.encoders import Encoder, build_encoder, caption_rows, load_encoder, scripts_of
from t2i_ray.encoders.saved import read_tower, start_from
from t2i_ray.families import objective_of
from t2i_ray.family import Objective
from t2i_ray.pretrain import Pair, Tower
from t2i_ray.runs import run_store
from t2i_ray.storage import FencedStore, MissingKey, StorageError, Store, open_store, patiently
from t2i_ray.train.bystander import Bystander
from t2i_ray.train.chief import Chief
from t2i_ray.train.feed import Feed
from t2i_ray.train.guards import ROLLBACKS_KEY, Guard
from t2i_ray.train.job import Job
from t2i_ray.train.worker import Worker


class Opened(NamedTuple):
    """All that a worker's loop works with."""

    step: int  # of the checkpoint that it goes on from; 0: from scratch
    feed: Feed
    objective: Objective
    chief: Bystander
    guard: Guard


def open_run(job: Job, config: Config, worker: Worker) -> Opened:
    """As the newest sound checkpoint has it, or anew.

    Raises:
        Superseded: on every rank, if somebody else is at work on the run.
    """
    store = open_store(config.storage)
    place = run_store(store, config.name)
    if worker.is_chief:  # for whom the others wait below; a restart would not help
        patiently(lambda: place.list("claims"), config.cluster.timeout_s / 2)
    store = _fenced(store, config.name, job, worker)
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
    return Opened(checkpoint.step if checkpoint else 0, feed, objective, chief, guard)


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
            fenced = FencedStore(store, lambda: check(place, own))
            _abort_uploads(run_store(fenced, name))
        except Superseded as error:
            why = error
        else:
            worker.agree(True)
            return fenced
    if not worker.agree(False):
        raise why
    return store


def _abort_uploads(place: Store) -> None:
    """Those that earlier ranks 0 were killed in."""
    try:
        for folder in ("checkpoints", "encoder"):  # nobody but rank 0 writes there
            place.abort_uploads(folder)
    # Perhaps these credentials may not, or the server can't: nothing depends on it.
    except (MissingKey, StorageError) as error:
        print(f"warning: uploads of killed processes are not removed: {error}", flush=True)


def _guard(config: Config, place: Store, checkpoint: Checkpoint | None) -> Guard:
    """What was seen up to this checkpoint, on which all ranks have agreed."""
    step, state = 0, None
    if checkpoint:
        step, state = checkpoint.step, checkpoint.documents["state"].get("guard")
    noted = []
    if config.guard.counts:
        with suppress(ValueError):  # damaged: what it says will happen again
            noted = place.read_json(ROLLBACKS_KEY, [])
    return Guard(config, step, state, noted if isinstance(noted, list) else [])


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
    encoder.scripts = scripts_of(captions, least=0.001)  # a stray word teaches nothing
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


def load_pair(config: Config) -> Pair:
    """What `encoder.init_from` holds, as it is there. Raises UserError if it is of no use here."""
    sizes, weights = read_tower(config.encoder, config.storage)
    asked = f"train.pretrained_matching with encoder.init_from={config.encoder.init_from}"
    pixels = 4 * 2 ** len(sizes["channels"])
    if pixels != config.data.image_size:
        raise UserError(
            f"{asked}: its tower sees pictures of {pixels} pixels, and these have "
            f"data.image_size={config.data.image_size}; give one of that size"
        )
    if not sizes["cosine"]:
        raise UserError(
            f"{asked}: it was pretrained with train.pretraining_loss=structured; give one of the "
            "contrastive loss"
        )
    with torch.random.fork_rng(devices=[]):  # the first weights, soon replaced, are drawn
        tower, encoder = Tower(**sizes), start_from(config.encoder, config.storage)
    tower.load_state_dict(weights)
    return Pair(encoder.module, tower)


def _objective(
    config: Config, encoder: Encoder, worker: Worker, weights: Checkpoint | None, words: int
) -> Objective:
    made = objective_of(config)(config, encoder.module, encoder.dim, worker.device, words)
    if config.train.pretrained_matching:
        made.pair = load_pair(config).to(made.device, made.dtype)
    if weights:
        made.load_state({k: v for k, v in weights.tensors.items() if k != "history"})
    made.distribute()
    return made
