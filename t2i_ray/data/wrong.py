"""Captions that are wrong for a picture, of three kinds that are ever harder to tell from right.

other_class: of a picture of any other class. hard: of a picture of the class whose captions are
most like its own class's. same_class: of another picture of its class.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from t2i_ray.config import UserError
from t2i_ray.data.prepared import Prepared
from t2i_ray.data.words import nearest

Kind = Literal["other_class", "same_class", "hard"]
_TRIES = 32  # redraws of a caption that fits after all, before the fitting are ruled out


class WrongCaptions:
    """The captions of a split that are wrong for each of its pictures.

    All pictures that a kind allows are equally likely, and so are the captions of each; a text
    that is a caption of the picture itself is none. A sample without a class is a class of its
    own; so is each if there is one class only. A sample for which ``same_class`` or ``hard`` has
    no caption is given one of any other class.

    Attributes:
        fallbacks: how many samples are.

    Raises:
        UserError: all captions of the split say the same; or the kind has none for any sample.
    """

    def __init__(self, prepared: Prepared, kind: Kind, split: str = "train") -> None:
        self._first = prepared.first_caption
        self._most = int(np.diff(self._first).max())
        ids = prepared.ids(split)
        texts: dict[str, int] = {}  # equal captions share a number
        self._text = np.array([texts.setdefault(text, len(texts)) for text in prepared.captions])
        self._captions = np.concatenate([prepared.captions_of(sample) for sample in ids])
        if len(np.unique(self._text[self._captions])) < 2:
            raise UserError(
                f"data.source: all captions of the split {split} are the same, so none can be "
                "wrong; give pictures captions of their own"
            )
        self._by_class(prepared, ids)
        self.fallbacks = 0
        if kind != "other_class":
            self._narrow(prepared, kind)
            if self.fallbacks == len(ids):
                lacks = {"same_class": "another picture of its class", "hard": "another class"}
                raise UserError(
                    f"data.wrong={kind}: no picture of the split {split} has {lacks[kind]} with "
                    "other captions; give the source's pictures classes, or use "
                    "data.wrong=other_class"
                )

    def draw(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One caption for each, int64."""
        own = self._own(samples)
        low, start, stop = self._low[samples], self._start[samples], self._stop[samples]
        count = self._high[samples] - low - (stop - start)
        wrong = np.empty(len(samples), np.int64)
        bad = np.arange(len(samples))
        for _ in range(_TRIES):
            draw = low[bad] + rng.integers(0, count[bad])
            draw += np.where(draw >= start[bad], (stop - start)[bad], 0)
            wrong[bad] = one_caption(self._first, self._sorted[draw], rng)
            bad = bad[(self._text[wrong[bad], None] == own[bad]).any(1)]
            if not len(bad):
                return wrong
        for place in bad.tolist():  # nearly all captions are the same
            others = self._others(int(samples[place]), own[place])
            wrong[place] = rng.choice(others)
        return wrong

    def _own(self, samples: np.ndarray) -> np.ndarray:
        """The numbers of their captions' texts, [samples, most captions], the last one repeated."""
        captions = self._first[samples, None] + np.arange(self._most)
        own: np.ndarray = self._text[np.minimum(captions, self._first[samples + 1, None] - 1)]
        return own

    def _others(self, sample: int, own: np.ndarray) -> np.ndarray:
        """Every caption within a sample's bounds (of ``other_class``: all) that is wrong for it."""
        inside = (self._place >= self._low[sample]) & (self._place < self._high[sample])
        others: np.ndarray = self._captions[inside & ~np.isin(self._text[self._captions], own)]
        if not len(others):
            raise UserError(
                f"data.source: sample {sample} has every caption that there is, so none is wrong "
                "for it; give pictures captions of their own"
            )
        return others

    def _by_class(self, prepared: Prepared, ids: np.ndarray) -> None:
        """Sort the split by class, so that "any sample of another class" is one draw."""
        known = prepared.class_ids[ids]
        alone = -1 - np.arange(len(ids))
        classes = np.where(known < 0, alone, known)
        if (classes == classes[0]).all():
            classes = alone
        order = np.argsort(classes, kind="stable")
        self._sorted = ids[order]
        # In that order a sample's wrong ones lie from its low to its high, but not those from its
        # start to its stop, which are its class; all four by sample id.
        count = len(prepared.class_ids)
        self._low, self._high = np.zeros(count, np.int64), np.full(count, len(ids))
        self._start, self._stop = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._start[ids] = np.searchsorted(classes[order], classes, side="left")
        self._stop[ids] = np.searchsorted(classes[order], classes, side="right")
        place = np.empty(count, np.int64)
        place[self._sorted] = np.arange(len(ids))
        self._place = place[np.repeat(ids, np.diff(self._first)[ids])]  # of captions' samples

    def _narrow(self, prepared: Prepared, kind: Kind) -> None:
        """Let low and high be the bounds of a sample's own class, or of the most similar one."""
        known = prepared.class_ids[self._sorted]  # rising; before them those without a class
        classes = np.unique(known[known >= 0])
        lows, highs = (np.searchsorted(known, classes, side).tolist() for side in ("left", "right"))
        order = np.argsort(self._place, kind="stable")
        parts = np.split(self._captions[order], np.searchsorted(self._place[order], lows))[1:]
        of: dict[int, int] = {}  # which class's captions are wrong for a class's pictures, by rank
        if kind == "same_class":
            of = {name: rank for rank, name in enumerate(classes.tolist())}
        elif len(classes) > 1:
            similar = nearest([[prepared.captions[i] for i in part] for part in parts])
            of = dict(zip(classes.tolist(), similar.tolist(), strict=True))
        texts = [set(self._text[part].tolist()) for part in parts]
        for place, (sample, name) in enumerate(zip(self._sorted, known.tolist(), strict=True)):
            mine = set(self._text[prepared.captions_of(sample)].tolist())
            rank = of.get(name)
            if rank is None or texts[rank] <= mine:
                self.fallbacks += 1
                continue
            self._low[sample], self._high[sample] = lows[rank], highs[rank]
            itself = (place, place + 1) if kind == "same_class" else (highs[rank], highs[rank])
            self._start[sample], self._stop[sample] = itself


def one_caption(first: np.ndarray, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One caption of each sample, all equally likely; ``first`` as `Prepared.first_caption`."""
    start = first[samples]
    chosen: np.ndarray = start + rng.integers(0, first[samples + 1] - start)
    return chosen
