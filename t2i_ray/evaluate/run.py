"""Measure a run's newest checkpoint, keep the result beside it, and show it in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2i_ray import report, tracking
from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import CHEAP, GROUPS, INCEPTION, OwnFeatures, UserError, read_yaml, validate
from t2i_ray.data import Prepared, open_prepared
from t2i_ray.evaluate.bootstrap import RESAMPLES
from t2i_ray.evaluate.distances import check_libraries
from t2i_ray.evaluate.features import FeatureModel, load_own
from t2i_ray.evaluate.inception import OfInception
from t2i_ray.evaluate.matching import (
    HEAD_TENSORS,
    PRETRAINED_TENSORS,
    Matcher,
    of_discriminator,
    of_pretrained,
)
from t2i_ray.evaluate.measure import measure
from t2i_ray.evaluate.reader import Reader, ensure_reader, load_reader
from t2i_ray.evaluate.values import Measures
from t2i_ray.generate import MODEL_TENSORS, Pipeline
from t2i_ray.runs import RunRecord, read_run, run_store, write_run
from t2i_ray.storage import Store

ALL = "all"


@dataclass(frozen=True)
class Wanted:
    """What to measure, and by what.

    Attributes:
        groups: of config.GROUPS, or "all"; none: those that cost little, and what the run's own
            evaluation.measures names.
        inception: path of Inception's weights; None: what the run's evaluation.inception says.
        features: path of a YAML that describes a network of the user's own. Only from here, never
            from a checkpoint: it may name a Python class.
        resamples: behind the intervals; None: bootstrap.RESAMPLES.
        seed: of captions, noise and resamples.
        matcher: a run that pretrained an encoder by matching, for R-precision.
    """

    groups: Sequence[str] = ()
    inception: str | None = None
    features: Path | None = None
    resamples: int | None = None
    seed: int = 0
    matcher: str | None = None

    def __post_init__(self) -> None:
        unknown = [group for group in self.groups if group not in (*GROUPS, ALL)]
        if unknown:
            raise UserError(
                f"--measures {','.join(self.groups)}: no group is called {unknown[0]}; there are "
                f"{', '.join(GROUPS)}, and all"
            )


def evaluate_run(
    store: Store,
    record: RunRecord,
    split: str,
    count: int,
    patience: float = 20,
    wanted: Wanted | None = None,
) -> str:
    """Generate from captions of a split, measure, log as ``<split>/...``; a table for people.

    Measured again, a checkpoint keeps in MLflow what was logged first, and in the document what
    was not measured this time. An MLflow that does not answer is waited for ``patience`` seconds;
    what it did not take, ``t2i-ray sync`` sends.

    Raises:
        UserError: the run has no checkpoint, its data too few pictures, or what is wanted can't
            be measured on it.
    """
    wanted = wanted or Wanted()
    folder = run_store(store, record.name)
    checkpoint = _newest(folder, (*MODEL_TENSORS, *HEAD_TENSORS))
    if checkpoint is None:
        raise UserError(f"run {record.name!r}: it has no checkpoint yet; let it train on")
    prepared = open_prepared(store, record.data)
    pipeline = Pipeline.from_checkpoint(checkpoint)
    tools = Tools.find(wanted, checkpoint, pipeline, prepared, store)
    measures = measure(
        tools.reader(store, prepared, pipeline),
        prepared,
        Draw(pipeline, prepared, wanted.seed),
        split=split,
        count=count,
        seed=wanted.seed,
        chosen=tools.groups,
        models=tools.models,
        matchers=tools.matchers,
        data=pipeline.config.data,
        resamples=RESAMPLES if wanted.resamples is None else wanted.resamples,
    )
    measures = replace(measures, models=tools.about)
    _keep(folder, checkpoint.step, measures, prepared)
    shown = tracking.add(
        tracking.resolve(pipeline.config),
        checkpoint.documents["tracking"],
        store,
        checkpoint.step,
        measures.metrics,
        timeout=patience,
    )
    newest = read_run(store, record.name)
    if not shown and newest and newest.status != "RUNNING":
        record.published = newest.published = False
        write_run(store, newest)
    return f"{record.name}, step {checkpoint.step}: {measures.table()}" + (
        "" if shown else f"\nMLflow did not take these yet: t2i-ray sync {record.name}"
    )


def _newest(folder: Store, parts: tuple[str, ...]) -> Checkpoint | None:
    """A run's newest checkpoint, of its tensors only these parts."""
    return Checkpoints(folder.within("checkpoints"), keep=1).latest(only=parts)


