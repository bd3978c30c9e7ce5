"""A pretrained encoder that is no longer trained: its codes are computed once, like embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2i_ray.encoders.interface import Encoder

BATCH = 256  # captions whose codes are computed at a time


class FrozenEncoder(Encoder):
    """Rows are the codes of a trained encoder.

    Its weights are part of the module, which passes rows through: so they are in the checkpoint,
    and new captions can be read wherever that is.

    Args:
        inner: the trained one; its weights may still be to be loaded, through our module.
        filled: whether it has its weights.
    """

    trainable = False

    def __init__(self, inner: Encoder, *, filled: bool = False) -> None:
        self.inner = inner
        self.dim = inner.dim
        self.scripts, self.origin = inner.scripts, inner.origin
        self.module = self._finished = Finished(inner.module, filled)
        about = json.dumps([inner.origin, inner.describe()], sort_keys=True)
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    @torch.inference_mode()
    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """float32 [n, dim]. Raises RuntimeError: its weights were not loaded."""
        if not self._finished.filled:
            raise RuntimeError("a frozen encoder was asked for codes before its weights were there")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = self._finished.network.to(device).eval()
        inputs = self.inner.rows(captions)
        rows = np.zeros((len(captions), self.dim), np.float32)
        for start in range(0, len(captions), BATCH):
            batch = torch.from_numpy(inputs[start : start + BATCH]).to(device)
            rows[start : start + BATCH] = network(batch).float().cpu().numpy()
        return rows

    def describe(self) -> dict[str, Any]:
        """See Encoder."""
        return {"kind": "frozen", "of": self.inner.describe()}

    def words(self, caption: str) -> list[str]:
        """See Encoder."""
        return self.inner.words(caption)

    def unreadable(self, caption: str) -> list[str]:
        """See Encoder."""
        return self.inner.unreadable(caption)


class Finished(nn.Module):
    """Passes rows through, and carries the network that made them; none of it is trained."""

    def __init__(self, network: nn.Module, filled: bool) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.filled = filled
        self.register_load_state_dict_post_hook(_fill)  # type: ignore[no-untyped-call]

    def forward(self, rows: Tensor) -> Tensor:
        """Codes [b, dim], as they are."""
        return rows


def _fill(module: nn.Module, _: object) -> None:
    module.filled = True  # type: ignore[assignment]
