"""What all ranks but the first do: nothing. And so the list of what rank 0 does for all."""

from __future__ import annotations

from collections.abc import Mapping

from t2i_ray.family import Objective

WAITS, MAY, MAY_NOT = 0, 1, 2  # whether a checkpoint may be saved now


class Bystander:
    """Every other rank: takes part in nothing but the steps."""

    def __init__(self, *_: object) -> None:
        self.measured: dict[str, float] = {}  # on the weights of the last checkpoint, if at all
        self.superseded: str | None = None  # who has taken over, once that is known

    @property
    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return False

    @property
    def look_due(self) -> bool:
        """Whether all ranks are to look for a reason to go on elsewhere."""
        return False

    def log(self, step: int, losses: Mapping[str, float]) -> None:
        """Take down a step's losses."""

    def samples_due(self, step: int) -> bool:  # noqa: ARG002
        """Whether a sample grid is to be drawn after this step."""
        return False

    def sample(self, step: int, objective: Objective) -> None:
        """Draw the sample grid."""

    def evaluation_due(self, step: int) -> bool:  # noqa: ARG002
        """Whether the measures are to be taken after this step."""
        return False

    def evaluate(self, step: int, objective: Objective) -> None:
        """Take the measures on the validation split."""

    def artifact(self, key: str, data: bytes) -> None:
        """Keep a file of the run."""

    def standing(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """What only rank 0 knows, as watch.GAUGES names it."""
        return {}

    def may_save(self, patience: float) -> int:  # noqa: ARG002
        """MAY; WAITS if the last checkpoint is not written after so many seconds; MAY_NOT."""
        return MAY

    def save(self, step: int, objective: Objective) -> None:
        """Save a checkpoint."""

    def lacks_diversity(self, step: int, objective: Objective) -> bool:  # noqa: ARG002
        """Whether the pictures of the sample grid are too much alike."""
        return False

    def go_back(self, step: int, reason: str) -> None:
        """Forget what is later than the point to go back to, where training will go on."""

    def give_up(self) -> str:
        """The run has failed for good: MLflow may show also what no checkpoint covers.

        Says which checkpoint is the last good one.
        """
        return ""

    def close(self, *, in_haste: bool = False) -> bool:  # noqa: ARG002
        """Finish; whether MLflow has everything."""
        return True
