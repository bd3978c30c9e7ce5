"""Population based training (Jaderberg et al. 2017), as a function of the sweep's file alone.

All members train to the same step. There, the worst take over the weights and optimisers of the
best, and their values, changed at random; then all go on. What happened is kept on storage in
``sweeps/<name>/takeovers.json``, one entry a generation, so that a sweep that goes on after a kill
goes on with the same members. Chance is drawn from the seed, the generation and the member, so
neither kills nor the order in which members arrive change anything.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from t2i_ray.config import Pbt, Sweep
from t2i_ray.runs import STEP, Scores, read_run, run_store
from t2i_ray.storage import Store
from t2i_ray.sweep.space import Trial, draw, rounded
from t2i_ray.sweep.tasks import Make, Task


@dataclass(frozen=True)
class Takeover:
    """A weak member goes on with a strong one's weights."""

    step: int
    member: str
    donor: str
    before: dict[str, float]  # its values up to here
    after: dict[str, float]  # the donor's, changed

    def __str__(self) -> str:
        changes = ", ".join(
            f"{key} {self.before[key]:g} -> {value:g}" for key, value in self.after.items()
        )
        return f"step {self.step}: {self.member} takes over {self.donor}: {changes}"


class Population:
    """The plan of a population. Raises UserError as the tasks that it makes."""

    def __init__(self, store: Store, sweep: Sweep, members: list[Trial], make: Make) -> None:
        how = sweep.search.scheduler
        assert isinstance(how, Pbt)
        self._how, self._store, self._sweep, self._make = how, store, sweep, make
        self._members = members
        self._place = f"sweeps/{sweep.name}/takeovers.json"
        self._running: set[str] = set()
        self._queue: deque[Task] = deque()
        self._values = {member.name: dict(member.setting.values) for member in members}
        self._generations = self._read()
        for takeover in self.takeovers:
            self._values[takeover.member] = takeover.after
        self.total = len(members) * -(-sweep.run.train.steps // how.every)
        self.tasks: list[Task] = [make(member) for member in members]
        self._fill()

    @property
    def takeovers(self) -> list[Takeover]:
        """All there were, in order."""
        return [takeover for generation in self._generations for takeover in generation]

    @property
    def done(self) -> bool:
        """Whether no task is left to give out."""
        return not self._queue and not self._running

    def next(self) -> Task | None:
        """The next member that has not reached the next meeting."""
        if not self._queue:
            return None
        task = self._queue.popleft()
        self._running.add(task.name)
        return task

    def ended(self, task: Task) -> None:
        """When all have met, the weak take over the strong."""
        self._running.discard(task.name)
        if not self._queue and not self._running:
            self._meet()
            self._fill()

    @property
    def _until(self) -> int:
        """The step of the next meeting."""
        steps: int = self._sweep.run.train.steps
        return min((len(self._generations) + 1) * self._how.every, steps)

    def _fill(self) -> None:
        """Queue all members for this generation, those that were there before first."""
        if len(self._generations) * self._how.every >= self._sweep.run.train.steps:
            return
        inherits = {
            t.member: {"of": f"runs/{t.member}/inherited", "step": t.step}
            for t in self.takeovers  # the last one counts
        }
        for number, member in enumerate(self._members):
            name = member.name
            history = [str(t) for t in self.takeovers if t.member == name]
            task = self._make(
                member,
                until=self._until,
                now=self._values[name],
                inherits=inherits.get(name),
                marks={f"pbt/{key}": value for key, value in self._values[name].items()},
            )
            task.document["tags"]["t2i_ray.lineage"] = "\n".join(history) or "its own"
            self.tasks[number] = task
            self._queue.append(task)

    def _meet(self) -> None:
        """All stand at the same step: decide who takes over whom, copy, then write it down."""
        step = self._until
        scores: dict[str, float] = {}
        for member in self._members:
            last = Scores(self._store, member.name).rows[-1:]
            record = read_run(self._store, member.name)
            metric = self._sweep.search.metric
            there = last and last[0][STEP] == step and metric in last[0]
            if there and record and record.status != "FAILED":
                scores[member.name] = last[0][metric]
        takeovers: list[Takeover] = []
        if step < self._sweep.run.train.steps and len(scores) > 1:
            sign = -1 if self._sweep.search.mode == "max" else 1
            ranked = sorted(scores, key=lambda name: (sign * scores[name], name))
            few = max(1, int(len(ranked) * self._how.share))
            for weak in ranked[-few:]:
                takeovers.append(self._takeover(step, weak, ranked[:few]))
        for takeover in takeovers:
            self._copy(takeover)
            print(f"{self._sweep.name}  {takeover}", flush=True)
        self._generations.append(takeovers)
        for takeover in takeovers:
            self._values[takeover.member] = takeover.after
        document = [[asdict(takeover) for takeover in one] for one in self._generations]
        self._store.write_json(self._place, document)

    def _takeover(self, step: int, weak: str, strong: list[str]) -> Takeover:
        rng = random.Random(f"{self._sweep.search.seed} {step} {weak}")
        donor = rng.choice(strong)
        after: dict[str, float] = {}
        for key, dimension in self._sweep.space.items():
            if rng.random() < self._how.resample:
                after[key] = float(draw(dimension, rng))
            else:
                factor = rng.choice(self._how.factors)
                after[key] = rounded(dimension, self._values[donor][key] * factor)
        return Takeover(step, weak, donor, self._values[weak], after)

    def _copy(self, takeover: Takeover) -> None:
        """The donor goes on and will delete this checkpoint; the manifest goes last."""
        folder = f"step_{takeover.step:08d}"
        source = run_store(self._store, takeover.donor).within(f"checkpoints/{folder}")
        run_store(self._store, takeover.member).delete("inherited")  # an earlier one, used by now
        target = run_store(self._store, takeover.member).within(f"inherited/{folder}")
        for key in sorted(source.list(""), key=lambda key: key == "manifest.json"):
            target.write(key, source.read(key))

    def _read(self) -> list[list[Takeover]]:
        document: list[list[dict[str, Any]]] = self._store.read_json(self._place, [])
        return [[Takeover(**takeover) for takeover in generation] for generation in document]
