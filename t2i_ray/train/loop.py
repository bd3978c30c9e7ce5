"""The training loop: the same code under Ray Train, under torchrun and in one process."""

from __future__ import annotations

from collections.abc import Callable

from t2i_ray.claims import Superseded
from t2i_ray.config import Config, parse_config
from t2i_ray.runs import Status
from t2i_ray.train.bystander import MAY_NOT, WAITS
from t2i_ray.train.job import Job, Outcome
from t2i_ray.train.opening import open_run
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
    while (outcome := _train(job, config, worker, report, notice, show)) is None:
        pass  # gone back to an earlier checkpoint, from which it goes on as after a kill
    return outcome


def _train(
    job: Job,
    config: Config,
    worker: Worker,
    report: Report | None,
    notice: Notice | None,
    show: Show | None,
) -> Outcome | None:
    """Until done, asked to stop or to move, or in need to go back (None): see guards.py."""
    try:
        step, feed, objective, chief, guard = open_run(job, config, worker)
    except Superseded as why:
        return Outcome("KILLED", 0, str(why), published=False)
    watch = Watch(config, worker, feed, chief, show)
    resumed = step > 0
    micro_batches = config.train.micro_batches
    last = config.train.steps if job.until is None else job.until
    status: Status = "FINISHED" if last == config.train.steps else "RUNNING"
    reason = wrong = move = None
    try:
        if resumed and report:  # the attempt before may have died right before it could
            report(step, chief.measured)
        while step < last:
            with watch.update(step):
                pieces = [feed.piece(step, micro) for micro in worker.share(micro_batches)]
                values = objective.step(pieces, step, micro_batches, worker.world)
            step += 1

            ends = step == config.train.steps
            saves = step == last or _checkpoint_due(config, step) or guard.saves(step)
            logs = saves or step % config.train.log_every == 0
            stop = False
            if logs or guard.looks_always:
                values |= objective.gradient_norms(worker.world)
                losses, (stop, look) = worker.total(values, chief.stop_requested, chief.look_due)
                if wrong := guard.look(step, losses):
                    break
                if logs:
                    watch.tell(step, losses)
                    chief.log(step, losses)
                move = notice() if notice and look and not ends else None
            if guard.looks_at_pictures(step) and worker.agree(
                chief.lacks_diversity(step, objective)
            ):
                wrong = guard.without_diversity(step)
                break
            if chief.samples_due(step) or ends:
                chief.sample(step, objective)
            if chief.evaluation_due(step):
                chief.evaluate(step, objective)
            if saves or stop or move:
                # While the store is away, the others are told that rank 0 lives.
                while (may := worker.agree(chief.may_save(config.cluster.timeout_s / 4))) == WAITS:
                    pass
                if may == MAY_NOT:
                    status, reason, move = "KILLED", chief.superseded, None
                    break
                guard.reach(step)
                chief.save(step, objective)
                if report and not move:  # else whoever goes on does so, at once
                    report(step, chief.measured)
            if stop and not ends:
                status, reason, move = "KILLED", f"stopped on request at step {step}", None
                break
            if move:
                status, reason = "RUNNING", f"left at step {step}: {move}"
                break
        if wrong and guard.may_go_back:
            chief.go_back(step, wrong)
        elif wrong:
            status, reason = "FAILED", f"{wrong}; {chief.give_up()}"
    finally:
        watch.close()
        goes_back = bool(wrong) and guard.may_go_back
        published = chief.close(in_haste=bool(move) or goes_back)
    if goes_back:
        return None
    if move:  # the first to leave ends all: not before rank 0's checkpoint is durable
        worker.agree(step)
    return Outcome(status, step, reason, published, bool(move), guard.rollbacks)


def _checkpoint_due(config: Config, step: int) -> bool:
    """Every checkpoint.every steps; where the best is kept, or measured aside, also to measure."""
    every = [config.checkpoint.every]
    if config.evaluation.every and (config.checkpoint.best or config.aside):
        every.append(config.evaluation.every)
    return any(step % steps == 0 for steps in every)