class Draw:
    """Pictures of caption ids; a caption that comes again is drawn with another noise."""

    def __init__(self, pipeline: Pipeline, prepared: Prepared, seed: int) -> None:
        self._pipeline, self._captions = pipeline, prepared.captions
        self._turns: Counter[int] = Counter()
        self._start = seed << 20  # more turns than anybody takes

    def __call__(self, captions: np.ndarray) -> np.ndarray:
        """Caption ids int64 [n] to uint8 [n, S, S, 3]."""
        seeds = []
        for caption in captions.tolist():
            turn = self._start + self._turns[caption]
            seeds.append(caption + turn * len(self._captions))
            self._turns[caption] += 1
        return self._pipeline.images([self._captions[i] for i in captions], seeds)


@dataclass(frozen=True)
class Tools:
    """The groups that are measured, and by what."""

    groups: list[str]
    models: list[FeatureModel]  # besides the reader
    matchers: list[Matcher]
    about: dict[str, str]  # name of a model -> what it is

    @classmethod
    def find(
        cls,
        wanted: Wanted,
        checkpoint: Checkpoint,
        pipeline: Pipeline,
        prepared: Prepared,
        store: Store,
    ) -> Tools:
        """What is wanted, if there is all that it needs. Raises UserError."""
        evaluation = pipeline.config.evaluation
        inception = wanted.inception or evaluation.inception
        head = of_discriminator(checkpoint)
        matchers: list[Matcher] = [head] if head else []
        if name := wanted.matcher:
            pretrained = _newest(run_store(store, name), PRETRAINED_TENSORS)
            matchers.append(of_pretrained(name, pretrained))
        lacking = _lacking(
            attributes=bool(prepared.attributes),
            features=bool(prepared.attributes or inception or wanted.features),
            inception=bool(inception),
            matching=bool(matchers),
        )
        asked = GROUPS if ALL in wanted.groups else wanted.groups
        exact = bool(wanted.groups) and ALL not in wanted.groups
        asked = asked or [group for group in GROUPS if group in {*CHEAP, *evaluation.measures}]
        if exact and (absent := [group for group in asked if lacking.get(group)]):
            raise UserError(f"--measures {absent[0]}: {lacking[absent[0]]}")
        groups = [group for group in asked if not lacking.get(group)]
        if not groups:
            raise UserError(f"data.source.kind={pipeline.config.data.source.kind}: {NOTHING}")
        check_libraries(groups)
        models: list[FeatureModel] = []
        about = {}
        if inception:
            loaded = OfInception(inception)
            models.append(loaded)
            about[INCEPTION] = f"weights {inception}, sha256 {loaded.sha256}"
        if wanted.features:
            own = validate(OwnFeatures, read_yaml(wanted.features))
            models.append(load_own(own))
            about[own.name] = f"weights {own.weights}" + (f" in {own.target}" if own.target else "")
        if models and "frechet" in groups:
            check_libraries(["kernel"])  # it is the same library's
        return cls(groups, models, matchers, about)

    def reader(self, store: Store, prepared: Prepared, pipeline: Pipeline) -> Reader | None:
        """The reader of the data, made if need be; None if there are no attributes to read."""
        if not prepared.attributes:
            return None
        ensure_reader(store, prepared, pipeline.config.data)
        return load_reader(store, prepared, pipeline.config.data)


NOTHING = (
    "no attributes in this data: nothing to agree with, and no reader to take distances by; "
    "evaluate works on synthetic-flowers, or a folder with attribute columns, or with --inception "
    "or --features"
)


def _lacking(
    *, attributes: bool, features: bool, inception: bool, matching: bool
) -> dict[str, str]:
    """Groups that can't be measured, and why."""
    lacking = {}
    if not attributes:
        lacking["agreement"] = "no attributes in this data: nothing to agree with"
    if not features:
        by_features = {*GROUPS} - {"agreement", "inception_score", "r_precision"}
        lacking |= dict.fromkeys(by_features, NOTHING)
    if not inception:
        lacking["inception_score"] = "give Inception's weights by --inception"
    if not matching:
        lacking["r_precision"] = (
            "this run's discriminator has no matching head, as train.matching above 0 gives one; "
            "give --matcher a run of 't2i-ray pretrain-encoder'"
        )
    return lacking


def _keep(folder: Store, step: int, measures: Measures, prepared: Prepared) -> None:
    """Write the document, and the pictures nearest to training pictures."""
    key = f"evaluation/{measures.split}.json"
    document = {"step": step, "metrics": measures.metrics, **measures.to_json()}
    folder.write_json(key, _joined(folder.read_json(key, {}), document))
    if measures.pairs:
        captions = [prepared.captions[pair.caption] for pair in measures.pairs]
        images = [image for pair in measures.pairs for image in (pair.generated, pair.training)]
        grid = report.sample_grid(np.stack(images), captions)
        folder.write(f"evaluation/{measures.split}_nearest.png", grid)


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
        "models": {**old["models"], **new["models"]},
    }


def chosen_groups(text: str | None) -> list[str]:
    """Groups from ``a,b,c``; none of None."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]
