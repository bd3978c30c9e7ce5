"""Text encoders: captions in, codes [batch, dim] out.

``build_encoder`` makes one for a new run, ``load_encoder`` makes a checkpoint's again, and
``caption_rows`` gives the rows of a whole caption set, a frozen encoder's from the cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from t2i_ray import config
from t2i_ray.encoders.embeddings import caption_rows
from t2i_ray.encoders.interface import Encoder

__all__ = ["Encoder", "build_encoder", "caption_rows", "load_encoder"]

# Captions are short: one thread is enough, and a process that forks (Ray's start does) after the
# tokenizers' threads ran prints a warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def build_encoder(encoder: config.EncoderConfig, train_captions: Sequence[str]) -> Encoder:
    """A new encoder; a trained one's vocabulary comes from the training captions alone.

    First weights are drawn from torch's global generator: seed it before.

    Raises:
        UserError: there is no such model, or it can't be used.
    """
    if isinstance(encoder, config.HuggingFace):
        from t2i_ray.encoders.huggingface import HuggingFaceEncoder  # transformers: seconds

        return HuggingFaceEncoder.build(encoder)
    from t2i_ray.encoders.recurrent import RecurrentEncoder

    return RecurrentEncoder.build(encoder, train_captions)


def load_encoder(description: dict[str, Any]) -> Encoder:
    """The encoder that ``describe()`` described; a trained one's weights are still to be loaded.

    Raises:
        UserError: the pretrained model on this machine is not the one of the description.
    """
    fields = dict(description)
    if fields["kind"] == "huggingface":
        from t2i_ray.encoders.huggingface import HuggingFaceEncoder

        del fields["kind"]
        return HuggingFaceEncoder.load(fields)
    from t2i_ray.encoders.recurrent import RecurrentEncoder

    return RecurrentEncoder.load(fields)
