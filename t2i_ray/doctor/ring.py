"""The workers' all-reduce, tried among the nodes before there are workers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import ray

from t2i_ray.config import Config
from t2i_ray.doctor import judge
from t2i_ray.doctor.finding import DRIVER, Finding
from t2i_ray.doctor.nodes import Asked, Place, start


class Ring:
    """A process on every node that workers may come to; two on a single one.

    Made early, since those that are needed besides the nodes' own take seconds to start.
    """

    def __init__(self, config: Config, places: list[Place]) -> None:
        self._config = config
        gpu = config.cluster.gpu
        able = [place for place in places if (place.gpus if gpu else place.works)]
        if len(able) == 1:
            able *= 2 if not gpu or able[0].gpus > 1 else 0
        if config.cluster.workers == 1:
            able = []
        # A card is only seen by who has asked for it.
        own = [p for i, p in enumerate(able) if not gpu and p not in able[:i]]
        more = able if gpu else able[len(own) :]
        self._started = [
            replace(place, actor=start(config, place.node, place.where, int(gpu))) for place in more
        ]
        self._members = [*own, *self._started]

    def sum_up(self, until: float) -> list[Finding]:
        """Do it; one row if it went well, else one for each member that has something to say."""
        cluster = self._config.cluster
        kind = "NCCL" if cluster.gpu else "gloo"
        check = "all-reduce"
        if not self._members:
            text = (
                "one worker: nothing to sum up" if cluster.workers == 1 else "no node for workers"
            )
            return [Finding(check, DRIVER, "ok" if cluster.workers == 1 else "warning", text)]
        first = self._members[0]
        address = Asked(check, first.where, first.actor.free_address.remote(), until).answer()
        taken = "look whether others have the GPUs ('ray status'); " if cluster.gpu else ""
        if isinstance(address, Finding):
            return [replace(address, remedy=taken + address.remedy)]
        world, left = len(self._members), max(1.0, until - time.monotonic())
        asked = [
            Asked(check, member.where, self._reduce(member, rank, world, address, left), until)
            for rank, member in enumerate(self._members)
        ]
        answers = [each.answer() for each in asked]
        if problems := [answer for answer in answers if isinstance(answer, Finding)]:
            remedy = (
                f"{taken}{kind} needs every port open among the nodes, and the right network card "
                f"({'NCCL' if cluster.gpu else 'GLOO'}_SOCKET_IFNAME)"
            )
            return [replace(problem, remedy=remedy) for problem in problems]
        speed = min(answers)
        nodes = len({member.node for member in self._members})
        found = f"{kind}, {world} processes on {nodes} nodes: {speed / 1e6:.0f} MB/s each way"
        return [judge.line(found, speed)]

    def _reduce(self, member: Place, rank: int, world: int, address: str, left: float) -> Any:
        return member.actor.reduce.remote(rank, world, address, self._config.cluster.gpu, left)

    def close(self) -> None:
        """End the processes that are not the nodes' own."""
        for member in self._started:
            ray.kill(member.actor)
