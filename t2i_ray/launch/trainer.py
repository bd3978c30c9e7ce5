"""Ray Train's trainer as our runs want it: a quick start, few helpers, and its size our own way."""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from t2i_ray.launch.process_group import ProcessGroup

# By name, so that a Ray that renames them merely starts them again.
UNUSED = {
    "DatasetsCallback",  # an actor that hands out Ray Data shards: our feed counts for itself
    # A detached actor that asks the dashboard every second whether the controller lives, and says
    # so in the user's terminal when it does not answer in time. What it would clean up ends with
    # our driver, which follows its controller.
    "PlacementGroupCleanerCallback",
}


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
        return [callback for callback in callbacks if type(callback).__name__ not in UNUSED]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            from t2i_ray.launch.elastic import Room

            given["scaling_policy"] = Room(self.scaling_config, self.run_config.name, self._aside)
        return super()._initialize_and_run_controller(**given)
