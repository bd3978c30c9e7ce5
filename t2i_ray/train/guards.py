"""Guards: they see when training has gone wrong, and say to which step it is to go back.

Every rank has one, and all are shown the same values, so all decide alike. What a guard remembers
is in each checkpoint, and it looks at nothing that depends on operational fields: a run that is
killed and resumed sees what the unbroken one saw, at the same step.

With ``guard.action=rollback``, the multiples of ``guard.every`` are the points to go back to. One
counts as sound if, when it was reached, all was finite and no collapse had begun. Only what lies
before a sound point is committed: MLflow is never shown steps that are gone back over. To go back
is to remove what is later, note it in ``rollbacks.json``, and to resume. Who is killed right after
it resumes the same way; who is killed right before it goes wrong again, and goes back then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from t2i_ray.config import Config
from t2i_ray.runs import D_COLLAPSED, DIVERGED, G_COLLAPSED, OVERFLOWN

ROLLBACKS_KEY = "rollbacks.json"  # of a run's storage: those of its newest branch
RIGHT = ("d_acc_real", "d_acc_fake")  # how often D is right
ALWAYS = 1 - 1e-6  # a sum of shares may not be 1 to the last bit


class Guard:
    """What one run's guard has seen.

    Args:
        config: of the run.
        step: of the checkpoint from which the run goes on; 0: it starts.
        state: what ``state`` gave for that checkpoint.
        noted: rollbacks that were noted on storage, perhaps later than that checkpoint.

    Attributes:
        good: the newest step to go back to; 0: the start.
        rollbacks: those behind this step: "at" which step, back "to" which, for which "reason".
    """

    def __init__(
        self,
        config: Config,
        step: int = 0,
        state: Mapping[str, Any] | None = None,
        noted: list[dict[str, Any]] | None = None,
    ) -> None:
        state = state or {}
        self._config, self._steps = config.guard, config.train.steps
        self._since: int | None = state.get("since")  # D has been winning too well
        self.good: int = state.get("good", step)
        self.rollbacks: list[dict[str, Any]] = list(state.get("rollbacks", []))
        noted, known = noted or [], len(self.rollbacks)
        if noted[:known] == self.rollbacks:  # else they are of a branch that was left
            for further in noted[known:]:
                if further["to"] != step:
                    break
                self.rollbacks.append(further)

    # ------------------------------------------------------------------------ looking

    @property
    def looks_always(self) -> bool:
        """Whether it has to see every step, so that log_every has no say in the curve."""
        return self._config.counts and self._config.discriminator > 0

    def look(self, step: int, losses: Mapping[str, float]) -> str | None:
        """What is wrong after this step, if anything.

        Args:
            step: updates done.
            losses: its losses and lengths of gradients, of all workers together.
        """
        broken = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if broken:
            what = OVERFLOWN if all(name.startswith("grad") for name in broken) else DIVERGED
            return f"{what} at step {step}: " + ", ".join(f"{k}={v}" for k, v in broken.items())
        patience = self._config.discriminator
        wins = all(losses.get(name, 0.0) >= ALWAYS for name in RIGHT)
        if not (patience and wins and losses.get("grad_g", math.inf) < self._config.gradient):
            self._since = None
            return None
        self._since = self._since or step
        if step - self._since + 1 < patience:
            return None
        return (
            f"{D_COLLAPSED} at step {step}: right about every picture since step {self._since}, "
            f"with a gradient for the generator of {losses['grad_g']:.2g}, under guard.gradient="
            f"{self._config.gradient:g}"
        )

    def looks_at_pictures(self, step: int) -> bool:
        """Whether the sample grid's diversity is to be looked at after this step."""
        return self._config.diversity > 0 and (
            step % self._config.every == 0 or step == self._steps
        )

    def lacks_diversity(self, diversity: float) -> bool:
        """Whether a standard deviation of pictures is a collapsed generator's."""
        return diversity < self._config.diversity

    def without_diversity(self, step: int) -> str:
        """The reason to give then."""
        return (
            f"{G_COLLAPSED} at step {step}: its pictures differ by less than "
            f"guard.diversity={self._config.diversity:g}"
        )

    # -------------------------------------------------------------- points to go back to

    def is_point(self, step: int) -> bool:
        """Whether a checkpoint of this step may be gone back to."""
        return not self._config.counts or step % self._config.every == 0

    def saves(self, step: int) -> bool:
        """Whether this step needs a checkpoint, so that it can be gone back to."""
        return self._config.counts and self.is_point(step)

    def reach(self, step: int) -> None:
        """A checkpoint of this step is about to be saved."""
        if self.is_point(step) and self._since is None:
            self.good = step

    def holds(self, step: int) -> bool:
        """Whether the run may yet go back behind the checkpoint of this step."""
        return self._config.counts and self.good != step and step != self._steps

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON."""
        return {"since": self._since, "good": self.good, "rollbacks": self.rollbacks}

    # ------------------------------------------------------------------------ going back

    @property
    def rate(self) -> float:
        """Factor on the learning rates from here on."""
        return float(self._config.rate ** len(self.rollbacks))

    @property
    def may_go_back(self) -> bool:
        """Whether to go back now that something is wrong, and not to end."""
        return self._config.counts and len(self.rollbacks) < self._config.rollbacks

    def go_back(self, step: int, reason: str) -> list[dict[str, Any]]:
        """All rollbacks with one more, from this step: what to note on storage."""
        return [*self.rollbacks, {"at": step, "to": self.good, "reason": reason}]

    def told(self) -> str:
        """The rollbacks, one a line."""
        return "\n".join(
            f"{one['reason']}; back to step {one['to']}, learning rates x "
            f"{self._config.rate ** (number + 1):g}"
            for number, one in enumerate(self.rollbacks)
        )
