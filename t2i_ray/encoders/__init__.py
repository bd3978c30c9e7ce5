"""Text encoders: captions in, codes [batch, dim] out.

``build_encoder`` makes one for a new run, ``to_document`` and ``load_encoder`` carry it through a
checkpoint, and ``caption_rows`` gives the rows of a whole caption set, a frozen encoder's from the
cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from t2i_ray import config
from t2i_ray.encoders.embeddings import cached, caption_rows
from t2i_ray.encoders.interface import Encoder
from t2i_ray.encoders.load import from_document as load_encoder
from t2i_ray.encoders.load import to_document
from t2i_ray.encoders.reading import refusal, scripts_of, unknown_words

__all__ = [
    "Encoder",
    "build_encoder",
    "cached",
    "caption_rows",
    "load_encoder",
    "refusal",
    "scripts_of",
    "to_document",
    "unknown_words",
]

# Captions are short: one thread is enough, and a process that forks (Ray's start does) after the
# tokenizers' threads ran prints a warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def build_encoder(
    encoder: config.EncoderConfig,
    train_captions: Sequence[str],
    storage: config.Storage | None = None,
) -> Encoder:
    """A new encoder; a trained one's vocabulary comes from the training captions alone.

    First weights are drawn from torch's global generator: seed it before.

    Args:
        encoder: the config's section, from the user's own command: of a custom one the class is
            imported.
        train_captions: of the training split.
        storage: where S3 is, of a model that is there.

    Raises:
        UserError: there is no such model, folder or class, or it can't be used.
    """
    built = _build(encoder, train_captions, storage)
    if built.trainable == encoder.frozen:
        is_not = "trains" if built.trainable else "does not train"
        raise config.UserError(
            f"encoder.train={encoder.train}: this encoder {is_not}; set it to "
            f"{'tuned' if built.trainable else 'frozen'}"
        )
    return built


def _build(
    encoder: config.EncoderConfig, train_captions: Sequence[str], storage: config.Storage | None
) -> Encoder:
    if encoder.init_from:
        from t2i_ray.encoders.saved import start_from

        return start_from(encoder, storage)
    if isinstance(encoder, config.HuggingFace):
        if encoder.frozen:
            from t2i_ray.encoders.huggingface import HuggingFaceEncoder  # transformers: seconds

            return HuggingFaceEncoder.build(encoder, storage)
        from t2i_ray.encoders.tuned import TunedEncoder

        return TunedEncoder.build(encoder, storage)
    if isinstance(encoder, config.CharCnnRnn):
        from t2i_ray.encoders.char_cnn_rnn import CharCnnRnnEncoder

        return CharCnnRnnEncoder.build(encoder)
    if isinstance(encoder, config.Custom):
        from t2i_ray.encoders.custom import CustomEncoder

        return CustomEncoder.build(encoder, train_captions)
    from t2i_ray.encoders.recurrent import RecurrentEncoder

    return RecurrentEncoder.build(encoder, train_captions)
