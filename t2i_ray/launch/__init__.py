"""From a config to a run on a Ray cluster.

The driver decides nothing about the curve. It makes sure of the data, starts the workers, passes
on a wish to stop, and writes down how the run ended.
"""

from t2i_ray.launch.attempt import Attempt, begin
from t2i_ray.launch.cluster import (
    at_most,
    connect,
    lacks_shared_folder,
    ray_tasks,
    reach,
    shortfalls,
    worker_environment,
)
from t2i_ray.launch.driver import (
    make_shared_once,
    open_checked,
    prepare_data,
    tell_prepared,
    train,
    with_absolute_paths,
    with_pinned_encoder,
)
from t2i_ray.launch.fit import StopOnSignal, fit_workers
from t2i_ray.launch.joining import START_WITH_TOKEN, refuses_strangers
from t2i_ray.launch.settle import settle, sync

__all__ = [
    "START_WITH_TOKEN",
    "Attempt",
    "StopOnSignal",
    "at_most",
    "begin",
    "connect",
    "fit_workers",
    "lacks_shared_folder",
    "make_shared_once",
    "open_checked",
    "prepare_data",
    "ray_tasks",
    "reach",
    "refuses_strangers",
    "settle",
    "shortfalls",
    "sync",
    "tell_prepared",
    "train",
    "with_absolute_paths",
    "with_pinned_encoder",
    "worker_environment",
]
