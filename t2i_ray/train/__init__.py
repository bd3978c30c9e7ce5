"""The training loop of one worker."""

from t2i_ray.train.loop import Job, Outcome, train
from t2i_ray.train.progress import duration
from t2i_ray.train.worker import Worker

__all__ = ["Job", "Outcome", "Worker", "duration", "train"]
