"""One line now and then on where the run stands, for terminals and job logs alike."""

from __future__ import annotations

import time
from collections.abc import Mapping


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 42s, 3m07s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Speed and time left, measured since the last line."""

    def __init__(self, name: str, start: int, steps: int, batch_size: int, every_s: float = 10.0):
        self._name = name
        self._steps = steps
        self._batch_size = batch_size
        self._every_s = every_s
        self._last_step = start
        self._last_time = time.monotonic()

    def images_per_second(self, step: int) -> float:
        """Speed since the last line, pictures per second of all workers together."""
        elapsed = time.monotonic() - self._last_time
        return (step - self._last_step) * self._batch_size / max(elapsed, 1e-9)

    def line(self, step: int, losses: Mapping[str, float]) -> str | None:
        """The line for a step, if one is due: after every_s seconds, and for the last step."""
        due = time.monotonic() - self._last_time >= self._every_s or step == self._steps
        if not due or step == self._last_step:
            return None
        speed = self.images_per_second(step)
        left = (self._steps - step) * self._batch_size / max(speed, 1e-9)
        self._last_step, self._last_time = step, time.monotonic()
        width = len(str(self._steps))
        shown = "".join(
            f"{label} {losses[name]:.3f}  "
            for label, name in (("D", "d_loss"), ("G", "g_loss"))
            if name in losses
        )
        return (
            f"{self._name}  step {step:>{width}}/{self._steps}  {shown}"
            f"{speed:.0f} images/s  {duration(left)} left"
        )
