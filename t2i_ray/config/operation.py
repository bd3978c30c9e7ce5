"""Where and how a run is carried out: checkpoints, measures, storage, MLflow, Ray.

None of it has a say in the run's curve.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from t2i_ray.config.fields import Section, operational
from t2i_ray.config.measures import INCEPTION, MATCHING, WHILE_TRAINING, Group, larger_is_better


class Checkpoint(Section):
    """When to save, and what to keep."""

    every: int = operational(1000, doc="Steps between two checkpoints.", ge=1)
    keep: int = operational(3, doc="How many of the newest checkpoints are kept.", ge=1)
    best: str | None = operational(
        None, doc="Metric by which one more checkpoint is kept, e.g. val/agreement/mean."
    )
    best_mode: Literal["max", "min"] = operational("max", doc="Whether larger is better.")

    @model_validator(mode="after")
    def _check(self) -> Checkpoint:
        larger = larger_is_better(self.best or "")  # None, too, of what is no measure of ours
        if larger is not None and larger != (self.best_mode == "max"):
            raise ValueError(
                f"checkpoint.best_mode={self.best_mode}: checkpoint.best={self.best} is better "
                f"when {'large' if larger else 'small'}; write {'max' if larger else 'min'}"
            )
        return self


class Evaluation(Section):
    """Measures of generated pictures: while training, on the validation split."""

    every: int = operational(0, doc="Steps between two evaluations; 0: none.", ge=0)
    samples: int = operational(512, doc="Pictures generated for one evaluation.", ge=2)
    measures: list[Group] = operational(
        WHILE_TRAINING,
        doc="What is measured: by the reader where data has attributes, and by what is given "
        "below. What nothing can be measured by is left out.",
        min_length=1,
    )
    aside: int = operational(
        0,
        doc="CPU cores of a Ray task of its own that measures checkpoints while training goes on; "
        "0: rank 0 measures, and training waits. Pretraining is measured by rank 0 in any case.",
        ge=0,
    )
    resamples: int | None = operational(
        None,
        doc="Resamples behind the 95 % interval of a distance that is measured aside, of a mean "
        "five times as many; 0: no intervals. None: 200, but with Inception 0, of whose distances "
        "one resample takes seconds. Rank 0, for which training waits, takes none.",
        ge=0,
    )
    inception: str | None = operational(
        None,
        doc="Path of Inception's weights as .safetensors, by which to measure as well; see "
        "docs/measures.md.",
    )
    matcher: str | None = operational(
        None,
        doc="A run of pretrain-encoder by matching in the same storage, by which to measure as "
        "well: R-precision, and distances in its codes of pictures.",
    )

    @property
    def models(self) -> list[str]:
        """Names of what pictures are measured by besides the reader."""
        given = {INCEPTION: self.inception, MATCHING: self.matcher}
        return [name for name, value in given.items() if value]


class Storage(Section):
    """One place for prepared data, embeddings, checkpoints, samples and MLflow's artifacts."""

    uri: str = operational("~/t2i_ray", doc="A local folder, or s3://bucket/prefix.")
    endpoint: str | None = operational(
        None, doc="URL of an S3 server other than AWS, e.g. http://127.0.0.1:9000."
    )
    region: str | None = operational(None, doc="Region of the bucket.")
    shared: bool = operational(
        False, doc="Say that a local folder is the same on every node (NFS and the like)."
    )


class Tracking(Section):
    """MLflow."""

    uri: str | None = operational(
        None,
        doc="MLflow's tracking URI; none: MLFLOW_TRACKING_URI, else sqlite in a local storage.",
    )
    experiment: str = operational("t2i_ray", doc="MLflow's experiment.")
    enabled: bool = operational(True, doc="Whether to log to MLflow at all.")
    register_model: bool = operational(
        False, doc="Make the finished run's generator a version in MLflow's model registry."
    )


class Cluster(Section):
    """What to ask of Ray."""

    address: str | None = operational(
        None, doc="Ray cluster to join; none: RAY_ADDRESS, else one of its own on this machine."
    )
    workers: int = operational(1, doc="DDP workers.", ge=1)
    min_workers: int | None = operational(
        None,
        doc="Go on with as few as these while the cluster has no room for all workers, and with "
        "more as soon as it has; none: always all of them.",
        ge=1,
    )
    resize_s: float = operational(
        60.0, doc="cluster.min_workers: seconds between two looks for room for more.", gt=0
    )
    gpu: bool = operational(False, doc="One GPU a worker, NCCL; else CPU and gloo.")
    threads: int = operational(1, doc="CPU cores and compute threads of a worker.", ge=1)
    max_failures: int = operational(
        3,
        doc="Restarts after lost workers before the run fails; -1: no limit. Leaving a node that "
        "is drained, or for another number of workers, is none.",
        ge=-1,
    )
    timeout_s: int = operational(
        600,
        doc="Seconds after which a worker that does not answer is given up, and all start again. "
        "Longer than rank 0 takes for one evaluation, for which the others wait.",
        ge=5,
    )

    @property
    def fewest(self) -> int:
        """The number of workers below which nothing goes on."""
        return self.min_workers or self.workers

    @model_validator(mode="after")
    def _check(self) -> Cluster:
        if self.fewest > self.workers:
            raise ValueError(
                f"cluster.min_workers={self.min_workers} is more than "
                f"cluster.workers={self.workers}; make it that or less, or leave it out"
            )
        return self
