"""Networks that turn pictures into the numbers that distances are taken in.

The reader is one; Inception is one where its weights are given; any other is the user's own.
Nothing is downloaded, and no format is read that can run code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from t2i_ray.config import READER, OwnFeatures, UserError, import_class

if TYPE_CHECKING:
    from t2i_ray.evaluate.reader import Reader

BATCH = 64
ELSEWHERE = "convert it as docs/measures.md says"


@dataclass(frozen=True)
class Features:
    """What a network says of n pictures."""

    rows: np.ndarray  # float64 [n, d]
    logits: np.ndarray | None = None  # float64 [n, classes], of a classifier
    values: dict[str, np.ndarray] | None = None  # of the reader: attribute -> int64 [n]


class FeatureModel(Protocol):
    """What distances can be taken in."""

    @property
    def name(self) -> str:
        """What stands in the measures' names: lower-case letters and digits."""

    def __call__(self, images: np.ndarray) -> Features:
        """Of uint8 pictures [n, S, S, 3], n at least 1."""


def join(parts: Sequence[Features]) -> Features:
    """Of parts of the pictures to that of all, rows only."""
    return Features(np.concatenate([part.rows for part in parts]))


class OfReader:
    """The 128 last hidden features of the reader, which is of this data."""

    name = READER

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self, images: np.ndarray) -> Features:
        """See FeatureModel."""
        reading = self._reader.read(images)
        return Features(reading.features, values=reading.values)


# ------------------------------------------------------------------------- the user's own


def load_own(settings: OwnFeatures) -> FeatureModel:
    """The network that a --features file describes.

    Raises:
        UserError: a file, class, tensor or library is missing, or they do not fit together.
    """
    return OfOnnx(settings) if settings.weights.endswith(".onnx") else OfModule(settings)


class OfModule:
    """A torch module of the user's own, weights from a safetensors file."""

    def __init__(self, settings: OwnFeatures) -> None:
        self.name, self._settings = settings.name, settings
        module = _make(str(settings.target))
        load_weights(module, settings.weights, f"weights={settings.weights}")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module = module.requires_grad_(False).eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """See FeatureModel."""
        parts = []
        for at in range(0, len(images), BATCH):
            given = normalised(images[at : at + BATCH], self._settings)
            parts.append(self._module(given.to(self._device)))
        return Features(_rows(parts, self.name))


class OfOnnx:
    """An ONNX graph of the user's own: one input [n, 3, S, S], its first output [n, d]."""

    def __init__(self, settings: OwnFeatures) -> None:
        self.name, self._settings = settings.name, settings
        try:
            import onnxruntime
        except Exception as error:
            raise cannot_import("onnxruntime", "onnx", error) from None
        try:
            self._session = onnxruntime.InferenceSession(
                Path(settings.weights).expanduser(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # each of its faults has an exception of its own
            raise UserError(
                f"weights={settings.weights}: can't be read as ONNX: {_first_line(error)}"
            ) from None
        inputs = [each.name for each in self._session.get_inputs()]
        if len(inputs) != 1:
            raise UserError(
                f"weights={settings.weights}: it has the inputs {', '.join(inputs)}; give a graph "
                "with one, the pictures"
            )
        self._input = inputs[0]

    def __call__(self, images: np.ndarray) -> Features:
        """See FeatureModel."""
        parts = []
        for at in range(0, len(images), BATCH):
            given = normalised(images[at : at + BATCH], self._settings).numpy()
            try:
                found = self._session.run(None, {self._input: given})[0]
            except Exception as error:
                raise UserError(
                    f"weights={self._settings.weights}: does not take float32 "
                    f"{list(given.shape)}: {_first_line(error)}; set size, or export it with any "
                    "batch size"
                ) from None
            parts.append(torch.from_numpy(found))
        return Features(_rows(parts, self.name))


def normalised(images: np.ndarray, settings: OwnFeatures) -> Tensor:
    """uint8 [n, S, S, 3] to float32 [n, 3, size, size], less the mean, over the deviation."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    if settings.size is not None and settings.size != pixels.shape[-1]:
        size = (settings.size, settings.size)
        pixels = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(each)[:, None, None] for each in (settings.mean, settings.std))
    return (pixels - mean) / std


def _rows(parts: Sequence[Any], name: str) -> np.ndarray:
    """Outputs of batches to float64 [n, d]. Raises UserError if they are no finite rows."""
    if not all(isinstance(part, Tensor) and part.ndim >= 2 for part in parts):
        raise UserError(f"features {name}: the network must give a tensor [n, d] for n pictures")
    rows: np.ndarray = torch.cat([part.flatten(1) for part in parts]).double().cpu().numpy()
    if not np.isfinite(rows).all():
        raise UserError(f"features {name}: some are not finite; look at its mean, std and weights")
    return rows


def _make(target: str) -> nn.Module:
    """A class by its name, made without arguments; the global random state is left alone."""
    found = import_class("target", target, nn.Module)
    try:
        with torch.random.fork_rng(devices=[]):
            made: nn.Module = found()
    except Exception as error:  # whatever it does
        raise UserError(
            f"target={target}: can't be made: {_first_line(error)}; it must take no arguments"
        ) from None
    return made


# -------------------------------------------------------------------------------- weights


def load_weights(module: nn.Module, path: str | Path, field: str) -> None:
    """Put a safetensors file's tensors in a module, all of them and no others.

    Raises:
        UserError: the file, named by ``field``, is absent, of another format, or does not fit.
    """
    tensors = read_weights(path, field)
    wanted = module.state_dict()
    # Batch counters say nothing once statistics are fixed, and converters tend to drop them.
    counters = {name: value for name, value in wanted.items() if name.endswith("batches_tracked")}
    tensors = {**counters, **tensors}
    for name in [*wanted, *tensors]:
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape:
            found = list(tensors[name].shape) if name in tensors else "absent"
            need = list(wanted[name].shape) if name in wanted else "none"
            raise UserError(f"{field}: tensor {name} is {found}, and the network has {need}")
    module.load_state_dict(tensors)


def read_weights(path: str | Path, field: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{field}: there is no such file; give a path on this machine")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError:
        raise UserError(
            f"{field}: this is no safetensors file, and no other is read: .pth and .pt are "
            f"pickles, which can run code; {ELSEWHERE}"
        ) from None
    return tensors


def cannot_import(library: str, extra: str, error: Exception) -> UserError:
    """What to say where a library is absent or broken."""
    return UserError(
        f"{library}: can't be imported ({_first_line(error)}); pip install 't2i-ray[{extra}]', "
        "or choose other --measures"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
