"""Measure a run's newest checkpoint, keep the result beside it, and show it in MLflow."""

from __future__ import annotations

import json

import numpy as np

from t2i_ray import tracking
from t2i_ray.checkpoint import Checkpoints
from t2i_ray.config import UserError
from t2i_ray.data import open_prepared
from t2i_ray.evaluate.measure import measure
from t2i_ray.evaluate.reader import ensure_reader, load_reader
from t2i_ray.generate import Pipeline
from t2i_ray.runs import RunRecord, run_store, write_run
from t2i_ray.storage import Store


def evaluate_run(
    store: Store, record: RunRecord, split: str, count: int, patience: float = 20
) -> str:
    """Generate from captions of a split, measure, log as ``<split>/...``; a table for people.

    Measured again, a checkpoint keeps in MLflow what was logged first. An MLflow that does not
    answer is waited for ``patience`` seconds; what it did not take, ``t2i-ray sync`` sends.

    Raises:
        UserError: the run has no checkpoint, or its data no attributes or too few pictures.
    """
    folder = run_store(store, record.name)
    checkpoint = Checkpoints(folder.within("checkpoints"), keep=1).latest()
    if checkpoint is None:
        raise UserError(f"run {record.name!r}: it has no checkpoint yet; let it train on")
    prepared = open_prepared(store, record.data)
    pipeline = Pipeline.from_checkpoint(checkpoint)
    ensure_reader(store, prepared, pipeline.config.data)
    reader = load_reader(store, prepared, pipeline.config.data)

    def generate(captions: np.ndarray) -> np.ndarray:
        texts = [prepared.captions[i] for i in captions]
        return pipeline.images(texts, [int(i) for i in captions])

    measures = measure(reader, prepared, generate, split=split, count=count)
    document = {
        "step": checkpoint.step,
        "metrics": measures.metrics,
        **measures.to_json(),
    }
    folder.write(f"evaluation/{split}.json", json.dumps(document, indent=1).encode())
    snapshot = checkpoint.documents["tracking"]
    shown = tracking.add(
        tracking.resolve(pipeline.config),
        snapshot,
        store,
        checkpoint.step,
        measures.metrics,
        timeout=patience,
    )
    if not shown and record.status != "RUNNING":
        record.published = False
        write_run(store, record)
    return f"{record.name}, step {checkpoint.step}: {measures.table()}" + (
        "" if shown else f"\nMLflow did not take these yet: t2i-ray sync {record.name}"
    )
