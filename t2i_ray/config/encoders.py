"""The section ``encoder``: how a caption becomes a code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from t2i_ray.config.fields import CLASS, Section, identity, operational

#: Models that have a kind of their own name.
HUB_MODELS = {
    "xlnet": "xlnet/xlnet-base-cased",
    "bert": "google-bert/bert-base-uncased",
    "gpt2": "openai-community/gpt2",
}

Training = Literal["tuned", "frozen"]
_TRAINING = (
    "tuned: with the GAN, at optim.lr_encoder; frozen: as it is, every caption's code computed "
    "once and cached."
)


class EncoderSection(Section):
    """What all kinds of encoder have."""

    train: Training = identity("tuned", doc=_TRAINING)
    init_from: str | None = operational(
        None,
        doc="Pretrained encoder to start from: a folder or s3:// URI with encoder.json and "
        "encoder.safetensors.",
    )
    init_sha256: str | None = identity(
        None,
        doc="Sha256 of what lies at init_from, filled in when a run starts; other content than "
        "this is refused.",
        pattern="^[0-9a-f]{64}$",
    )

    @property
    def frozen(self) -> bool:
        """Whether a caption's row is its finished code, computed once for all runs."""
        return self.train == "frozen"

    @property
    def outside(self) -> bool:
        """Whether it takes more than captions: a model, a folder or a class to be found."""
        return self.init_from is not None

    @model_validator(mode="after")
    def _check_start(self) -> EncoderSection:
        if self.init_sha256 and not self.init_from:
            raise ValueError(
                f"encoder.init_sha256={self.init_sha256}: of what? give encoder.init_from as well"
            )
        if self.frozen and not self.outside:
            raise ValueError(
                f"encoder.train=frozen with encoder.kind={getattr(self, 'kind', '')}: its weights "
                "would stay random; give encoder.init_from, or use encoder.train=tuned"
            )
        return self


class Recurrent(EncoderSection):
    """An embedding of words and a recurrent layer, in one direction or (bi) in both."""

    kind: Literal["rnn", "gru", "bigru", "lstm", "bilstm"] = "bigru"
    vocabulary: int = identity(
        4096, doc="Most words kept from the training captions; init_from has its own.", ge=16
    )
    embedding_dim: int = identity(128, doc="Width of a word's embedding.", ge=1)
    hidden_dim: int = identity(256, doc="Width of each direction's state.", ge=1)
    dim: int = identity(1024, doc="Width of a caption's code.", ge=1)
    max_tokens: int = identity(32, doc="Words read of a caption; the rest is cut.", ge=1)


class CharCnnRnn(EncoderSection):
    """Characters, temporal convolutions, a recurrent layer (Reed et al. 2016, section 4)."""

    kind: Literal["char_cnn_rnn"] = "char_cnn_rnn"
    channels: list[int] = identity(
        [384, 512, 256], doc="Widths of the convolutions; the recurrent layer's is the last one."
    )
    kernel: int = identity(4, doc="Characters or positions that a convolution reads.", ge=1)
    pools: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = identity(
        [[3, 3], [3, 3], [3, 2]],
        doc="Width and stride of the max-pooling after each convolution; [1, 1]: none.",
    )
    cell: Literal["rnn", "gru", "lstm"] = identity("rnn", doc="Recurrent layer; rnn has ReLU.")
    dim: int = identity(1024, doc="Width of a caption's code.", ge=1)
    max_characters: int = identity(201, doc="Characters read of a caption; the rest is cut.", ge=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> CharCnnRnn:
        if not self.channels or len(self.pools) != len(self.channels):
            raise ValueError(
                f"encoder.pools has {len(self.pools)} entries and encoder.channels "
                f"{len(self.channels)}; give one [width, stride] for each convolution"
            )
        if min(*self.channels, *(size for pool in self.pools for size in pool), 1) < 1:
            raise ValueError("encoder.channels and encoder.pools: all sizes must be 1 or more")
        if any(stride > width for width, stride in self.pools):
            raise ValueError(
                f"encoder.pools={self.pools}: a stride above its width skips characters; give "
                "[width, stride] with stride up to width"
            )
        return self


class HuggingFace(EncoderSection):
    """Any Hugging Face text model; xlnet, bert and gpt2 are short for one each."""

    kind: Literal["huggingface", "xlnet", "bert", "gpt2"] = "huggingface"
    train: Training = identity("frozen", doc=_TRAINING)
    model: str | None = identity(
        None,
        doc="Name on the hub, a local folder or an s3:// URI, e.g. xlnet/xlnet-base-cased; loaded "
        "from safetensors without remote code. None: kind's own, or init_from's.",
    )
    revision: str | None = identity(None, doc="Commit of the model on the hub.")
    max_tokens: int = identity(64, doc="Tokens read of a caption; the rest is cut.", ge=1)
    batch_size: int = operational(64, doc="Captions embedded at a time.", ge=1)

    @property
    def outside(self) -> bool:
        """See EncoderSection."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _default_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("model") and not values.get("init_from"):
            model = HUB_MODELS.get(str(values.get("kind")))
            return {**values, "model": model} if model else values
        return values

    @model_validator(mode="after")
    def _check_model(self) -> HuggingFace:
        if not self.model and not self.init_from:
            raise ValueError(
                "encoder.model: missing; give a name on the hub, a folder or an s3:// URI, or "
                "encoder.init_from"
            )
        if self.model and self.init_from:
            raise ValueError(
                f"encoder.model={self.model} with encoder.init_from={self.init_from}: each of them "
                "is a model; leave one out"
            )
        owner = {own: kind for kind, own in HUB_MODELS.items()}.get(self.model or "", self.kind)
        if self.kind in HUB_MODELS and self.kind != owner:
            raise ValueError(
                f"encoder.kind={self.kind} with encoder.model={self.model}: that is the model of "
                f"encoder.kind={owner}; leave encoder.model out, or use that kind or huggingface"
            )
        return self


class Custom(EncoderSection):
    """A class of the user's own; see docs/encoders.md for what it must have."""

    kind: Literal["custom"] = "custom"
    target: str = identity(
        doc="The class as module:Class, e.g. my_package.my_file:MyEncoder; importable on every "
        "worker.",
        pattern=f"^{CLASS}$",
    )
    options: dict[str, JsonValue] = identity({}, doc="Handed to the class as they are.")

    @property
    def outside(self) -> bool:
        """See EncoderSection."""
        return True


EncoderConfig = Annotated[
    Recurrent | CharCnnRnn | HuggingFace | Custom, Field(discriminator="kind")
]
