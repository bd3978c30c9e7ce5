"""What workers show, in Prometheus: each Ray node exports it, at its metrics port.

The names there begin with ``ray_t2i_``; the labels of ours are the run's name and the rank. A
series ends some 20 s after its process (Ray's own rule), so old runs leave none behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from t2i_ray.train import GAUGES, Show

PREFIX = "t2i_"
LABELS = ("run", "rank")


def gauges(run: str, rank: int) -> Show:
    """A function that shows values of this worker; in a process of Ray's."""
    from ray.util.metrics import Gauge

    made: dict[str, Gauge] = {}
    labels = dict(zip(LABELS, (run, str(rank)), strict=True))

    def show(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            gauge = made.get(name)
            if gauge is None:
                about = GAUGES.get(name, "What the family logs of an update.")
                gauge = Gauge(exported(name), description=about, tag_keys=LABELS)
                made[name] = gauge.set_default_tags(labels)
            gauge.set(value)

    return show


def exported(name: str) -> str:
    """The name that Ray is told, which puts ``ray_`` before it; a family may log under any name."""
    return PREFIX + re.sub(r"\W", "_", name, flags=re.ASCII)
