"""From a config to a run on a Ray cluster.

The driver decides nothing about the curve. It makes sure of the data, starts the workers, passes
on a wish to stop, and writes down how the run ended.
"""

from t2i_ray.launch.driver import train
from t2i_ray.launch.settle import sync

__all__ = ["sync", "train"]
