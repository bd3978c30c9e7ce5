"""Measure a run's newest checkpoint, keep the result beside it, and show it in MLflow."""

from __future__ import annotations

import json

import numpy as np

from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.config import Config, UserError
from t2i_ray.data import open_prepared
from t2i_ray.evaluate.measure import Measures, measure
from t2i_ray.evaluate.reader import ensure_reader, load_reader
from t2i_ray.generate import Pipeline
from t2i_ray.runs import RunRecord, run_store
from t2i_ray.storage import Store
from t2i_ray.tracking import About, Tracker, resolve


def evaluate_run(store: Store, record: RunRecord, split: str, count: int) -> str:
    """Generate from captions of a split, measure, log as ``<split>/...``; a table for people.

    Measured again, a checkpoint keeps in MLflow what was logged first.

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
    shown = _show(store, checkpoint, pipeline.config, measures)
    return f"{record.name}, step {checkpoint.step}: {measures.table()}" + (
        "" if shown else "\nMLflow did not take these; evaluate again when it is back"
    )


def _show(store: Store, checkpoint: Checkpoint, config: Config, measures: Measures) -> bool:
    """Log to MLflow, under the run; whether it is there. What it has of this step stays."""
    destination, snapshot = resolve(config), checkpoint.documents["tracking"]
    if destination is None or not snapshot:
        return True
    about = About.from_json(snapshot["about"])
    tracker = Tracker(destination, about, store, owner=False)
    tracker.log(checkpoint.step, measures.metrics)
    tracker.commit()
    shown = tracker.flush(timeout=60)
    tracker.close()
    return shown
