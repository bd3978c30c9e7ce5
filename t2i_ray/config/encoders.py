"""The section ``encoder``: how a caption becomes a code."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from t2i_ray.config.fields import Section, identity, operational


class BiGRU(Section):
    """An embedding layer and a bidirectional GRU, trained together with the GAN."""

    kind: Literal["bigru"] = "bigru"
    vocabulary: int = identity(4096, doc="Most words kept from the training captions.", ge=16)
    embedding_dim: int = identity(128, doc="Width of a word's embedding.", ge=1)
    hidden_dim: int = identity(256, doc="Width of each direction's state.", ge=1)
    dim: int = identity(1024, doc="Width of a caption's code.", ge=1)
    max_tokens: int = identity(32, doc="Words read of a caption; the rest is cut.", ge=1)


class HuggingFace(Section):
    """Any Hugging Face text model, frozen; its embeddings are computed once and cached."""

    kind: Literal["huggingface"] = "huggingface"
    model: str = identity(
        doc="Name on the hub, or a local folder, e.g. xlnet/xlnet-base-cased; loaded from "
        "safetensors without remote code."
    )
    revision: str | None = identity(None, doc="Commit of the model on the hub.")
    max_tokens: int = identity(64, doc="Tokens read of a caption; the rest is cut.", ge=1)
    batch_size: int = operational(64, doc="Captions embedded at a time.", ge=1)


EncoderConfig = Annotated[BiGRU | HuggingFace, Field(discriminator="kind")]
