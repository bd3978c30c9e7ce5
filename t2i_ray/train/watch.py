"""What is looked at while a worker trains: times and losses for Prometheus, and a profile.

Nothing here knows Prometheus, or Ray: values go to a function that is handed in, once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from t2i_ray.config import Config
from t2i_ray.train.bystander import Bystander
from t2i_ray.train.feed import Feed
from t2i_ray.train.profiling import Profiler
from t2i_ray.train.worker import Worker

#: Shows values under their names.
Show = Callable[[Mapping[str, float]], None]
#: What is shown, and what it means; of rank 0 alone, save the first two.
GAUGES = {
    "step_seconds": "Seconds of an update, without grids, measures and checkpoints; mean.",
    "data_wait_share": "Share of an update's time in which its batch was read and cut.",
    "step": "Updates done.",
    "steps": "Updates of the whole run.",
    "images_per_second": "Real pictures per second of all workers, all pauses counted.",
    "checkpoint_lag_steps": "Updates since the newest durable checkpoint.",
    "checkpoint_time_seconds": "When a checkpoint was last durable, or the attempt began; Unix.",
    "spool_rows": "Rows of metrics that are not in MLflow yet, covered by a checkpoint or not.",
    "mlflow_outage_seconds": "For how long MLflow has not taken anything; 0: it does.",
}
LOSS = "train_"  # begins the names of what the family logs, such as train_d_loss
EVERY = 1.0  # seconds


class Watch:
    """One worker's.

    Args:
        config: of the run.
        worker: whose.
        feed: of the worker.
        chief: knows what only rank 0 does, and takes files of the run.
        show: shows values; None: nobody looks.
    """

    def __init__(
        self, config: Config, worker: Worker, feed: Feed, chief: Bystander, show: Show | None
    ) -> None:
        self._config, self._feed, self._chief, self._show = config, feed, chief, show
        window = config.train.profiled if worker.is_chief else range(0)
        self._profiler = Profiler(window, worker.device, chief.artifact)
        self._is_chief = worker.is_chief
        self._begin()

    def _begin(self) -> None:
        """A new second."""
        self._since = self._last = time.perf_counter()
        self._updates, self._seconds, self._fed = 0, 0.0, self._feed.seconds

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Around the update that follows ``step`` others."""
        self._last = time.perf_counter()
        with self._profiler.update(step):
            yield
        self._count()
        self._updates += 1
        self._profiler.finish(step + 1)
        self._last = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds += now - self._last
        self._last = now

    def tell(self, step: int, losses: Mapping[str, float]) -> None:
        """Right after the losses of an update were added up, in which a GPU is waited for."""
        if self._show is None:
            return
        self._count()
        elapsed = self._last - self._since
        if elapsed < EVERY:
            return
        values = {
            "step_seconds": self._seconds / self._updates,
            "data_wait_share": (self._feed.seconds - self._fed) / self._seconds,
        }
        if self._is_chief:
            train = self._config.train
            values |= {
                "step": step,
                "steps": train.steps,
                "images_per_second": self._updates * train.batch_size / elapsed,
                **{f"{LOSS}{name}": value for name, value in losses.items()},
                **self._chief.standing(step),
            }
        self._show(values)
        self._begin()

    def close(self) -> None:
        """The run ends here."""
        self._profiler.close()
