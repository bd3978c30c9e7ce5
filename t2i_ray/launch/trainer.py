"""Ray Train's trainer as our runs want it: a quick start, few helpers, its size our own way."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.preemption import PreemptionWatcher
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from t2i_ray.config import Config
from t2i_ray.launch.cluster import ray_storage
from t2i_ray.launch.elastic import Room
from t2i_ray.launch.process_group import ProcessGroup
from t2i_ray.launch.work import work
from t2i_ray.storage import open_store

# By name, so that a Ray that renames them merely starts them again.
UNUSED = {
    "DatasetsCallback",  # an actor that hands out Ray Data shards: our feed counts for itself
    # A detached actor that asks the dashboard every second whether the controller lives, and says
    # so in the user's terminal when it does not answer in time. What it would clean up ends with
    # our driver, which follows its controller.
    "PlacementGroupCleanerCallback",
}


class Drains(PreemptionCallback):  # type: ignore[misc] # Ray's decorators hide its type
    """Ray's watcher of nodes that are to go, as a thread of the controller.

    Ray makes an actor of it, whose process starts while the workers do, beside them. In place of
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER.
    """

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Watch this group's nodes."""
        self._stop_watcher()
        ranks: dict[str, list[int]] = {}
        for worker in worker_group.get_workers():
            rank = worker.distributed_context.world_rank
            ranks.setdefault(worker.metadata.node_id, []).append(rank)
        self._watcher = PreemptionWatcher(
            node_to_ranks=ranks,
            poll_interval_s=self._poll_interval_s,
            worker_actors_by_rank={
                worker.distributed_context.world_rank: worker.actor
                for worker in worker_group.get_workers()
            },
        )

    def _stop_watcher(self) -> None:
        if self._watcher:
            self._watcher._stop_event.set()
        self._watcher = None


class LeanTrainer(DataParallelTrainer):  # type: ignore[misc] # Ray's decorators hide its type
    """TorchTrainer that starts quicker, and costs a small machine less while it runs.

    Args:
        group: in which the workers train.
        aside: CPUs that an elastic group is to leave free.
        given: as TorchTrainer has it.

    Ray has no public way to leave these callbacks out, nor to choose how many workers an elastic
    group has; should a method that is overridden here disappear, all is as Ray has it.
    """

    def __init__(self, *given: Any, group: ProcessGroup, aside: int = 0, **named: Any) -> None:
        super().__init__(*given, backend_config=group, **named)
        self._aside = aside

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        kept = [callback for callback in callbacks if type(callback).__name__ not in UNUSED]
        return [*kept, Drains()]

    def _initialize_and_run_controller(self, **given: Any) -> Result:
        """Here, in the actor that calls `fit`; Ray would start one more."""
        if self.scaling_config.elasticity_enabled:
            given["scaling_policy"] = Room(self.scaling_config, self.run_config.name, self._aside)
        controller = TrainController(**given)
        asyncio.run(controller.run())
        return controller.get_result()


def trainer_of(
    config: Config, attempt: int, job: dict[str, Any], variables: dict[str, str]
) -> LeanTrainer:
    """Ray Train's, as the config has it."""
    cluster = config.cluster
    # A worker that stands still: its peers' collectives end, or those with Ray, or the controller
    # no longer waits for its answer.
    for watch_over in ("COLLECTIVE", "WORKER_HEALTH_CHECK"):
        os.environ.setdefault(f"RAY_TRAIN_{watch_over}_TIMEOUT_S", str(cluster.timeout_s))
    path, filesystem = ray_storage(config, open_store(config.storage))
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
            worker_runtime_env={"env_vars": variables},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
