"""Any Hugging Face text model, frozen, as an encoder: found, fingerprinted, loaded when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import transformers
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars
from torch import nn

from t2i_ray.config import HuggingFace, UserError
from t2i_ray.encoders.interface import Encoder
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
    ) -> None:
        self.model, self.revision, self.max_tokens = model, revision, max_tokens
        self.files, self.dim, self.batch_size = files, dim, batch_size
        self.module = nn.Identity()
        settings = f"{files}\n{max_tokens}\n{POOLING}"
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()
        self._pretrained: Pretrained | None = None

    @classmethod
    def build(cls, config: HuggingFace) -> HuggingFaceEncoder:
        """The encoder of a config; of the model only its small config file is loaded yet.

        Raises:
            UserError: there is no such model, or it can't be used.
        """
        folder = find(config.model, config.revision)
        is_local = Path(config.model).expanduser().is_dir()
        settings = read_config(folder, config.model)
        dim = getattr(settings, "hidden_size", None)
        if not isinstance(dim, int):
            raise UserError(
                f"encoder.model={config.model}: its config has no hidden_size; choose a text model"
            )
        limit = getattr(settings, "max_position_embeddings", None)
        if isinstance(limit, int) and 0 < limit < config.max_tokens:  # XLNet says -1: no limit
            raise UserError(
                f"encoder.max_tokens={config.max_tokens}: {config.model} reads {limit} tokens at "
                "most; set it to that or less"
            )
        return cls(
            model=str(folder) if is_local else config.model,
            revision=None if is_local else folder.name,  # a snapshot's folder is named by commit
            max_tokens=config.max_tokens,
            files=hash_files(folder),
            dim=dim,
            batch_size=config.batch_size,
        )

    @classmethod
    def load(cls, description: dict[str, Any]) -> HuggingFaceEncoder:
        """The encoder of ``describe()``.

        A machine need not have the model as long as the embeddings are cached; where it has it,
        it is compared at once, else when it is first needed.
        """
        encoder = cls(**description)
        try:
            folder = find(encoder.model, encoder.revision, download=False)
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
        if self._pretrained is None:
            folder = find(self.model, self.revision)
            self._compare(folder)
            self._pretrained = load_pretrained(folder, self.model)
        rows = np.zeros((len(captions), self.dim), np.float32)
        encoded = self._pretrained.tokenize(captions, self.max_tokens)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = np.argsort(lengths, kind="stable")  # like lengths together: little padding
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows[batch] = self._pretrained.embed(
                {name: [values[i] for i in batch] for name, values in encoded.items()}
            )
        return rows

    def _compare(self, folder: Path) -> None:
        if hash_files(folder) != self.files:
            raise UserError(
                f"encoder.model={self.model}: the files there are not the ones that were trained "
                "with; put those back, or start a new run"
            )


def find(model: str, revision: str | None, *, download: bool = True) -> Path:
    """The folder of a model: the one given, or the hub's snapshot of it.

    Raises:
        UserError: there is none, it holds no safetensors, or the hub can't be reached.
    """
    _hush()
    folder = Path(model).expanduser()
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


def hash_files(folder: Path) -> str:
    """Sha256 over names and contents of the model's config, weights and tokenizer."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            total.update(
                f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
            )
    return total.hexdigest()


def _hush() -> None:
    """No progress bars and advice: our own errors say what to do."""
    for library in (transformers.utils.logging, huggingface_hub.utils.logging):
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
