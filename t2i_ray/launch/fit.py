"""Ray Train: the workers of one attempt, and a wish to stop on its way to them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError

from t2i_ray.claims import Number, check
from t2i_ray.config import Config, parse_config
from t2i_ray.launch.cluster import ray_storage, worker_environment
from t2i_ray.lines import lines_of
from t2i_ray.runs import Scores, read_progress, run_store
from t2i_ray.storage import FencedStore, StorageError, Store, open_store, patiently

if TYPE_CHECKING:
    from t2i_ray.launch.trainer import LeanTrainer

SILENCE = 30.0  # seconds; rank 0 gives a sign every five


def work(job: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker."""
    import ray.train
    import ray.train.torch

    from t2i_ray.launch.gauges import gauges
    from t2i_ray.train import Job, Worker, train

    logging.getLogger().setLevel(logging.WARNING)  # Ray tells every report
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )

    config = parse_config(job["config"])
    store = open_store(config.storage)

    here = run_store(store, config.name)
    place, own = here.uri, Number(job["about"]["attempt"])
    patience = config.cluster.timeout_s / 2  # the other ranks wait meanwhile
    fenced = FencedStore(store, lambda: check(here, own))

    def report(step: int, measured: dict[str, float]) -> None:
        if measured:
            patiently(lambda: Scores(fenced, config.name).add(step, measured), patience)
        ray.train.report({"step": step, "checkpoint": f"{place}/checkpoints/step_{step:08d}"})

    with lines_of(config.name):
        show = gauges(config.name, worker.rank)
        outcome = train(Job(**job), worker, report, notice, show)
    if outcome.moves:
        if worker.is_chief and not job.get("quiet"):
            print(f"{config.name}: {outcome.reason}", flush=True)
        # Whoever returns has finished. This is how Ray tells a worker that left with its node from
        # one that failed, which would count against cluster.max_failures; no traceback of it.
        logging.getLogger("ray.train.v2._internal.util").setLevel(logging.CRITICAL)
        raise RayActorError(error_msg=f"left at step {outcome.step}", preempted=True)
    return asdict(outcome)


def notice() -> str | None:
    """Why all workers should go on elsewhere, if so; to be asked by all at the same step."""
    import ray.train

    info = ray.train.get_preemption_info()
    if info is None:
        return None
    nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
    return f"node {nodes} is drained" if nodes else "there is room for more workers"


def fit_workers(
    config: Config,
    attempt: int,
    job: dict[str, Any],
    store: Store,
    *,
    meanwhile: Callable[[], None] = lambda: None,
    watch: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the workers; how it ended, as a mapping of status, step, reason, published.

    ``meanwhile`` is called while they start, which takes ten seconds; ``watch`` again and again
    until they have ended; ``stopping`` says whether they were asked to, so that nobody is waited
    for if none is at work.
    """
    from ray.train import TrainingFailedError

    trainer = _trainer(config, attempt, job, store)
    ending: dict[str, Any] = {}

    def fit() -> None:
        try:
            ending.update(trainer.fit().return_value)
        except TrainingFailedError as error:
            ending.update(status="FAILED", reason=_reason(error))
        except Exception as error:
            ending.update(status="FAILED", reason=f"{type(error).__name__}: {error}")

    # fit() would handle Ctrl-C by ending the workers where they stand, and SIGTERM not at all; in
    # a thread it leaves signals alone.
    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    meanwhile()
    silence = Silence(store, config.name)
    while thread.is_alive():
        watch()
        if stopping() and silence.lasts():
            return {"status": "KILLED", "reason": "stopped while no worker was at work"}
        thread.join(0.2)
    return ending


def _trainer(config: Config, attempt: int, job: dict[str, Any], store: Store) -> LeanTrainer:
    """Ray Train's, as the config has it."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig

    from t2i_ray.launch.process_group import ProcessGroup
    from t2i_ray.launch.trainer import LeanTrainer

    cluster = config.cluster
    # A worker that stands still: its peers' collectives end, or those with Ray, or the controller
    # no longer waits for its answer.
    for watch_over in ("COLLECTIVE", "WORKER_HEALTH_CHECK"):
        os.environ.setdefault(f"RAY_TRAIN_{watch_over}_TIMEOUT_S", str(cluster.timeout_s))
    path, filesystem = ray_storage(config, store)
    return LeanTrainer(
        work,
        aside=config.aside,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=(cluster.fewest, cluster.workers)
            if cluster.min_workers
            else cluster.workers,
            elastic_resize_monitor_interval_s=cluster.resize_s,
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.threads, **({"GPU": 1} if cluster.gpu else {})},
        ),
        group=ProcessGroup("nccl" if cluster.gpu else "gloo", cluster.timeout_s),
        run_config=RunConfig(
            name=f"{config.name}-{attempt}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": worker_environment(config)},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


class Silence:
    """Whether rank 0 has given no sign since this was first asked, for SILENCE seconds."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._heard: dict[str, Any] | None = None
        self._since = self._looked = 0.0

    def lasts(self) -> bool:
        """Look, every other second."""
        now = time.monotonic()
        if now < self._looked + 2:
            return False
        self._looked = now
        try:
            sign = read_progress(self._store, self._name)
        except StorageError:  # rank 0 may wait for it as well
            sign = None
        if sign is None or sign != self._heard:
            self._heard, self._since = sign, now
        return now >= self._since + SILENCE


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        return f"worker {rank}: {lines[-1] if lines else type(failure).__name__}"
    return " ".join(str(error).split())[:500]


class StopOnSignal:
    """SIGTERM and Ctrl-C ask for an orderly end; a second one ends the driver where it stands.

    Args:
        name: of what is to end.
        says: what will happen now.
        ask: called once, in a thread of its own.
    """

    def __init__(self, name: str, says: str, ask: Callable[[], None] = lambda: None) -> None:
        self._line = f"{name}: {{}}: {says}"
        self._ask = ask
        self._before: dict[int, Any] = {}
        self.number = 0  # of the signal that came

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        print(self._line.format(signal.Signals(number).name), flush=True)
        threading.Thread(target=self._ask, daemon=True).start()
