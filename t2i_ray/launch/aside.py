"""Measuring aside: a Ray task measures checkpoints while the workers go on.

The driver looks for durable checkpoints of evaluation steps. What is measured of one is a document
on storage (runs.result_key), so whoever continues the run sees what is left. There is one task at a
time, so that they take no more than ``evaluation.aside`` CPUs; the oldest checkpoint comes first,
since it is the first to be deleted.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from t2i_ray.checkpoint import Checkpoints, DamagedCheckpoint
from t2i_ray.config import Config, UserError, parse_config
from t2i_ray.launch.cluster import worker_environment
from t2i_ray.runs import RunRecord, result_key, run_store
from t2i_ray.storage import StorageError, Store, open_store

if TYPE_CHECKING:
    from t2i_ray.evaluate import RealPictures

SPLIT = "val"
LOOK_EVERY, LOOK_AGAIN = 2.0, 30.0  # seconds between two looks at storage; after one that failed
PATIENCE = 5.0  # seconds that a task waits for MLflow; what it lacks is sent when the run ends


class Aside:
    """The driver's part, made before the workers start; does nothing if ``config.aside`` is 0.

    Args:
        config: of the run.
        record: of the attempt.
        store: the root of the storage.
        stopping: whether the run was asked to end: a task is cancelled then, and none started.
    """

    def __init__(
        self, config: Config, record: RunRecord, store: Store, stopping: Callable[[], bool]
    ) -> None:
        self._config, self._record = config, record
        self._stopping = stopping
        self._folder = run_store(store, config.name)
        self._checkpoints = Checkpoints(self._folder.within("checkpoints"), keep=1)
        self._newest: int | None = None  # up to which step was looked for checkpoints
        self._known: set[int] = set()  # steps that were found, or measured before
        self._left: list[int] = []  # of these, to be measured
        self._task: tuple[int, Any] | None = None  # the step that is being measured
        self._next_look = 0.0
        threads = str(config.aside)
        variables = {
            **worker_environment(config),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUDA_VISIBLE_DEVICES": "",  # GPUs are the workers'
        }
        options = {"num_cpus": config.aside, "runtime_env": {"env_vars": variables}}
        self._measure = ray.remote(max_retries=1, **options)(measure)
        if config.aside:
            self._find()

    def look(self) -> None:
        """Go on as far as possible without waiting."""
        if not self._config.aside:
            return
        if self._stopping():
            self._cancel()
            return
        self._take_result()
        if time.monotonic() >= self._next_look:
            self._find()
        if self._task is None and self._left:
            step = self._left.pop(0)
            document = self._config.model_dump(mode="json")
            reference = self._measure.remote(document, self._record.model_dump(mode="json"), step)
            self._task = step, reference

    def finish(self) -> bool:
        """After the workers: wait for what is left; False if the run was asked to end before."""
        if not self._config.aside:
            return True
        self._find()
        left = len(self._left) + bool(self._task)
        if left and not self._stopping():
            print(f"{self._config.name}: trained; {left} to measure", flush=True)
        while (self._task or self._left) and not self._stopping():
            self.look()
            time.sleep(0.1)
        self._cancel()
        return not self._left

    def _find(self) -> None:
        """Look for checkpoints to measure, and whether those that wait are still there."""
        every = self._config.evaluation.every
        try:
            there = self._checkpoints.steps()
            newest = max(there, default=0)
            if self._newest is None:  # what is gone by now was another attempt's to measure
                documents = set(self._folder.list("evaluation"))
                steps = range(0, self._config.train.steps + 1, every)
                self._known = {step for step in steps if result_key(SPLIT, step) in documents}
                self._newest = newest
        except StorageError as error:
            self._next_look = time.monotonic() + LOOK_AGAIN
            self._warn(f"no checkpoints looked for: {error}")
            return
        self._next_look = time.monotonic() + LOOK_EVERY
        passed = range((self._newest // every + 1) * every, newest + 1, every)
        due = {*passed, *(step for step in there if step % every == 0)} - self._known
        self._known |= due
        self._newest = max(self._newest, newest)
        waiting = sorted({*self._left, *due})
        self._left = [step for step in waiting if step in there]
        self._say_gone([step for step in waiting if step not in there])

    def _take_result(self) -> None:
        if self._task is None or not ray.wait([self._task[1]], timeout=0)[0]:
            return
        (step, reference), self._task = self._task, None
        try:
            metrics = ray.get(reference)
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            kind = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
            self._warn(f"step {step} was not measured: {kind}{' '.join(str(cause).split())[:300]}")
            return
        if metrics is None:
            self._say_gone([step])
        else:
            print(f"{self._config.name}: step {step}: {in_short(metrics)}", flush=True)

    def _cancel(self) -> None:
        if self._task:
            step, reference = self._task
            ray.cancel(reference, force=True)
            self._task, self._left = None, [step, *self._left]

    def _say_gone(self, steps: Collection[int]) -> None:
        if steps:
            kept = f"checkpoint.keep={self._config.checkpoint.keep}"
            named = ", ".join(map(str, steps))
            self._warn(f"not measured, since its checkpoint is gone ({kept}): step {named}")

    def _warn(self, text: str) -> None:
        print(f"{self._config.name}: warning: {text}", flush=True)


def measure(document: dict[str, Any], record: dict[str, Any], step: int) -> dict[str, float] | None:
    """The task: measure a checkpoint as rank 0 would have; None if there is none any more.

    ``document`` is the config, ``record`` the run's.
    """
    import torch

    from t2i_ray.evaluate.run import OWN, Wanted, evaluate_run

    config, run = parse_config(document), RunRecord.model_validate(record)
    torch.set_num_threads(config.aside)
    store = open_store(config.storage)
    given = config.evaluation
    resamples = 0 if given.resamples is None and given.inception else given.resamples
    wanted = Wanted([OWN], resamples=resamples, head=False, own=given)
    real = _real_pictures(config.model_dump_json(), run.data)
    try:
        evaluate_run(store, run, SPLIT, given.samples, PATIENCE, wanted, step=step, real=real)
    except DamagedCheckpoint:
        folder = run_store(store, run.name).within("checkpoints")
        if step in Checkpoints(folder, keep=1).steps():
            raise
        return None
    found = run_store(store, run.name).read_json(result_key(SPLIT, step))
    return dict(found["metrics"])


@functools.lru_cache(maxsize=1)
def _real_pictures(config: str, data: str) -> RealPictures:
    """Their features are the same for all tasks of a run, of which one process may do many."""
    from t2i_ray.config import Config
    from t2i_ray.data import open_prepared
    from t2i_ray.evaluate import RealPictures

    parsed = Config.model_validate_json(config)
    prepared = open_prepared(open_store(parsed.storage), data)
    return RealPictures(prepared, parsed.data, SPLIT)


def in_short(metrics: Mapping[str, float]) -> str:
    """The first four, without single attributes."""
    single = f"{SPLIT}/agreement/"
    shown = [name for name in metrics if not name.startswith(single) or name.endswith("/mean")]
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in shown[:4]) or "measured"
