"""The training loop: the same code under Ray Train, under torchrun and in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from t2i_ray.claims import Superseded
from t2i_ray.config import Config, parse_config
from t2i_ray.runs import Status
from t2i_ray.train.bystander import MAY_NOT, WAITS
from t2i_ray.train.job import Job, Outcome
from t2i_ray.train.opening import Opened, open_run
from t2i_ray.train.watch import Show, Watch
from t2i_ray.train.worker import Worker

Report = Callable[[int, dict[str, float]], None]
Notice = Callable[[], str | None]


def train(
    job: Job,
    worker: Worker,
    report: Report | None = None,
    notice: Notice | None = None,
    show: Show | None = None,
) -> Outcome:
    """Train from the newest sound checkpoint, or from scratch, until done or asked to stop.

    Args:
        job: the run.
        worker: this worker's place; the process group of a larger world must exist.
        report: called on every rank at each checkpoint, the one to go on from among them, with
            its step and, on rank 0, what was measured on these very weights, with the seconds
            spent; empty: nothing was.
        notice: asked on every rank after the same step, every few seconds: why all must go on
            elsewhere, such as a node that is about to go; None: stay.
        show: called on every rank about once a second, with some of watch.GAUGES.
    """
    config = parse_config(job.config)
    worker.prepare_torch(config)
    while True:
        try:
            opened = open_run(job, config, worker)
        except Superseded as why:
            return Outcome("KILLED", 0, str(why), published=False)
        outcome = Loop(job, config, worker, opened, report, notice, show).run()
        if outcome:
            return outcome
        # Gone back to an earlier checkpoint, from which it goes on as after a kill.


class End(NamedTuple):
    """Why no further step is made."""

    status: Status
    reason: str | None = None
    wrong: str | None = None  # what a guard found


class Loop:
    """From what was opened, step by step; the arguments are those of `train`."""

    def __init__(
        self,
        job: Job,
        config: Config,
        worker: Worker,
        opened: Opened,
        report: Report | None,
        notice: Notice | None,
        show: Show | None,
    ) -> None:
        self._config, self._worker = config, worker
        self._report, self._notice = report, notice
        self._step, self._feed, self._objective, self._chief, self._guard = opened
        self._watch = Watch(config, worker, self._feed, self._chief, show)
        self._last = config.train.steps if job.until is None else job.until
        self._move: str | None = None  # why all go on elsewhere

    def run(self) -> Outcome | None:
        """Until done, asked to stop or to move, or in need to go back (None): see guards.py."""
        chief, guard = self._chief, self._guard
        end: End | None = None
        try:
            if self._step and self._report:  # the attempt before may have died before it could
                self._report(self._step, chief.measured)
            while end is None and self._step < self._last:
                end = self._make_step()
            end = end or End("FINISHED" if self._last == self._config.train.steps else "RUNNING")
            if end.wrong and guard.may_go_back:
                chief.go_back(self._step, end.wrong)
            elif end.wrong:
                end = end._replace(reason=f"{end.wrong}; {chief.give_up()}")
        finally:
            self._watch.close()
            goes_back = bool(end and end.wrong) and guard.may_go_back
            published = chief.close(in_haste=bool(self._move) or goes_back)
        if goes_back:
            return None
        if self._move:  # the first to leave ends all: not before rank 0's checkpoint is durable
            self._worker.agree(self._step)
        return Outcome(
            end.status, self._step, end.reason, published, bool(self._move), guard.rollbacks
        )

    @property
    def _is_whole(self) -> bool:
        """Whether no update of the run is left."""
        return self._step == self._config.train.steps

    def _make_step(self) -> End | None:
        """One update, and what is due after it; whether that is the end."""
        values = self._update()
        saves = (
            self._step == self._last
            or _checkpoint_due(self._config, self._step)
            or self._guard.saves(self._step)
        )
        stop, wrong = self._look(values, saves)
        if wrong := wrong or self._look_at_pictures():
            return End("FAILED", wrong=wrong)
        self._draw_and_measure()
        if (saves or stop or self._move) and not self._save():
            self._move = None
            return End("KILLED", self._chief.superseded)
        if stop and not self._is_whole:
            self._move = None
            return End("KILLED", f"stopped on request at step {self._step}")
        if self._move:
            return End("RUNNING", f"left at step {self._step}: {self._move}")
        return None

    def _update(self) -> dict[str, Tensor]:
        """Feed the next pieces and learn from them; what there is to log."""
        train = self._config.train
        with self._watch.update(self._step):
            shares = self._worker.share(train.micro_batches)
            pieces = [self._feed.piece(self._step, micro) for micro in shares]
            values = self._objective.step(
                pieces, self._step, train.micro_batches, self._worker.world
            )
        self._step += 1
        return values

    def _look(self, values: dict[str, Tensor], saves: bool) -> tuple[bool, str | None]:
        """If it is time, what all workers learnt, and are asked; whether to stop, what is wrong."""
        logs = saves or self._step % self._config.train.log_every == 0
        if not logs and not self._guard.looks_always:
            return False, None
        chief = self._chief
        values |= self._objective.gradient_norms(self._worker.world)
        losses, (stop, look) = self._worker.total(values, chief.stop_requested, chief.look_due)
        if wrong := self._guard.look(self._step, losses):
            return stop, wrong
        if logs:
            self._watch.tell(self._step, losses)
            chief.log(self._step, losses)
        if self._notice and look and not self._is_whole:
            self._move = self._notice()
        return stop, None

    def _look_at_pictures(self) -> str | None:
        """What is wrong with them, if it is time to look."""
        if self._guard.looks_at_pictures(self._step) and self._worker.agree(
            self._chief.lacks_diversity(self._step, self._objective)
        ):
            return self._guard.without_diversity(self._step)
        return None

    def _draw_and_measure(self) -> None:
        if self._chief.samples_due(self._step) or self._is_whole:
            self._chief.sample(self._step, self._objective)
        if self._chief.evaluation_due(self._step):
            self._chief.evaluate(self._step, self._objective)

    def _save(self) -> bool:
        """A checkpoint, begun; False: somebody else is at work on the run."""
        patience = self._config.cluster.timeout_s / 4
        # While the store is away, the others are told that rank 0 lives.
        while (may := self._worker.agree(self._chief.may_save(patience))) == WAITS:
            pass
        if may == MAY_NOT:
            return False
        self._guard.reach(self._step)
        self._chief.save(self._step, self._objective)
        if self._report and not self._move:  # else whoever goes on does so, at once
            self._report(self._step, self._chief.measured)
        return True


def _checkpoint_due(config: Config, step: int) -> bool:
    """Every checkpoint.every steps; where the best is kept, or measured aside, also to measure."""
    every = [config.checkpoint.every]
    if config.evaluation.every and (config.checkpoint.best or config.aside):
        every.append(config.evaluation.every)
    return any(step % steps == 0 for steps in every)
