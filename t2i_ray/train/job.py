"""What a worker is told to do, and what it says when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from t2i_ray.runs import Status


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker: plain JSON."""

    config: dict[str, Any]
    data: str  # prefix of the prepared data
    encoder: dict[str, Any] | None  # one without weights; None: made from the config
    about: dict[str, Any]  # what MLflow is told of this attempt
    quiet: bool = False  # no progress lines: one of many
    until: int | None = None  # go no further than this step; the run is not over there
    inherits: dict[str, Any] | None = None  # at this "step", go on with the weights "of" a prefix
    marks: dict[str, float] = field(default_factory=dict)  # shown once, with the next losses


@dataclass(frozen=True)
class Outcome:
    """How a worker's loop ended."""

    status: Status
    step: int
    reason: str | None = None
    published: bool = True
    moves: bool = False  # it left, with a checkpoint, to be started again at once elsewhere
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # see guards.py
