"""One checkpoint on storage: its files, their sums, and what is checked when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from t2i_ray.storage import MissingKey, Store

if TYPE_CHECKING:
    from torch import Tensor


class DamagedCheckpoint(Exception):  # noqa: N818 - what it is, for a sentence in a log
    """A checkpoint that can't be trusted; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after ``step`` updates. Tensors are in host memory."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


class Folder:
    """The checkpoint of ``step`` in ``store``, whether it is there or not."""

    def __init__(self, store: Store, step: int) -> None:
        self._store, self._step = store, step
        self._name = f"step_{step:08d}"

    def write(self, files: Iterator[tuple[str, bytes]], score: float | None) -> None:
        """Put its files there one after another, and the manifest last."""
        self.remove()  # an earlier attempt's
        sums = {}
        for name, data in files:
            self._store.write(f"{self._name}/{name}", data)
            sums[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        manifest = {"format": 1, "step": self._step, "score": score, "files": sums}
        self._store.write(f"{self._name}/manifest.json", to_json(manifest))

    def remove(self) -> None:
        """The manifest goes first: what is half removed must not pass for a whole one."""
        self._store.delete(f"{self._name}/manifest.json")
        self._store.delete(self._name)

    def load(self, only: Collection[str] | None = None) -> Checkpoint:
        """Read a checkpoint and check every sum.

        With ``only``, of the tensors no other groups are read; documents always are.

        Raises:
            DamagedCheckpoint: a file is missing, truncated or altered.
            StorageError: the store could not be read.
        """
        # It imports torch, which takes seconds; a driver that looks for steps does without.
        from safetensors.torch import load as load_tensors

        tensors: dict[str, dict[str, Tensor]] = {}
        documents: dict[str, Any] = {}
        for file, expected in self.manifest()["files"].items():
            name, _, suffix = file.rpartition(".")
            if suffix == "safetensors" and only is not None and name not in only:
                continue
            data = self._read(file, expected)
            try:
                if suffix == "safetensors":
                    tensors[name] = load_tensors(data)
                else:
                    documents[name] = json.loads(data)
            except (SafetensorError, ValueError, RecursionError) as error:
                raise self._damaged(file, str(error)) from error
        return Checkpoint(self._step, tensors, documents)

    def manifest(self) -> dict[str, Any]:
        """What it says of its files. Raises DamagedCheckpoint."""
        try:
            manifest = json.loads(self._store.read(f"{self._name}/manifest.json"))
            sound = (
                manifest["format"] == 1
                and manifest["step"] == self._step
                and isinstance(manifest["score"], int | float | None)
                and all({"sha256", "size"} == set(sums) for sums in manifest["files"].values())
            )
        except MissingKey:
            raise self._damaged("manifest.json", "missing, it was never finished") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise self._damaged("manifest.json", "not a manifest of this step")
        return dict(manifest)

    def _read(self, file: str, expected: Mapping[str, Any]) -> bytes:
        try:
            data = self._store.read(f"{self._name}/{file}")
        except (MissingKey, ValueError):  # ValueError: the manifest's name is no key
            raise self._damaged(file, "missing") from None
        if len(data) != expected["size"]:
            why = f"{len(data)} bytes long, not {expected['size']}"
            raise self._damaged(file, why)
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise self._damaged(file, "its sha256 is not the manifest's")
        return data

    def _damaged(self, file: str, why: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"{self._store.uri}/{self._name}/{file} is damaged: {why}")


def to_json(value: Any) -> bytes:
    """A document as it is written."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
