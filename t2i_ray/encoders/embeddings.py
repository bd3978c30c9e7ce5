"""The rows of a whole caption set; a frozen encoder's are computed once and kept in the store.

An entry is embeddings/<hash of the encoder's fingerprint and the captions>/ with embeddings.npy,
float32 [n, dim], and manifest.json, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2i_ray.encoders.interface import Encoder
from t2i_ray.storage import MissingKey, StorageError, Store
from t2i_ray.storage.scratch import scratch

log = logging.getLogger(__name__)


def caption_rows(encoder: Encoder, captions: Sequence[str], store: Store) -> np.ndarray:
    """One row per caption, in their order; see Encoder.rows. Do not write to the array.

    A frozen encoder's are read memory-mapped from the store, where they were kept before; then
    the model is not loaded. An entry that is damaged is computed again, with a warning.

    Raises:
        UserError: they have to be computed, and the model can't be loaded.
        StorageError: the store can't be reached.
    """
    if encoder.fingerprint is None:
        return encoder.rows(captions)
    entry, about = _place(encoder, captions, store)
    try:
        return _read(entry, about)
    except MissingKey:
        pass
    except _DamagedError as error:
        log.warning("%s is damaged (%s); computing it again", entry.uri, error)
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    log.info("embedding %d captions, once for all runs", len(distinct))
    embedded = encoder.rows(list(distinct))
    rows = embedded[np.array([distinct[caption] for caption in captions], np.int64)]
    _write(entry, about, rows)
    return rows


def cached(encoder: Encoder, captions: Sequence[str], store: Store) -> str | None:
    """Why a frozen encoder's rows would be computed now; None if they are there, and sound.

    Raises:
        StorageError: the store can't be reached.
    """
    entry, about = _place(encoder, captions, store)
    try:
        _read(entry, about)
    except MissingKey:
        return f"not in {store.uri}/embeddings yet"
    except _DamagedError as error:
        return f"{entry.uri} is damaged: {error}"
    return None


def _place(encoder: Encoder, captions: Sequence[str], store: Store) -> tuple[Store, dict[str, Any]]:
    """Where the rows of these captions are kept, and what the manifest there must say."""
    about = {
        "fingerprint": encoder.fingerprint,
        "captions": _hash(list(captions)),
        "count": len(captions),
        "dim": encoder.dim,
    }
    return store.within(f"embeddings/{_hash(about)[:32]}"), about


class _DamagedError(Exception):
    """An entry is not what its manifest, or the manifest not what its place says."""


def _read(entry: Store, about: dict[str, Any]) -> np.ndarray:
    """Raises MissingKey: nothing is there."""
    manifest = entry.read("manifest.json")
    try:
        document = json.loads(manifest)
        sha256 = document.pop("sha256")
        if document != about:
            raise _DamagedError("its manifest is of something else")
        path = entry.fetch("embeddings.npy", sha256)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise _DamagedError("embeddings.npy has another sha256 than its manifest says")
    except MissingKey:
        raise _DamagedError("embeddings.npy is missing") from None
    except StorageError as error:
        if error.code != "Damaged":
            raise
        raise _DamagedError(str(error)) from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise _DamagedError("its manifest can't be read") from None
    rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


def _write(entry: Store, about: dict[str, Any], rows: np.ndarray) -> None:
    with scratch() as folder:
        path = folder / "embeddings.npy"
        np.save(path, rows, allow_pickle=False)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        entry.upload(path, "embeddings.npy")
    manifest = json.dumps({**about, "sha256": sha256}, indent=2, sort_keys=True)
    entry.write("manifest.json", manifest.encode())


def _hash(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
