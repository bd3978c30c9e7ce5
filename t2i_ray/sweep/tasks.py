"""What a trial's process is given: plain JSON. Data and embeddings are made once for all trials."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from t2i_ray import tracking
from t2i_ray.config import Config, Sweep, UserError, names_taken
from t2i_ray.data import open_prepared
from t2i_ray.launch import (
    make_shared_once,
    prepare_data,
    with_pinned_encoder,
    worker_environment,
)
from t2i_ray.storage import Store
from t2i_ray.sweep.space import Trial, config_of, setting


@dataclass(frozen=True)
class Task:
    """A trial with all that its process is given."""

    trial: Trial
    document: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.trial.name


Make = Callable[..., Task]  # from a trial, and what else its process is to be given


class Tasks:
    """Makes tasks; what several of them share is prepared when it is asked for first.

    Args:
        store: the storage.
        sweep: the sweep.
        commit: git's, for the records.
    """

    def __init__(self, store: Store, sweep: Sweep, commit: str) -> None:
        self._store = store
        self._sweep = sweep
        self._commit = commit
        self._made: dict[str, Any] = {}
        self._embedded_before = self._embeddings()
        self.parent: dict[str, str] = {}  # tags that make a run the sweep's child

    def prepare(self) -> None:
        """Make all that any trial may share, before the first one starts.

        Raises:
            UserError: the data or an encoder can't be had, or nobody measures search.metric there.
        """
        space = self._sweep.space
        keys = [k for k in space if k.split(".")[0] in ("data", "encoder") and space[k].labelled()]
        for labels in itertools.product(*(space[key].labelled() for key in keys)):
            point = setting({key: space[key] for key in keys}, dict(zip(keys, labels, strict=True)))
            self._shared(self._settled(config_of(self._sweep, point.values)))

    def __call__(self, trial: Trial, **more: Any) -> Task:
        """The task of a trial; ``more`` goes with it."""
        trial = replace(trial, config=self._settled(trial.config))
        data, encoder = self._shared(trial.config)
        confirm = self._sweep.search.confirm
        return Task(
            trial,
            {
                "config": trial.config.model_dump(mode="json"),
                "data": data,
                "encoder": encoder,
                "commit": self._commit,
                "env": worker_environment(trial.config),
                # The search's scheduler has no say in the second stage.
                "metric": self._sweep.search.metric if trial.stage == "search" else None,
                "test": confirm.samples if confirm and trial.stage == "confirm" else 0,
                "tags": {
                    **self.parent,
                    tracking.SWEEP_TAG: self._sweep.name,
                    tracking.SETTING_TAG: trial.setting.label,
                    tracking.VALUES_TAG: json.dumps(
                        {
                            key: trial.setting.labels[key] if isinstance(value, dict) else value
                            for key, value in trial.setting.values.items()
                        }
                    ),
                    tracking.STAGE_TAG: trial.stage,
                },
                **more,
            },
        )

    def summary(self) -> str:
        """How often captions were embedded."""
        frozen = [key for key in self._made if key.startswith('{"embedded"')]
        if not frozen:
            return "no frozen encoder"
        new = len(self._embeddings() - self._embedded_before)
        return (
            f"{len(frozen)} frozen encoders, each embedding its captions once for all trials: "
            f"{new} computed now, {len(frozen) - new} found"
        )

    def _embeddings(self) -> set[str]:
        return {key for key in self._store.list("embeddings") if key.endswith("manifest.json")}

    def _settled(self, config: Config) -> Config:
        """With the content of a pretrained encoder, which is read once, pinned."""
        encoder = config.encoder.model_dump(mode="json")
        pinned = self._once({"pinned": encoder}, lambda: with_pinned_encoder(config).encoder)
        return config.model_copy(update={"encoder": pinned})

    def _shared(self, config: Config) -> tuple[str, dict[str, Any] | None]:
        of_data = config.data.model_dump(mode="json")
        data = self._once(of_data, lambda: self._prepared(config))
        section = config.encoder
        encoder = section.model_dump(mode="json") if section.outside else None
        description = self._once(
            {"embedded" if section.frozen else "shared": [data, encoder]},
            lambda: self._made_shared(config, data),
        )
        return data, description

    def _once(self, what: dict[str, Any], make: Callable[[], Any]) -> Any:
        key = json.dumps(what, sort_keys=True)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _prepared(self, config: Config) -> str:
        data = prepare_data(config, self._store)
        self._check(config, open_prepared(self._store, data).attributes)
        return data

    def _made_shared(self, config: Config, data: str) -> dict[str, Any] | None:
        description = make_shared_once(config, data)
        from t2i_ray import evaluate

        prepared = open_prepared(self._store, data)
        if prepared.attributes:
            accuracy = evaluate.load_reader(self._store, prepared, config.data).accuracy
            readable = [name for name, share in accuracy.items() if share >= evaluate.READABLE]
            self._check(config, readable)
        return description

    def _check(self, config: Config, attributes: Collection[str]) -> None:
        evaluation, search = config.evaluation, self._sweep.search
        measured = names_taken(evaluation.measures, attributes, evaluation.models)
        known = [f"val/{name}" for name in measured]
        for key, names in (("metric", [search.metric]), ("also", list(search.also))):
            for name in names:
                if name.startswith("val/") and name not in known:
                    raise UserError(
                        f"search.{key}={name}: nobody measures that on this data, or not well "
                        f"enough; there are {', '.join(known)}"
                    )
