"""The training loop of one worker."""

from t2i_ray.train.loop import Job, Outcome, Report, train
from t2i_ray.train.progress import duration
from t2i_ray.train.watch import GAUGES, Show
from t2i_ray.train.worker import Worker

__all__ = ["GAUGES", "Job", "Outcome", "Report", "Show", "Worker", "duration", "train"]
