"""Measure a checkpoint of a run, keep the result beside it, and show it in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2i_ray import report, tracking
from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import CHEAP, GROUPS, Config, Evaluation, UserError, parse_config
from t2i_ray.data import Prepared, open_prepared
from t2i_ray.evaluate.bootstrap import RESAMPLES
from t2i_ray.evaluate.judges import Judges
from t2i_ray.evaluate.matching import HEAD_TENSORS, of_discriminator
from t2i_ray.evaluate.measure import measure
from t2i_ray.evaluate.pictures import RealPictures, Seeds
from t2i_ray.evaluate.values import Measures
from t2i_ray.generate import MODEL_TENSORS, Pipeline
from t2i_ray.runs import RunRecord, read_run, result_key, run_store, write_run
from t2i_ray.storage import Store

ALL, OWN = "all", "own"
TENSORS = {*MODEL_TENSORS, *HEAD_TENSORS}  # of a checkpoint, that measuring needs


@dataclass(frozen=True)
class Wanted:
    """What to measure, and by what.

    Attributes:
        groups: of config.GROUPS, or "all", or "own": what the run's evaluation.measures names;
            none: those too, and all that cost little.
        inception: path of Inception's weights; None: what the run's evaluation.inception says.
        features: path of a YAML that describes a network of the user's own. Only from here, never
            from a checkpoint: it may name a Python class.
        resamples: behind the intervals; None: bootstrap.RESAMPLES.
        seed: of captions, noise and resamples.
        matcher: a run that pretrained an encoder by matching, for R-precision.
        head: whether the discriminator's own matching head, if it has one, is a matcher too.
        own: the section evaluation to go by; None: the checkpoint's.
    """

    groups: Sequence[str] = ()
    inception: str | None = None
    features: Path | None = None
    resamples: int | None = None
    seed: int = 0
    matcher: str | None = None
    head: bool = True
    own: Evaluation | None = None

    def __post_init__(self) -> None:
        unknown = [group for group in self.groups if group not in (*GROUPS, ALL, OWN)]
        if unknown:
            raise UserError(
                f"--measures {','.join(self.groups)}: no group is called {unknown[0]}; there are "
                f"{', '.join(GROUPS)}, all, and own"
            )


def evaluate_run(
    store: Store,
    record: RunRecord,
    split: str,
    count: int,
    patience: float = 20,
    wanted: Wanted | None = None,
    *,
    step: int | None = None,
    real: RealPictures | None = None,
) -> str:
    """Generate from captions of a split, measure, log as ``<split>/...``; a table for people.

    Measured again, a checkpoint keeps in MLflow what was logged first, and in the document what
    was not measured this time. An MLflow that does not answer is waited for ``patience`` seconds;
    what it did not take, ``t2i-ray sync`` sends. ``step`` is the checkpoint's, whose document is
    one of its own (None: the newest that a run with guard.action=rollback won't go back behind).
    ``real`` are the split's real pictures, if somebody keeps them.

    Raises:
        UserError: the run has no checkpoint, its data too few pictures, or what is wanted can't
            be measured on it.
        DamagedCheckpoint: that of this step is not there, or not whole.
    """
    wanted = wanted or Wanted()
    folder = run_store(store, record.name)
    checkpoint = _checkpoint(folder, record.name, step)
    prepared = open_prepared(store, record.data)
    measures = _measured(store, checkpoint, prepared, split, count, wanted, real)
    _keep(folder, result_key(split, step), checkpoint.step, measures, prepared)
    shown = tracking.add(
        tracking.resolve(parse_config(checkpoint.documents["config"])),
        checkpoint.documents["tracking"],
        store,
        {checkpoint.step: measures.metrics},
        timeout=patience,
        attempt=record.attempt,
        files=[result_key(split, step)],  # with intervals, counts and seeds
    )
    newest = read_run(store, record.name)
    if not shown and newest and newest.status != "RUNNING":
        record.published = newest.published = False
        write_run(store, newest)
    return f"{record.name}, step {checkpoint.step}: {measures.table()}" + (
        "" if shown else f"\nMLflow did not take these yet: t2i-ray sync {record.name}"
    )


def _checkpoint(folder: Store, name: str, step: int | None) -> Checkpoint:
    checkpoints, parts = Checkpoints(folder.within("checkpoints"), keep=1), TENSORS
    if step is not None:
        return checkpoints.load(step, only=parts)
    checkpoint = checkpoints.latest(only=parts)
    if checkpoint and (sound := _sound(checkpoint)) != checkpoint.step:
        checkpoint = checkpoints.load(sound, only=parts) if sound else None
    if checkpoint is None:
        raise UserError(f"run {name!r}: it has no sound checkpoint yet; let it train on")
    return checkpoint


def _sound(checkpoint: Checkpoint) -> int:
    """The newest step up to which the run can't be gone back over; 0: none. See train/guards.py."""
    config = parse_config(checkpoint.documents["config"])
    if not config.guard.counts or checkpoint.step == config.train.steps:
        return checkpoint.step
    return int(checkpoint.documents["state"]["guard"]["good"])


def _measured(
    store: Store,
    checkpoint: Checkpoint,
    prepared: Prepared,
    split: str,
    count: int,
    wanted: Wanted,
    real: RealPictures | None,
) -> Measures:
    pipeline = Pipeline.from_checkpoint(checkpoint)
    config = _with(pipeline.config, wanted)
    judges = Judges.find(store, prepared, config, wanted.features)
    asked = _asked(wanted, config)
    if wanted.head and "r_precision" in asked and (head := of_discriminator(checkpoint)):
        judges = replace(judges, matchers=[head, *judges.matchers])
    lacking = judges.lacking()
    if absent := [group for group in wanted.groups if group in lacking]:
        raise UserError(f"--measures {absent[0]}: {lacking[absent[0]]}")
    seeds = Seeds(len(prepared.captions), wanted.seed)

    def generate(captions: np.ndarray) -> np.ndarray:
        return pipeline.images([prepared.captions[i] for i in captions], seeds(captions))

    measures = measure(
        judges.reader,
        prepared,
        generate,
        split=split,
        count=count,
        seed=wanted.seed,
        chosen=judges.able(asked),
        models=judges.models,
        matchers=judges.matchers,
        data=config.data,
        resamples=RESAMPLES if wanted.resamples is None else wanted.resamples,
        real=real,
    )
    return replace(measures, models=judges.about)


def _with(config: Config, wanted: Wanted) -> Config:
    """The run's config with the judges that are given besides its own."""
    given = {"inception": wanted.inception, "matcher": wanted.matcher}
    own = wanted.own or config.evaluation
    evaluation = own.model_copy(update={k: v for k, v in given.items() if v})
    return config.model_copy(update={"evaluation": evaluation})


def _asked(wanted: Wanted, config: Config) -> set[str]:
    """The groups to measure, as far as they can be."""
    own = config.evaluation.measures
    if ALL in wanted.groups:
        return set(GROUPS)
    if not wanted.groups:
        return {*CHEAP, *own}
    return {*wanted.groups, *(own if OWN in wanted.groups else ())} - {OWN}


def _keep(folder: Store, key: str, step: int, measures: Measures, prepared: Prepared) -> None:
    """Write the document, and the pictures nearest to training pictures."""
    document = {"step": step, "metrics": measures.metrics, **measures.to_json()}
    folder.write_json(key, _joined(folder.read_json(key, {}), document))
    if found := measures.nearest:
        captions = [prepared.captions[pair.caption] for pair in found.pairs[: len(found.shown)]]
        grid = report.sample_grid(np.concatenate(found.shown), captions)
        folder.write(f"{key.removesuffix('.json')}_nearest.png", grid)


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new document, with what only the old one of the same pictures has."""
    same = ("step", "split", "count", "seed")
    if "values" not in old or any(old.get(name) != new[name] for name in same):
        return new
    names = {value["name"] for value in new["values"]}
    kept = [value for value in old["values"] if value["name"] not in names]
    return {
        **new,
        "metrics": {**old["metrics"], **new["metrics"]},
        "values": new["values"] + kept,
        "agreements": new["agreements"] or old["agreements"],
        "mean": new["mean"] if new["agreements"] else old["mean"],
        "nearest": new["nearest"] or old["nearest"],
        "nearest_in": new["nearest_in"] or old.get("nearest_in"),
        "models": {**old["models"], **new["models"]},
    }


def chosen_groups(text: str | None) -> list[str]:
    """Groups from ``a,b,c``; none of None."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]
