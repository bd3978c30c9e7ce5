"""Encoders as documents in a checkpoint, and from them again."""

from __future__ import annotations

from typing import Any

from t2i_ray.config import Storage, UserError
from t2i_ray.encoders.interface import Encoder


def to_document(encoder: Encoder) -> dict[str, Any]:
    """All that ``from_document`` needs, as JSON: what it is, whence, and what it was trained on."""
    about = {"scripts": encoder.scripts, "origin": encoder.origin}
    return encoder.describe() | {name: value for name, value in about.items() if value is not None}


def from_document(
    document: dict[str, Any], target: str | None = None, storage: Storage | None = None
) -> Encoder:
    """The encoder of a description or a document; a trained one's weights are still to be loaded.

    Args:
        document: from ``Encoder.describe`` or ``to_document``.
        target: the class of a custom one, as the user's own command names it; none is ever taken
            from the document.
        storage: where S3 is, of a pretrained model that is there.

    Raises:
        UserError: the pretrained model on this machine is not the one of the description, or the
            class is not to be had.
    """
    about = ("scripts", "origin")
    description = {name: value for name, value in document.items() if name not in about}
    encoder = _load(description, document.get("origin"), target, storage)
    encoder.scripts, encoder.origin = document.get("scripts"), document.get("origin")
    return encoder


def _load(
    description: dict[str, Any], origin: str | None, target: str | None, storage: Storage | None
) -> Encoder:
    kind = description["kind"]
    if kind == "frozen":
        from t2i_ray.encoders.frozen import FrozenEncoder

        inner = from_document(description["of"], target, storage)
        inner.origin = origin
        return FrozenEncoder(inner)
    if kind == "huggingface":
        from t2i_ray.encoders.huggingface import HuggingFaceEncoder  # transformers: seconds

        return HuggingFaceEncoder.load(description, storage)
    if kind == "transformer":
        from t2i_ray.encoders.tuned import TunedEncoder

        return TunedEncoder.load(description)
    if kind == "char_cnn_rnn":
        from t2i_ray.encoders.char_cnn_rnn import CharCnnRnnEncoder

        return CharCnnRnnEncoder.load(description)
    if kind == "custom":
        from t2i_ray.encoders.custom import CustomEncoder

        if target is None:
            raise UserError("encoder.kind=custom: its class is not known here; give encoder.target")
        return CustomEncoder.load(description, target)
    from t2i_ray.encoders.recurrent import RecurrentEncoder

    return RecurrentEncoder.load(description)
