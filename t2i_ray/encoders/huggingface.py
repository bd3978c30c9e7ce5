"""Any Hugging Face text model, frozen, as an encoder: found, fingerprinted, loaded when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars
from torch import nn

from t2i_ray.config import HuggingFace, Storage, UserError
from t2i_ray.encoders.interface import Encoder
from t2i_ray.encoders.places import hash_files, is_remote, local_folder
from t2i_ray.encoders.pretrained import POOLING, Pretrained, load_pretrained, read_config

# Config, weights and tokenizer as transformers names them: what is downloaded and fingerprinted.
FILES = ["*.json", "model*.safetensors", "*.txt", "*.model"]
HUB_TIMEOUT = 5.0  # seconds


class HuggingFaceEncoder(Encoder):
    """Frozen embeddings, float32; the model is loaded when the first one is asked for.

    Args:
        model: local folder, or name on the hub.
        revision: the hub's commit; None for a folder.
        max_tokens: tokens read of a caption.
        files: sha256 over the model's files; another model under the same name is refused.
        dim: width of the model's states.
        batch_size: captions embedded at a time.
        storage: where S3 is, of a model that is there.
    """

    trainable = False

    def __init__(
        self,
        model: str,
        revision: str | None,
        max_tokens: int,
        files: str,
        dim: int,
        batch_size: int = 64,
        storage: Storage | None = None,
    ) -> None:
        self._storage = storage
        self.model, self.revision, self.max_tokens = model, revision, max_tokens
        self.files, self.dim, self.batch_size = files, dim, batch_size
        self.module = nn.Identity()
        settings = f"{files}\n{max_tokens}\n{POOLING}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()
        self._pretrained: Pretrained | None = None

    @classmethod
    def build(cls, config: HuggingFace, storage: Storage | None = None) -> HuggingFaceEncoder:
        """The encoder of a config; of the model only its small config file is loaded yet.

        Raises:
            UserError: there is no such model, or it can't be used.
        """
        found = find(config, storage)
        return cls(
            model=found.model,
            revision=found.revision,
            max_tokens=config.max_tokens,
            files=found.files,
            dim=found.dim,
            batch_size=config.batch_size,
            storage=storage,
        )

    @classmethod
    def load(
        cls, description: dict[str, Any], storage: Storage | None = None
    ) -> HuggingFaceEncoder:
        """The encoder of ``describe()``.

        A machine need not have the model as long as the embeddings are cached; where it has it,
        it is compared at once, else when it is first needed.
        """
        fields = {name: value for name, value in description.items() if name != "kind"}
        encoder = cls(**fields, storage=storage)
        if is_remote(encoder.model):
            return encoder
        try:
            folder = locate(encoder.model, encoder.revision, download=False)
        except UserError:
            return encoder
        encoder._compare(folder)
        return encoder

    def describe(self) -> dict[str, Any]:
        """See Encoder."""
        return {
            "kind": "huggingface",
            "model": self.model,
            "revision": self.revision,
            "max_tokens": self.max_tokens,
            "files": self.files,
            "dim": self.dim,
        }

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """float32 [n, dim], in the order of the captions. Raises UserError: no such model."""
        pretrained = self._load_model()
        rows = np.zeros((len(captions), self.dim), np.float32)
        encoded = pretrained.tokenize(captions, self.max_tokens)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = np.argsort(lengths, kind="stable")  # like lengths together: little padding
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows[batch] = pretrained.embed(
                {name: [values[i] for i in batch] for name, values in encoded.items()}
            )
        return rows

    def unreadable(self, caption: str) -> list[str]:
        """Words that its tokenizer knows no part of; the model is loaded for it."""
        return self._load_model().unknown(caption)

    def _load_model(self) -> Pretrained:
        if self._pretrained is None:
            folder = locate(self.model, self.revision, self._storage)
            self._compare(folder)
            self._pretrained = load_pretrained(folder, self.model)
            self._pretrained.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return self._pretrained

    def _compare(self, folder: Path) -> None:
        if hash_model(folder) != self.files:
            raise UserError(
                f"encoder.model={self.model}: the files there are not the ones that were trained "
                "with; put those back, or start a new run"
            )


@dataclass(frozen=True)
class Found:
    """A model that is there, and fits the encoder's section; only its config has been read."""

    folder: Path
    settings: Any  # of transformers' config class
    model: str  # an absolute folder, an s3:// URI or a name on the hub
    revision: str | None  # the hub's commit
    files: str  # sha256
    dim: int


