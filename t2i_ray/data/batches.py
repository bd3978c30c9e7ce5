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
from t2i_ray.data.prepared import Prepared
from t2i_ray.data.rng import counter_rng

_TRIES = 32  # redraws of a wrong caption that fits after all, before the fitting are ruled out


class Piece(NamedTuple):
    """One micro-batch."""

    images: np.ndarray  # uint8 [b, size, size, 3]
    right: np.ndarray  # int64 [b], ids of captions of the pictures
    wrong: np.ndarray  # int64 [b], ids of captions of other pictures


class Batches:
    """The endless stream of a split: one permutation of it after another, cut into batches.

    Step s takes positions ``s * batch_size`` to ``(s + 1) * batch_size``, micro-batch m of it the
    m-th of ``micro_batches`` equal pieces.

    Raises:
        UserError: the split is empty, or all of its captions say the same.
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
        self._first = prepared.first_caption
        self._most = int(np.diff(self._first).max())
        texts: dict[str, int] = {}  # equal captions share a number
        self._text = np.array([texts.setdefault(text, len(texts)) for text in prepared.captions])
        mine = np.concatenate([prepared.captions_of(sample) for sample in self._ids])
        self._captions = mine.astype(np.int64)
        if len(np.unique(self._text[mine])) < 2:
            raise UserError(
                f"data.source: all captions of the split {split} are the same, so none can be "
                "wrong; give pictures captions of their own"
            )
        self._by_class()

    def piece(self, step: int, micro: int) -> Piece:
        """Micro-batch ``micro`` of step ``step``, both from 0. A pure function of these."""
        start = step * self._batch + micro * self._micro
        samples = self._samples(np.arange(start, start + self._micro))
        images = self._prepared.images(samples)
        rng = counter_rng(self._seed, "right caption", step, micro)
        right = self._caption(samples, rng)
        wrong = self._wrong(samples, counter_rng(self._seed, "wrong caption", step, micro))
        return Piece(self._cut(images, step, micro), right, wrong)

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

    def _caption(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One caption of each sample, all equally likely."""
        first = self._first[samples]
        chosen: np.ndarray = first + rng.integers(0, self._first[samples + 1] - first)
        return chosen

    def _by_class(self) -> None:
        """Sort the split by class, so that "any sample of another class" is one draw.

        A sample without a class is a class of its own; so is each if there is one class only.
        """
        known = self._prepared.class_ids[self._ids]
        alone = -1 - np.arange(len(self._ids))
        classes = np.where(known < 0, alone, known)
        if (classes == classes[0]).all():
            classes = alone
        order = np.argsort(classes, kind="stable")
        self._sorted = self._ids[order]
        ranked = classes[order]
        # In that order a sample's class lies from its start to its stop; both by sample id.
        self._start = np.zeros(len(self._prepared.class_ids), np.int64)
        self._stop = self._start.copy()
        self._start[self._ids] = np.searchsorted(ranked, classes, side="left")
        self._stop[self._ids] = np.searchsorted(ranked, classes, side="right")

    def _wrong(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A caption of a sample of another class each, whose text is none of the sample's own."""
        captions = self._first[samples, None] + np.arange(self._most)
        own = self._text[np.minimum(captions, self._first[samples + 1, None] - 1)]
        start, stop = self._start[samples], self._stop[samples]
        wrong = np.empty(len(samples), np.int64)
        bad = np.arange(len(samples))
        for _ in range(_TRIES):
            draw = rng.integers(0, len(self._sorted) - (stop - start)[bad])
            draw += np.where(draw >= start[bad], (stop - start)[bad], 0)
            wrong[bad] = self._caption(self._sorted[draw], rng)
            bad = bad[(self._text[wrong[bad], None] == own[bad]).any(1)]
            if not len(bad):
                return wrong
        for place in bad.tolist():  # nearly all captions are the same: any other, of any class
            others = self._captions[~np.isin(self._text[self._captions], own[place])]
            if not len(others):
                raise UserError(
                    f"data.source: sample {samples[place]} has every caption that there is, so "
                    "none is wrong for it; give pictures captions of their own"
                )
            wrong[place] = rng.choice(others)
        return wrong


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return counter_rng(seed, "order", epoch).permutation(count)
