"""Captions that are wrong for a picture in one word only."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from scipy import sparse

from t2i_ray.data.prepared import Prepared

_TRIES = 32  # redraws of a word that may be true of the picture
_RARELY = 0.5  # times as often as by chance


class ChangedCaptions:
    """Captions of a split with one word replaced by another that stands between the same two.

    Whatever else D could tell the two apart by is the same, as in FOIL (Shekhar et al. 2017,
    "FOIL it! Find One mismatch between Image and Language caption"). What may stand in a place is
    not given by hand: any word that some caption of the split has between the same neighbours.
    It must contradict the picture, so no caption of the picture has it; nor may it be one that
    goes with the word that it replaces, as synonyms do, and words that say nothing of a picture:
    the two are in captions of one picture less than half as often as if they had nothing to do
    with each other.

    Attributes:
        unchanged: how many captions have no word in whose place another stands anywhere.
    """

    def __init__(self, prepared: Prepared, split: str) -> None:
        self._captions, self._first_caption = prepared.captions, prepared.first_caption
        self._picture = np.repeat(
            np.arange(len(self._first_caption) - 1), np.diff(self._first_caption)
        )
        numbers: dict[str, int] = {}
        words, starts, ends = [], [], []
        counts = np.zeros(len(self._captions), np.int64)
        ids = np.concatenate([prepared.captions_of(sample) for sample in prepared.ids(split)])
        for caption in np.sort(ids).tolist():
            found = list(re.finditer(r"\w+", self._captions[caption]))
            counts[caption] = len(found)
            words += [numbers.setdefault(one[0].lower(), len(numbers) + 1) for one in found]
            starts += [one.start() for one in found]
            ends += [one.end() for one in found]
        self._words = np.array(words, np.int64)  # of all captions, one after the other
        self._starts, self._ends = np.array(starts, np.int32), np.array(ends, np.int32)
        self._first = np.concatenate([[0], counts.cumsum()])  # word of each caption
        self._spelt = ["", *numbers]
        self._find_others()
        self._find_pictures(counts, len(prepared.class_ids))
        # Where something else than the word itself may stand.
        self._places = np.flatnonzero(self._high - self._low > 1)
        self._first_place = np.searchsorted(self._places, self._first)  # of each caption
        self.unchanged = len(ids) - int((np.diff(self._first_place) > 0).sum())

    def _find_others(self) -> None:
        """All words between the same neighbours: in `_others`, from low to high of each word."""
        edges = self._first[:-1][np.diff(self._first) > 0]
        before = np.roll(self._words, 1)
        before[edges] = 0  # 0 is the edge of a caption
        after = np.append(self._words[1:], 0)
        after[edges[1:] - 1] = 0
        place = before * len(self._spelt) + after
        pairs = np.unique(np.stack([place, self._words], 1), axis=0)
        self._others = pairs[:, 1]
        self._low = np.searchsorted(pairs[:, 0], place, "left")
        self._high = np.searchsorted(pairs[:, 0], place, "right")

    def _find_pictures(self, counts: np.ndarray, pictures: int) -> None:
        """Of each word the pictures whose captions have it, as a column."""
        at = (np.repeat(self._picture, counts), self._words)
        shape = (pictures, len(self._spelt))
        having = sparse.csc_array((np.ones(len(self._words), np.int32), at), shape)  # sums doubles
        self._columns = having.indptr, having.indices
        self._count = len(np.unique(self._picture[counts > 0]))

        @cache
        def contradict(one: int, other: int) -> bool:
            a, b = self._having(one), self._having(other)
            together = len(np.intersect1d(a, b, assume_unique=True))
            return together * self._count < _RARELY * len(a) * len(b)

        self._contradict = contradict

    def _having(self, word: int) -> np.ndarray:
        start, stop = self._columns[0][word : word + 2]
        pictures: np.ndarray = self._columns[1][start:stop]
        return pictures

    def draw(
        self, captions: np.ndarray, otherwise: np.ndarray, rng: np.random.Generator
    ) -> list[str]:
        """Of each caption a changed copy: any of its places, and any word that fits there.

        Args:
            captions: ids of captions of the split, int64 [b].
            otherwise: ids of captions to take where no word can be replaced, int64 [b].
            rng: where the choice comes from.
        """
        texts = [self._captions[caption] for caption in otherwise.tolist()]
        first, stop = self._first_place[captions], self._first_place[captions + 1]
        left = np.flatnonzero(stop > first)
        own = self._own(captions)
        for _ in range(_TRIES):
            at = self._places[rng.integers(first[left], stop[left])]
            other = self._others[rng.integers(self._low[at], self._high[at])]
            pairs = zip(self._words[at].tolist(), other.tolist(), strict=True)
            fits = np.array([self._contradict(min(pair), max(pair)) for pair in pairs], bool)
            fits &= (own[left] != other[:, None]).all(1)
            for place, word, new in zip(left[fits], at[fits], other[fits], strict=True):
                text = self._captions[captions[place]]
                start, end = self._starts[word], self._ends[word]
                texts[place] = text[:start] + self._spelt[new] + text[end:]
            left = left[~fits]
            if not len(left):
                break
        return texts

    def _own(self, captions: np.ndarray) -> np.ndarray:
        """The words of all captions of their pictures, [b, most], the last one repeated."""
        picture = self._picture[captions]
        start = self._first[self._first_caption[picture]]
        stop = self._first[self._first_caption[picture + 1]]
        at = start[:, None] + np.arange((stop - start).max(initial=1))
        own: np.ndarray = self._words[np.minimum(at, np.maximum(stop - 1, 0)[:, None])]
        return own
