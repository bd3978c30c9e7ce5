"""The checkpoints of a run: written in the background, chosen from, and only so many kept."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from t2i_ray.checkpoint.folder import Checkpoint, DamagedCheckpoint, Folder, to_json
from t2i_ray.storage import MissingKey, StorageError, Store

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # seconds between two tries at a failing store
_WARN_EVERY = 60.0  # seconds


class Checkpoints:
    """The checkpoints of one run, in ``store`` rooted at them. One process may save.

    Kept are the newest ``keep``, the one with the best score, and those that are pinned.
    """

    def __init__(
        self, store: Store, *, keep: int, best_mode: Literal["max", "min"] = "max"
    ) -> None:
        self._store, self._keep, self._best_mode = store, keep, best_mode
        self._upload: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        #: Of the newest that this process saved or read: its step, and when it was known durable.
        self.durable = (0, time.time())

    # ------------------------------------------------------------------------- saving

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, Any],
        *,
        score: float | None = None,
        needed: Collection[int] = (),
        first: Callable[[], None] | None = None,
        on_durable: Callable[[int], None] | None = None,
    ) -> None:
        """Copy everything now, write it in the background.

        Waits first if the save before is still being written. While the store fails, the thread
        tries again without end and warns once a minute. What goes wrong in it otherwise (a bug,
        or a callback raising) is raised by the next ``save`` or ``wait``.

        Args:
            step: updates done.
            tensors: group -> name -> tensor, on any device.
            documents: name -> JSON value.
            score: by which the best is chosen; NaN and infinity count as none.
            needed: steps whose checkpoints are kept as well for now.
            first: called in the thread before anything is written, again while it raises
                StorageError; for files that must be there if the checkpoint is.
            on_durable: called with the step, in the thread, once the manifest is written.
        """
        self.wait()
        if self._closed.is_set():
            raise RuntimeError("these checkpoints were closed")
        for name in [*tensors, *documents]:
            if not _NAME.fullmatch(name) or name == "manifest":
                raise ValueError(f"{name!r} can't be the name of a checkpoint's file")
        host = {group: _to_host(named) for group, named in tensors.items()}
        texts = {name: to_json(value) for name, value in documents.items()}
        score = score if score is not None and math.isfinite(score) else None

        def files() -> Iterator[tuple[str, bytes]]:  # one at a time, to hold one copy only
            if first:
                first()
            from safetensors.torch import save as save_tensors

            for group, named in host.items():
                yield f"{group}.safetensors", save_tensors(named)
            for name, text in texts.items():
                yield f"{name}.json", text

        def run() -> None:
            try:
                if self._persist(step, files, score):
                    self.durable = (step, time.time())
                    if on_durable:
                        on_durable(step)
                    self._retain(step, needed)
            except BaseException as error:  # raised again where somebody will see it
                self._failure = error

        self._upload = threading.Thread(target=run, name=f"checkpoint-{step}", daemon=True)
        self._upload.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that was saved is durable; False if it is not after ``timeout`` s."""
        if self._upload is not None:
            self._upload.join(timeout)
            if self._upload.is_alive():
                return False
            self._upload = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return True

    def close(self) -> None:
        """Give up what a failing store keeps from being written. ``wait`` first to keep it."""
        self._closed.set()
        self.wait()

    def _persist(
        self, step: int, files: Callable[[], Iterator[tuple[str, bytes]]], score: float | None
    ) -> bool:
        """Write until it succeeds; False if closed before."""
        folder = Folder(self._store, step)
        pause, warned = _FIRST_PAUSE, -math.inf
        while True:
            try:
                folder.write(files(), score)
                return True
            except StorageError as error:
                if time.monotonic() - warned >= _WARN_EVERY:
                    warned = time.monotonic()
                    logger.warning("checkpoint %s not written yet, trying on: %s", step, error)
            # On a full disk the part that was written is in the way of everything else.
            with suppress(StorageError):
                folder.remove()
            if self._closed.wait(pause):
                logger.warning("checkpoint %s given up: closed while the store failed", step)
                return False
            pause = min(2 * pause, _LONGEST_PAUSE)

    # ----------------------------------------------------------------------- retention

    def forget_after(self, step: int) -> None:
        """Remove all of later steps: the run has gone back to this one."""
        for later in reversed(self._folders()):
            if later > step:
                Folder(self._store, later).remove()

    def _retain(self, step: int, needed: Collection[int]) -> None:
        try:
            # Later ones are leftovers that this run, resumed from before them, has yet to reach:
            # they must not count as the newest.
            past = [whole for whole in self.steps() if whole <= step]
            kept = {*past[-self._keep :], self.best(), *needed}
            kept |= {int(self._store.read(key)) for key in self._store.list("pins")}
            for old in self._folders():
                if old < step and old not in kept:
                    Folder(self._store, old).remove()
        except (StorageError, MissingKey, ValueError) as error:
            logger.warning("old checkpoints not removed until the next save: %s", error)

    # ------------------------------------------------------------------------- reading

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        return [step for step, whole in self._folders().items() if whole]

    def best(self) -> int | None:
        """Step with the best score; of equals the newest; None if no checkpoint has one."""
        sign = 1 if self._best_mode == "max" else -1
        scores = []
        for step in self.steps():
            with suppress(DamagedCheckpoint):
                score = Folder(self._store, step).manifest()["score"]
                if score is not None:
                    scores.append((sign * score, step))
        return max(scores)[1] if scores else None

    def latest(self, *, only: Collection[str] | None = None) -> Checkpoint | None:
        """The newest sound checkpoint; each damaged one before it is named in a warning.

        With ``only``, of the tensors no other groups are read, or checked.
        """
        for step in reversed(self._folders()):
            try:
                return self.load(step, only=only)
            except DamagedCheckpoint as error:
                logger.warning("%s; the checkpoint before it is used", error)
        return None

    def load(self, step: int, *, only: Collection[str] | None = None) -> Checkpoint:
        """Read a checkpoint and check every sum.

        With ``only``, of the tensors no other groups are read; documents always are.

        Raises:
            DamagedCheckpoint: a file is missing, truncated or altered.
            StorageError: the store could not be read.
        """
        checkpoint = Folder(self._store, step).load(only)
        self.durable = (step, time.time())
        return checkpoint

    def _folders(self) -> dict[int, bool]:
        """Step -> whether it has a manifest, ascending."""
        found: dict[int, bool] = {}
        for key in self._store.list():
            if match := re.fullmatch(r"step_(\d{8,})/(.+)", key):
                step = int(match[1])
                found[step] = found.get(step, False) or match[2] == "manifest.json"
        return dict(sorted(found.items()))


def _to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that no later update can change, row-major."""
    import torch

    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
