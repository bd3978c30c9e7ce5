"""The training loop of one worker."""

from t2i_ray.train.job import Job, Outcome
from t2i_ray.train.loop import Report, train
from t2i_ray.train.opening import load_pair
from t2i_ray.train.progress import duration
from t2i_ray.train.watch import GAUGES, Show
from t2i_ray.train.worker import Worker

__all__ = ["GAUGES", "Job", "Outcome", "Report", "Show", "Worker", "duration", "load_pair", "train"]
