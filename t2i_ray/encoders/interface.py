"""What every text encoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn


class Encoder(ABC):
    """Turns captions into rows, kept as arrays, and rows into codes, inside the training step.

    A trained encoder's rows are token ids and its module is a network; a frozen one's rows are
    finished embeddings and its module passes them through.
    """

    dim: int  # width of a code
    module: nn.Module  # rows [b, ...] -> codes [b, dim]
    trainable: bool
    fingerprint: str | None  # names all that rows depend on besides the captions; None: not cached
    scripts: list[str] | None = None  # of the letters in the training captions; None: not known
    origin: str | None = None  # sha256 of the pretrained encoder that it started from, if any

    @abstractmethod
    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """One row per caption: int64 [n, ...] token ids, or float32 [n, dim] embeddings.

        A row depends on its own caption only, so any piece of the work can be done anywhere.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON document with ``kind``, from which load_encoder makes it again, weights apart."""

    def cut(self, length: int) -> None:  # noqa: B027 - nothing to cut is no fault
        """Read no more than so many words, characters or tokens of a caption."""

    def words(self, caption: str) -> list[str]:
        """What it reads a caption as, in order: words here, characters elsewhere."""
        return caption.split()

    def unreadable(self, caption: str) -> list[str]:  # noqa: ARG002 - this one reads anything
        """Those of ``words`` that it does not know, in order; none unless an encoder can tell."""
        return []
