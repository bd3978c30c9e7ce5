"""An encoder of the user's own: a class that is found by its name.

The name is never taken from a description; whether one from a stored config may be used is settled
before, see config/classes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from t2i_ray.config import Custom, UserError, import_class
from t2i_ray.encoders.interface import Encoder


class CustomEncoder(Encoder):
    """A user's encoder behind our name: ``describe`` says custom, and says no class."""

    def __init__(self, own: Encoder) -> None:
        self._own = own
        self.dim, self.module, self.trainable = own.dim, own.module, own.trainable
        self.fingerprint = None if own.trainable else f"custom {own.fingerprint}"

    @classmethod
    def build(cls, config: Custom, captions: Sequence[str]) -> CustomEncoder:
        """A new encoder of the config's class. Raises UserError."""
        own = find_class(config.target).build(config.options, captions)
        return cls(_checked(own, config.target))

    @classmethod
    def load(cls, description: dict[str, Any], target: str) -> CustomEncoder:
        """The encoder of ``describe()``, of this class. Raises UserError."""
        return cls(_checked(find_class(target).load(description["of"]), target))

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """See Encoder."""
        return self._own.rows(captions)

    def describe(self) -> dict[str, Any]:
        """See Encoder."""
        return {"kind": "custom", "of": self._own.describe()}

    def words(self, caption: str) -> list[str]:
        """See Encoder."""
        return self._own.words(caption)

    def unreadable(self, caption: str) -> list[str]:
        """See Encoder."""
        return self._own.unreadable(caption)


def find_class(target: str) -> Any:
    """The class that ``module:Class`` names. Raises UserError if it is none or lacks something."""
    found = import_class("encoder.target", target, Encoder)
    lacking = [each for each in ("build", "load") if not callable(getattr(found, each, None))]
    if lacking:
        raise UserError(f"encoder.target={target}: it has no {', no '.join(lacking)}; add them")
    return found


def _checked(own: Any, target: str) -> Encoder:
    wanted = {"dim": int, "module": nn.Module, "trainable": bool}
    for name, kind in wanted.items():
        if not isinstance(getattr(own, name, None), kind):
            raise UserError(f"encoder.target={target}: its {name} is no {kind.__name__}; set it")
    if not own.trainable and not isinstance(getattr(own, "fingerprint", None), str):
        raise UserError(
            f"encoder.target={target}: trainable is False, and fingerprint no str; let it name all "
            "that rows depend on besides the captions"
        )
    encoder: Encoder = own
    return encoder
