"""What looking at a run costs it: microseconds per update, on average and when values are shown.

    python benchmarks/watch.py              # shown to nobody, and to a function that does nothing
    python benchmarks/watch.py --ray        # to Ray's metrics, on a cluster of its own

Of an update nothing is computed here: only what `train.watch` adds to it, and, in the last lines,
what the tracker does while MLflow is away: what it costs to log an update, how large all that
waits is in the end, in memory and in a checkpoint, and how long training stands still for its copy
in that checkpoint. The limit is 100 µs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from t2i_ray.checkpoint.folder import to_json
from t2i_ray.config import parse_config
from t2i_ray.storage import LocalStore
from t2i_ray.tracking import About, Destination, Tracker
from t2i_ray.tracking.spool import Spool
from t2i_ray.train import Show, Worker, watch
from t2i_ray.train.bystander import Bystander
from t2i_ray.train.feed import Feed

LOSSES = dict.fromkeys(
    ("d_loss", "g_loss", "d_real", "d_wrong", "d_fake", "d_acc_real", "d_acc_wrong", "d_acc_fake"),
    0.5,
)
STANDING = {
    "checkpoint_lag_steps": 1.0,
    "checkpoint_time_seconds": 1.0,
    "spool_rows": 1.0,
    "mlflow_outage_seconds": 0.0,
}


class Knowing(Bystander):
    """Rank 0 as far as the watch asks it."""

    def standing(self, step: int) -> dict[str, float]:
        return {**STANDING, "checkpoint_lag_steps": float(step)}


def microseconds(show: Show | None, updates: int, every: float) -> float:
    """Per update, of so many, values being shown every so many seconds."""
    config = parse_config({"name": "benchmark", "train": {"steps": updates}})
    watch.EVERY = every
    feed = cast(Feed, SimpleNamespace(seconds=0.0))
    looked_at = watch.Watch(config, Worker(), feed, Knowing(), show)
    begun = time.perf_counter()
    for step in range(updates):
        with looked_at.update(step):
            pass
        looked_at.tell(step + 1, LOSSES)
    return (time.perf_counter() - begun) / updates * 1e6


def spooled(updates: int) -> tuple[float, float, float, float]:
    """Of so many logged updates: microseconds each, MB of memory, MB and seconds of a snapshot."""
    nowhere = Destination("http://127.0.0.1:9", "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        tracker = Tracker(nowhere, About("benchmark", "benchmark"), LocalStore(Path(folder)))
        begun = time.perf_counter()
        for step in range(updates):
            tracker.log(step + 1, LOSSES)
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        document = to_json(tracker.snapshot(updates))
        pause = time.perf_counter() - begun
        tracker.close()
    spool = Spool()
    tracemalloc.start()
    for step in range(updates):
        spool.metrics(step + 1, LOSSES, 1_000_000_000_000 + step)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds / updates * 1e6, memory / 1e6, len(document) / 1e6, pause


def nothing(_: Mapping[str, float]) -> None:
    """What a function is called for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--updates", type=int, default=500_000)
    given = parser.parse_args()
    shows: dict[str, Show | None] = {"nobody": None, "a function": nothing}
    if given.ray:
        import ray

        from t2i_ray.launch.gauges import gauges

        ray.init("local", include_dashboard=False, logging_level="error", num_cpus=1)
        shows["Ray"] = gauges("benchmark", 0)
    print("shown to      µs per update   of one that is shown")
    for name, show in shows.items():
        usual = microseconds(show, given.updates, every=1.0)
        shown = microseconds(show, max(1, given.updates // 100), every=0.0)
        print(f"{name:12}  {usual:13.2f}   {shown:20.1f}")
    cost, memory, document, pause = spooled(given.updates)
    print(f"MLflow away: {cost:.1f} µs an update that is logged, of {len(LOSSES)} values")
    print(
        f"{given.updates} that wait: {memory:.0f} MB of memory, {document:.0f} MB of a checkpoint, "
        f"for which training stands still {pause:.2f} s"
    )


if __name__ == "__main__":
    main()