def find(config: HuggingFace, storage: Storage | None = None) -> Found:
    """Look for the model of a config. Raises UserError: there is none, or it can't be used."""
    name = str(config.model)
    folder = locate(name, config.revision, storage)
    settings = read_config(folder, name)
    dim = getattr(settings, "hidden_size", None)
    if not isinstance(dim, int):
        raise UserError(f"encoder.model={name}: its config has no hidden_size; choose a text model")
    check_length(settings, config.max_tokens, name)
    files = hash_model(folder)
    if is_remote(name):
        return Found(folder, settings, name, None, files, dim)
    if Path(name).expanduser().is_dir():
        return Found(folder, settings, str(folder), None, files, dim)
    return Found(folder, settings, name, folder.name, files, dim)  # a snapshot's is its commit


def check_length(settings: Any, max_tokens: int, name: str) -> None:
    """Raises UserError if a model of this config can't read so many tokens."""
    limit = getattr(settings, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < max_tokens:  # XLNet says -1: no limit
        raise UserError(
            f"encoder.max_tokens={max_tokens}: {name} reads {limit} tokens at most; set it to that "
            "or less"
        )


def locate(
    model: str, revision: str | None, storage: Storage | None = None, *, download: bool = True
) -> Path:
    """The folder of a model: the one given, S3's copied to this machine, or the hub's snapshot.

    Raises:
        UserError: there is none, it holds no safetensors, or it can't be reached.
    """
    hush()
    folder = local_folder(model, FILES, "encoder.model", storage)
    if not folder.is_dir():
        folder = _snapshot(model, revision, download)
    if not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"encoder.model={model}: there is no model.safetensors (other formats may run code "
            "and are not read); choose a model that has one, or convert it by save_pretrained"
        )
    return folder.resolve()


def _snapshot(model: str, revision: str | None, download: bool) -> Path:
    try:
        online = download and _hub_answers(model, revision)
        snapshot = huggingface_hub.snapshot_download(
            model,
            revision=revision,
            allow_patterns=FILES,
            ignore_patterns=["*/*"],
            local_files_only=not online,
        )
    except HFValidationError:
        remedy = "no such folder; give one, or a name on the hub such as xlnet/xlnet-base-cased"
    except RevisionNotFoundError:
        raise UserError(f"encoder.revision={revision}: {model} has none such; mend it") from None
    except RepositoryNotFoundError:
        remedy = "neither a folder nor known to the hub; mend it (if it is private, set HF_TOKEN)"
    except OSError:  # not among what was downloaded before, or the download broke off
        remedy = (
            "no such folder, and the hub can't be reached; give a local folder, or run "
            f"'hf download {model}' on a machine that can"
        )
    else:
        return Path(snapshot)
    raise UserError(f"encoder.model={model}: {remedy}")


def _hub_answers(model: str, revision: str | None) -> bool:
    """Ask with a time limit: snapshot_download has none, and would hang behind a firewall."""
    try:
        huggingface_hub.model_info(model, revision=revision, timeout=HUB_TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # no network, no name, a proxy's answer, a time-out, offline mode
        return False
    return True


def hash_model(folder: Path) -> str:
    """Sha256 over names and contents of the model's config, weights and tokenizer."""
    return hash_files({path for pattern in FILES for path in folder.glob(pattern)})


def hush() -> None:
    """No progress bars and advice: our own errors say what to do."""
    for library in (transformers.utils.logging, huggingface_hub.utils.logging):
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
