"""What each step is fed: pictures cropped and mirrored, a right caption and a wrong one each.

Everything is a function of (seed, step, micro-batch), so any worker can make any piece of any
step, and a resumed run goes on exactly where it was.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data.changed import ChangedCaptions
from t2i_ray.data.prepared import Prepared
from t2i_ray.data.rng import counter_rng
from t2i_ray.data.wrong import WrongCaptions, one_caption


class Piece(NamedTuple):
    """One micro-batch."""

    images: np.ndarray  # uint8 [b, size, size, 3]
    right: np.ndarray  # int64 [b], ids of captions of the pictures
    wrong: np.ndarray  # int64 [b], ids of captions of other pictures, see `WrongCaptions`
    classes: np.ndarray  # int64 [b]; a picture of unknown class has a number of its own, below 0
    changed: list[str] | None  # with data.wrong=one_word, what is wrong instead of `wrong`


class Batches:
    """The endless stream of a split: one permutation of it after another, cut into batches.

    Step s takes positions ``s * batch_size`` to ``(s + 1) * batch_size``, micro-batch m of it the
    m-th of ``micro_batches`` equal pieces.

    Raises:
        UserError: the split is empty, or has no wrong captions of the kind ``data.wrong``.
    """

    def __init__(
        self,
        prepared: Prepared,
        data: config.Data,
        *,
        seed: int,
        batch_size: int,
        micro_batches: int,
        split: str = "train",
    ) -> None:
        self._prepared, self._seed = prepared, seed
        self._size, self._flip = data.image_size, data.flip
        self._batch, self._micro = batch_size, batch_size // micro_batches
        self._ids = prepared.ids(split)
        if not len(self._ids):
            raise UserError(f"data.source: no picture is in the split {split}; add some")
        one_word = data.wrong == "one_word"
        kind = "other_class" if data.wrong == "one_word" else data.wrong
        self._wrong = WrongCaptions(prepared, kind, split)
        self._changed = ChangedCaptions(prepared, split) if one_word else None

    @property
    def fallbacks(self) -> int:
        """How many pictures get a wrong caption of any class, having none as data.wrong has it.

        With ``one_word``: in how many captions no word stands where another may.
        """
        return self._changed.unchanged if self._changed else self._wrong.fallbacks

    def piece(self, step: int, micro: int) -> Piece:
        """Micro-batch ``micro`` of step ``step``, both from 0. A pure function of these."""
        start = step * self._batch + micro * self._micro
        samples = self._samples(np.arange(start, start + self._micro))
        images = self._prepared.images(samples)
        rng = counter_rng(self._seed, "right caption", step, micro)
        right = one_caption(self._prepared.first_caption, samples, rng)
        wrong = self._wrong.draw(samples, counter_rng(self._seed, "wrong caption", step, micro))
        changed = None
        if self._changed:
            changed = self._changed.draw(
                right, wrong, counter_rng(self._seed, "changed word", step, micro)
            )
        known = self._prepared.class_ids[samples]
        classes = np.where(known < 0, -1 - samples, known)
        return Piece(self._cut(images, step, micro), right, wrong, classes, changed)

    def _samples(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids at positions of the endless stream."""
        epochs, places = np.divmod(positions, len(self._ids))
        samples = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order = _permutation(self._seed, epoch, len(self._ids))
            samples[here] = self._ids[order[places[here]]]
        return samples

    def _cut(self, images: np.ndarray, step: int, micro: int) -> np.ndarray:
        """A random crop of each picture, every other one mirrored."""
        count, load = images.shape[:2]
        rng = counter_rng(self._seed, "crop", step, micro)
        corners = rng.integers(0, load - self._size + 1, (count, 2)).tolist()
        mirrored = np.less(rng.random(count), 0.5 * self._flip).tolist()
        out = np.empty((count, self._size, self._size, 3), np.uint8)
        for place, ((top, left), mirror) in enumerate(zip(corners, mirrored, strict=True)):
            crop = images[place, top : top + self._size, left : left + self._size]
            out[place] = crop[:, ::-1] if mirror else crop
        return out


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return counter_rng(seed, "order", epoch).permutation(count)
