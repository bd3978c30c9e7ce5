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

    @abstractmethod
    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """One row per caption: int64 [n, max_tokens] token ids, or float32 [n, dim] embeddings.

        A row depends on its own caption only, so any piece of the work can be done anywhere.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON document from which load_encoder makes this encoder again, weights apart."""
