"""Which task comes next: a list of them, or one stage after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from t2i_ray.sweep.tasks import Task


class Plan(Protocol):
    """What to run, and when. Each task is ended before another of the same run is given out."""

    @property
    def total(self) -> int:
        """Number of tasks, as far as it is known."""

    @property
    def tasks(self) -> list[Task]:
        """The newest one of every run."""

    @property
    def done(self) -> bool:
        """Whether no task is left to give out."""

    def next(self) -> Task | None:
        """The next task; None: there is none before another one ends."""

    def ended(self, task: Task) -> None:
        """Its process has returned, was stopped, or failed for good; storage says how."""


class Listed:
    """Tasks that are known from the start."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._left = deque(tasks)
        self.total = len(self._left)
        self.tasks = list(self._left)

    @property
    def done(self) -> bool:
        """Whether no task is left to give out."""
        return not self._left

    def next(self) -> Task | None:
        """The next task."""
        return self._left.popleft() if self._left else None

    def ended(self, task: Task) -> None:
        """Nothing depends on it."""


class Staged:
    """A plan, and then another one, which is made when all tasks of the first have ended.

    Args:
        first: the first plan.
        second: makes the second one.
        later: how many tasks that one will have.
    """

    def __init__(self, first: Plan, second: Callable[[], Plan], later: int) -> None:
        self._now = first
        self._second: Callable[[], Plan] | None = second
        self._running = 0
        self._later = later
        self.first = first

    @property
    def total(self) -> int:
        """Of both."""
        if self._second:
            return self.first.total + self._later
        return self.first.total + self._now.total

    @property
    def tasks(self) -> list[Task]:
        """Of both."""
        return self.first.tasks + ([] if self._second else self._now.tasks)

    @property
    def done(self) -> bool:
        """Whether no task is left to give out."""
        return self._now.done and self._second is None

    def next(self) -> Task | None:
        """The next task."""
        if self._now.done and self._second:
            if self._running:
                return None
            self._now, self._second = self._second(), None
        task = self._now.next()
        self._running += task is not None
        return task

    def ended(self, task: Task) -> None:
        """Pass it on."""
        self._running -= 1
        self._now.ended(task)
