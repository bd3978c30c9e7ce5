"""What rank 0 draws while a run trains, by the averaged generator."""

from __future__ import annotations

import numpy as np
import torch

from t2i_ray import report
from t2i_ray.data import Prepared
from t2i_ray.family import Family, Objective
from t2i_ray.generate import to_uint8
from t2i_ray.train.feed import Feed

GRID_CAPTIONS = 8
GRID_NOISES = 6
STATISTICS_BATCHES = 16


class Drawing:
    """Of one run.

    Args:
        prepared: the data.
        feed: of the training split.
    """

    def __init__(self, prepared: Prepared, feed: Feed) -> None:
        self._prepared, self._feed = prepared, feed
        self._refreshed = -1  # the step whose averaged generator has its statistics

    def refresh(self, step: int, objective: Objective) -> None:
        """Estimate the averaged generator's BatchNorm statistics on training captions."""
        if step == self._refreshed or not isinstance(objective, Family):
            return
        self._refreshed = step
        pieces = [self._feed.piece(i, 0) for i in range(STATISTICS_BATCHES)]
        objective.refresh_ema_statistics(pieces)

    def grid(self, step: int, family: Family) -> bytes:
        """A PNG of fixed captions by fixed noises."""
        captions, images = self._grid(step, family)
        return report.sample_grid(to_uint8(images), [self._prepared.captions[i] for i in captions])

    def diversity(self, step: int, family: Family) -> float:
        """Standard deviation of the grid's pictures, whose numbers go from -1 to 1."""
        return self._grid(step, family)[1].double().std(dim=0).mean().item()

    def _grid(self, step: int, family: Family) -> tuple[np.ndarray, torch.Tensor]:
        """Captions of the sample grid [c], and its pictures [c * GRID_NOISES, 3, S, S]."""
        captions = self._captions()
        noise = self._feed.noise("grid", count=GRID_NOISES)
        self.refresh(step, family)
        rows = self._feed.rows(np.repeat(captions, GRID_NOISES))
        return captions, family.sample(noise.repeat(len(captions), 1), rows)

    def _captions(self) -> np.ndarray:
        """The first captions of pictures spread over the validation split, or else training."""
        ids = self._prepared.ids("val")
        ids = ids if len(ids) else self._prepared.ids("train")
        chosen = ids[np.linspace(0, len(ids) - 1, min(GRID_CAPTIONS, len(ids))).astype(int)]
        return np.array([self._prepared.captions_of(sample)[0] for sample in chosen])
