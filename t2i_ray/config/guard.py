"""What counts as a run that has gone wrong, and what is done about it."""

from __future__ import annotations

from typing import Literal

from t2i_ray.config.fields import Section, identity


class Guard(Section):
    """When to end a run that has gone wrong, or to go back and take smaller steps.

    A loss or gradient that is not finite is always looked for. With ``action: stop`` nothing here
    is part of the run's identity: a run that is not stopped has the same curve.
    """

    action: Literal["stop", "rollback"] = identity(
        "stop",
        doc="stop: the run ends as FAILED; rollback: it goes back to the newest step that is a "
        "multiple of guard.every and was sound, with lower learning rates.",
    )
    every: int = identity(
        1000,
        doc="Steps between two looks at guard.diversity and, with rollback, between two points to "
        "go back to, at which a checkpoint is saved.",
        ge=1,
    )
    rate: float = identity(
        0.5, doc="rollback: factor on all learning rates, once more each time.", gt=0, lt=1
    )
    rollbacks: int = identity(3, doc="rollback: how often; then the run fails.", ge=1)
    discriminator: int = identity(
        1000,
        doc="So many steps in a row in which D is right about every real and every generated "
        "picture, and G's gradient is shorter than guard.gradient, are a collapse; 0: never.",
        ge=0,
    )
    gradient: float = identity(
        1e-6,
        doc="Length of G's gradient (grad_g) below which G learns nothing from it: with a million "
        "weights each entry is a tenth of Adam's epsilon of 1e-8.",
        ge=0,
    )
    diversity: float = identity(
        0.0,
        doc="Standard deviation of the sample grid's pictures, of numbers from -1 to 1, below "
        "which G has collapsed; 0: not looked at.",
        ge=0,
    )

    @property
    def counts(self) -> bool:
        """Whether the curve may depend on it."""
        return self.action == "rollback"
