"""What looking at a run costs it: microseconds per update, on average and when values are shown.

    python benchmarks/watch.py              # shown to nobody, and to a function that does nothing
    python benchmarks/watch.py --ray        # to Ray's metrics, on a cluster of its own

Of an update nothing is computed here: only what `train.watch` adds to it. The limit is 100 µs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

from t2i_ray.config import parse_config
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


if __name__ == "__main__":
    main()
