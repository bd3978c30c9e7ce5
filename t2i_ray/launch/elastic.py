"""How many workers a run has now, where ``cluster.min_workers`` leaves it open.

Ray Train's own policy counts by a view of the cluster that is up to 20 s old, takes a node that is
being drained for room, and ends a group that is to grow where it stands. This one looks for itself,
and asks the workers to save a checkpoint and leave.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
)
from ray.train.v2.api.preemption import PreemptionInfo

PAUSE = 0.5  # seconds between two looks for room for a group that has none
# Seconds in which workers have to leave when asked to. Nothing is in a hurry: they may be in the
# middle of a long evaluation, and whether one of them hangs is not for this to find out.
PATIENCE = 86_400.0


class Room(ElasticScalingPolicy):  # type: ignore[misc] # Ray's decorators hide its type
    """Takes the workers that there is room for; in the controller's process.

    Args:
        scaling: Ray Train's settings.
        name: of the run, for what is said.
        aside: CPUs to be left free for what measures aside.
    """

    def __init__(self, scaling: Any, name: str, aside: int) -> None:
        super().__init__(scaling)
        self._name, self._aside = name, aside
        self._failed = False  # whether a group could not be started, and so none holds anything
        self._said = False  # that there is too little room
        self._asked = False  # whether the workers that run were asked to leave
        self._looked = 0.0  # when there was a look for room for more, by the monotonic clock

    def make_decision_for_non_running_worker_group(self) -> Any:
        """As many as there is room for; nothing while these are too few."""
        self._maybe_send_resource_request()
        self._asked = False
        # Until the next group is started, the last one's room is not free; so by what nodes have
        # in all. If somebody else has it, that start fails.
        free = available_resources_per_node() if self._failed else totals()
        workers = min(self._fitting(free), self.scaling_config.max_workers)
        least = max(1, self.scaling_config.min_workers)
        if workers < least:
            if not self._said:
                print(f"{self._name}: waits: {least} workers needed, room for {workers}")
            self._said = True
            time.sleep(PAUSE)
            return NoopDecision()
        return self._get_resize_decision(workers)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        """Ask the workers to leave if there is room for more; nothing if that is under way."""
        del worker_group_status
        self._maybe_send_resource_request()
        self._said = False
        now, every = time.monotonic(), self.scaling_config.elastic_resize_monitor_interval_s
        if now - max(worker_group_state.start_time, self._looked) < every:
            return NoopDecision()
        self._looked = now
        have = worker_group_state.num_workers
        workers = have + self._fitting(available_resources_per_node())
        workers = min(workers, self.scaling_config.max_workers)
        if workers <= have:
            return NoopDecision()
        if not self._asked and ask_to_leave(worker_group_state.workers):
            self._asked = True
            return NoopDecision()
        return self._get_resize_decision(workers)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Ray Train tells what it is at."""
        super().after_controller_state_update(previous_state, current_state)
        self._failed = isinstance(current_state, ReschedulingState)

    def _fitting(self, resources: Mapping[str, Mapping[str, float]]) -> int:
        """Workers for which these nodes have room, save for those that are about to go."""
        leaving = state.get_draining_nodes()
        return fitting(
            [have for node, have in resources.items() if node not in leaving],
            self.scaling_config.resources_per_worker,
            self._aside,
        )


def fitting(nodes: Sequence[Mapping[str, float]], worker: Mapping[str, float], aside: int) -> int:
    """Workers for which these nodes have room, with so many CPUs left over on one of them."""
    need = {kind: each for kind, each in worker.items() if each > 0}

    def on(node: Mapping[str, float], cpus: float = 0) -> int:
        have = {**node, "CPU": node.get("CPU", 0.0) - cpus}
        return max(0, int(min(have.get(kind, 0.0) // each for kind, each in need.items())))

    fit = [on(node) for node in nodes]
    if not aside:
        return sum(fit)
    able = [i for i, node in enumerate(nodes) if node.get("CPU", 0.0) >= aside]
    lost = min((fit[i] - on(nodes[i], aside) for i in able), default=0)
    return sum(fit) - lost


def totals() -> dict[str, Mapping[str, float]]:
    """Node id -> all its resources, of those that are alive."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def ask_to_leave(workers: list[Any]) -> bool:
    """Tell workers, as if their nodes were about to go, that there is a better place.

    They find it by ray.train.get_preemption_info, and the controller waits for them as it does
    for those of a node that is drained. False if this Ray has no way to say so.
    """
    deadline = int((time.time() + PATIENCE) * 1000)
    notice = PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks={})
    try:
        for worker in workers:
            worker.actor.mark_preempt.remote(notice)
    except AttributeError:
        return False
    return True
