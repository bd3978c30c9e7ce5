"""What a run has cost: seconds of cores or GPUs, over all its attempts and numbers of workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from t2i_ray.config import Config


class Cost:
    """Counts on from a checkpoint's state.

    Args:
        config: says what a worker has.
        world: how many workers there are now.
        state: of the checkpoint; none: from zero.
    """

    def __init__(self, config: Config, world: int, state: Mapping[str, Any] | None) -> None:
        self.world = world
        cluster = config.cluster
        self._unit = "gpu" if cluster.gpu else "cpu"
        self._each = world * (1 if cluster.gpu else cluster.threads)
        self._train = state["train_seconds"] if state else 0.0
        # Older checkpoints are of runs whose number of workers never changed.
        self._cores = state.get("core_seconds", self._train * self._each) if state else 0.0
        self._counted = time.monotonic()

    def count(self) -> dict[str, float]:
        """Count up to now; perf/cpu_seconds or perf/gpu_seconds of all workers together."""
        passed, self._counted = time.monotonic() - self._counted, time.monotonic()
        self._train += passed
        self._cores += passed * self._each
        return {f"perf/{self._unit}_seconds": self._cores}

    @property
    def state(self) -> dict[str, float]:
        """What the next attempt goes on from."""
        return {"train_seconds": self._train, "core_seconds": self._cores}
