"""One go at a run: its record on storage, what MLflow is told of it, what its workers are given."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2i_ray import tracking
from t2i_ray.claims import Lease
from t2i_ray.config import Config
from t2i_ray.data import open_prepared
from t2i_ray.runs import RunRecord, begin_attempt, run_store
from t2i_ray.storage import JOB_VARIABLE, Store


@dataclass(frozen=True)
class Attempt:
    """A run that was begun or goes on; ``record.status`` FINISHED means that nothing is to do.

    ``lease`` is to be held while it is at work.
    """

    config: Config
    record: RunRecord
    about: tracking.About
    lease: Lease

    def job(self, encoder: dict[str, Any] | None) -> dict[str, Any]:
        """What every worker is given; ``encoder``: a frozen one's description."""
        return {
            "config": self.config.model_dump(mode="json"),
            "data": self.record.data,
            "encoder": encoder,
            "about": self.about.to_json(),
        }

    def announce(self) -> None:
        """Make the run in MLflow, and say where to look at it."""
        if address := tracking.announce(tracking.resolve(self.config), self.about, timeout=10):
            print(f"{self.config.name}: MLflow at {address}", flush=True)


def begin(
    config: Config,
    store: Store,
    data: str,
    *,
    commit: str = "unknown",
    diff: str = "",
    tags: Mapping[str, str] | None = None,
    patience: float = 0,
) -> Attempt:
    """Begin a run on prepared data, or its next attempt. Raises UserError as begin_attempt."""
    prepared = open_prepared(store, data)
    record = begin_attempt(
        store, config, data=data, digest=prepared.digest, commit=commit, patience=patience
    )
    job = json.loads(os.environ.get(JOB_VARIABLE) or "{}").get("metadata", {})
    submission = job.get("job_submission_id")
    about = tracking.describe(
        config,
        key=record.key,
        attempt=record.attempt,
        dataset=tracking.Dataset(prepared.manifest.kind, prepared.digest, f"{store.uri}/{data}"),
        git_commit=commit,
        git_diff=diff,
        tags={
            "t2i_ray.storage": store.uri,
            **({"t2i_ray.submission": submission} if submission else {}),
            **(tags or {}),
        },
    )
    return Attempt(config, record, about, Lease(run_store(store, config.name), record.attempt))
