"""Where the time of some updates goes: a trace by torch.profiler, and its largest operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from t2i_ray.storage.scratch import scratch

ROWS = 25  # of the table


class Profiler:
    """Traces the updates of a window. It draws no random number and computes nothing of its own.

    Args:
        window: the updates, each by how many there were before it; may be empty.
        device: of the worker.
        keep: is given each file's key and content when the window is over.
    """

    def __init__(
        self, window: range, device: torch.device, keep: Callable[[str, bytes], None]
    ) -> None:
        self._window, self._keep = window, keep
        self._gpu = device.type == "cuda"
        self._profile: torch.profiler.profile | None = None
        self._first = 0

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Around the update that follows ``step`` others."""
        if step not in self._window:
            yield
            return
        if self._profile is None:
            self._begin(step)
        with torch.profiler.record_function(f"update {step + 1}"):
            yield

    def finish(self, step: int) -> None:
        """After ``step`` updates: keep the trace, if the window ends here."""
        if self._profile is None or step != self._window.stop:
            return
        if self._gpu:
            torch.cuda.synchronize()  # kernels that were only asked for belong to it
        profile, self._profile = self._profile, None
        profile.stop()
        key = f"profile/steps_{self._first + 1:08d}_{step:08d}"
        with scratch() as folder:
            file = folder / "trace.json.gz"
            profile.export_chrome_trace(str(file))
            self._keep(f"{key}.json.gz", file.read_bytes())
        by = "self_device_time_total" if self._gpu else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        head = f"Updates {self._first + 1} to {step} of rank 0; the {ROWS} largest operations.\n"
        self._keep(f"{key}.txt", (head + table).encode())

    def close(self) -> None:
        """Within the window: end it, and forget what was traced."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _begin(self, step: int) -> None:
        # Read when first used: else it tells on stderr that it starts and stops.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities)
        self._profile.start()
        self._first = step
