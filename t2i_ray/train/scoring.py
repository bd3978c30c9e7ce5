"""What rank 0 measures on the validation split while a run trains."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from t2i_ray.config import Config
from t2i_ray.data import Prepared
from t2i_ray.family import Family, Objective
from t2i_ray.generate import noise_of, to_uint8
from t2i_ray.storage import Store, patiently
from t2i_ray.train.feed import Feed

if TYPE_CHECKING:
    from t2i_ray.evaluate import Judges, RealPictures

SPLIT = "val"


class Scoring:
    """Of one run; what it is measured with is read at the first time.

    Args:
        config: of the run.
        root: of the storage.
        prepared: the data.
        feed: of the training split.
    """

    def __init__(self, config: Config, root: Store, prepared: Prepared, feed: Feed) -> None:
        self._config, self._root = config, root
        self._prepared, self._feed = prepared, feed

    def scores(self, objective: Objective) -> dict[str, float]:
        """By ``val/...``; a family's averaged generator must have its statistics."""
        if isinstance(objective, Family):
            return self._measures(objective)
        feed = self._held_out
        count = max(1, self._config.evaluation.samples // feed.piece_size)
        pieces = (feed.piece(i, 0) for i in range(count))
        return {f"{SPLIT}/{name}": value for name, value in objective.measure(pieces).items()}

    def _measures(self, family: Family) -> dict[str, float]:
        from t2i_ray import evaluate

        judges, groups, real = self._judges
        seeds = evaluate.Seeds(len(self._prepared.captions))

        def generate(captions: np.ndarray) -> np.ndarray:
            noise = noise_of(seeds(captions), self._config.model.noise_dim)
            return to_uint8(family.sample(noise, self._feed.rows(captions)))

        return evaluate.measure(
            judges.reader,
            self._prepared,
            generate,
            split=SPLIT,
            count=self._config.evaluation.samples,
            chosen=groups,
            models=judges.models,
            matchers=judges.matchers,
            data=self._config.data,
            real=real,
        ).metrics

    @cached_property
    def _held_out(self) -> Feed:
        return self._feed.of_split(SPLIT)

    @cached_property
    def _judges(self) -> tuple[Judges, list[str], RealPictures]:
        from t2i_ray import evaluate

        judges = patiently(  # the other workers wait for rank 0
            lambda: evaluate.Judges.find(self._root, self._prepared, self._config),
            self._config.cluster.timeout_s / 2,
        )
        groups = judges.able(self._config.evaluation.measures)
        return judges, groups, evaluate.RealPictures(self._prepared, self._config.data, SPLIT)
