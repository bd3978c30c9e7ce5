"""How far noise changes a caption's picture, and how near pictures come to training pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from t2i_ray.evaluate.features import FeatureModel
from t2i_ray.evaluate.pictures import NOISES, Pictures

NEAR = 0.01  # of real pictures are nearer to a training picture than this quantile says
PART = 1024  # rows whose distances are held at a time
SHOWN = 8  # nearest pairs to look at


def mean_distances(rows: np.ndarray, group: int) -> np.ndarray:
    """Mean distance of the pairs within each group of so many rows: [n, d] to [n / group]."""
    groups = torch.split(torch.from_numpy(rows), group)
    return np.array([float(torch.pdist(each).mean()) for each in groups])


def diversity(pictures: Pictures, model: FeatureModel) -> tuple[np.ndarray, float]:
    """Mean distance between pictures of one caption, per caption; and between real pictures.

    Returns:
        float64 [captions], and the mean distance of at most 1000 real pictures from each other.
    """
    several = mean_distances(pictures.features(model, "several").rows, NOISES)
    real = pictures.features(model, "real").rows[:1000]
    return several, float(mean_distances(real, len(real))[0])


@dataclass(frozen=True)
class Pair:
    """A generated picture, by its caption, and the training picture nearest to it."""

    caption: int
    sample: int
    distance: float


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training picture, plain or mirrored."""

    model: str  # in whose features
    generated: np.ndarray  # float64 [n]
    real: np.ndarray  # float64 [r], of the split's real pictures
    searched: int  # training pictures
    pairs: list[Pair]  # of all generated ones, the nearest first
    shown: np.ndarray  # the first pairs' pictures, uint8 [SHOWN, 2, S, S, 3]

    @property
    def threshold(self) -> float:
        """The distance within which one real picture of a hundred lies."""
        return float(np.quantile(self.real, NEAR))

    @property
    def memorised(self) -> np.ndarray:
        """Whether each generated picture is as near as that: bool [n]."""
        near: np.ndarray = self.generated <= self.threshold
        return near


def nearest(pictures: Pictures, model: FeatureModel) -> Nearest:
    """Look for the nearest training picture of every generated and every real picture."""
    ways = ["training", "mirrored"] if pictures.data.flip else ["training"]
    searched = np.concatenate([pictures.features(model, way).rows for way in ways])
    distance, which = _nearest(pictures.features(model, "generated").rows, searched)
    real, _ = _nearest(pictures.features(model, "real").rows, searched)
    order, count = np.argsort(distance, kind="stable"), len(pictures.training_ids)
    samples = pictures.training_ids[which % count]
    pairs = [
        Pair(int(pictures.captions[at]), int(samples[at]), float(distance[at])) for at in order
    ]
    first = order[:SHOWN]
    mirrored = which[first, None, None, None] >= count
    cut = pictures.cut(samples[first])
    training = np.where(mirrored, cut[:, :, ::-1], cut)
    shown = np.stack([pictures.generated[first], training], axis=1)
    return Nearest(model.name, distance, real, count, pairs, shown)


def _nearest(rows: np.ndarray, searched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to, and place of, the nearest row searched: float64 [n], int64 [n]."""
    others = torch.from_numpy(searched)
    found = [torch.cdist(part, others).min(1) for part in torch.split(torch.from_numpy(rows), PART)]
    return (
        torch.cat([each.values for each in found]).numpy(),
        torch.cat([each.indices for each in found]).numpy(),
    )
