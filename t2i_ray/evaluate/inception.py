"""The Inception of FID: torch-fidelity's network, with weights from a safetensors file.

Only this one may be called FID, KID or Inception Score, and only with the weights that all others
use: those of 2015-12-05, which torch-fidelity publishes (Heusel et al. 2017 used the same graph).
Pictures are enlarged to 299 pixels as TensorFlow 1 did it, by torch-fidelity's own code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i_ray.config import INCEPTION
from t2i_ray.evaluate.features import BATCH, Features, cannot_import, load_weights

LAYERS = ["2048", "logits_unbiased"]


class OfInception:
    """Features of the last pooling [n, 2048], and logits of the Inception Score [n, 1008].

    Args:
        path: of the weights; see docs/measures.md for how to make the file.

    Raises:
        UserError: torch-fidelity can't be imported, or the file is absent or of something else.
    """

    name = INCEPTION

    def __init__(self, path: str | Path) -> None:
        network = _network()
        load_weights(network, path, f"evaluation.inception={path}")
        with Path(path).expanduser().open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.requires_grad_(False).eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """See FeatureModel."""
        rows, logits = [], []
        for at in range(0, len(images), BATCH):
            part = np.ascontiguousarray(images[at : at + BATCH].transpose(0, 3, 1, 2))
            found = self._network(torch.from_numpy(part).to(self._device))
            rows.append(found[0].double().cpu().numpy())
            logits.append(found[1].double().cpu().numpy())
        return Features(np.concatenate(rows), np.concatenate(logits))


def _network() -> Any:
    """The architecture with no weights, made without the download and the unpickling of its own."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as library
    except Exception as error:  # a torchvision of another build raises RuntimeError
        raise cannot_import("torch-fidelity", "inception", error) from None

    class Network(library.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, tensors: dict[str, Tensor], *more: Any, **named: Any) -> Any:
            return super().load_state_dict(tensors, *more, **named) if tensors else None

    fetch = library.load_state_dict_from_url
    library.load_state_dict_from_url = lambda *_, **__: {}
    try:
        with torch.random.fork_rng(devices=[]):  # the first weights, soon replaced, are drawn
            return Network("inception-v3-compat", LAYERS)
    finally:
        library.load_state_dict_from_url = fetch
