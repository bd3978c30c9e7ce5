"""A text encoder of one's own: the mean of a caption's words (Iyyer et al. 2015), in any order.

PYTHONPATH=examples t2i-ray train configs/demo.yaml \
    encoder='{kind: custom, target: "bag_of_words:BagOfWords", options: {dim: 128}}'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from t2i_ray.encoders import Encoder

LENGTH = 32  # words read of a caption; the rest is cut


class BagOfWords(Encoder):
    """Trained with the GAN; a word that no training caption has counts as none."""

    trainable = True
    fingerprint = None  # its rows are quickly made, and not cached

    def __init__(self, known: list[str], dim: int) -> None:
        self.dim, self._known = dim, known
        self._ids = {word: i for i, word in enumerate(known, start=1)}  # 0 is padding
        self.module = Mean(len(known) + 1, dim)

    @classmethod
    def build(cls, options: dict[str, Any], captions: Sequence[str]) -> BagOfWords:
        """A new one, from encoder.options and the training captions."""
        known = sorted({word for caption in captions for word in caption.lower().split()})
        return cls(known, options["dim"])

    @classmethod
    def load(cls, description: dict[str, Any]) -> BagOfWords:
        """The one that was described, weights apart."""
        return cls(description["known"], description["dim"])

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        return {"known": self._known, "dim": self.dim}

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """Captions to ids int64 [n, LENGTH]."""
        rows = np.zeros((len(captions), LENGTH), np.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = [self._ids.get(word, 0) for word in caption.lower().split()[:LENGTH]]
            row[: len(ids)] = ids
        return rows

    def unreadable(self, caption: str) -> list[str]:
        """Of which ``t2i-ray generate`` warns."""
        return [word for word in caption.split() if word.lower() not in self._ids]


class Mean(nn.Module):
    """Ids [b, LENGTH] to codes [b, dim]."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(words, dim, mode="mean", padding_idx=0)

    def forward(self, rows: Tensor) -> Tensor:
        """See Mean."""
        code: Tensor = self.bag(rows.long())
        return code
