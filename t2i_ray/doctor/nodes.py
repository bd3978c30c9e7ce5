"""The nodes of the cluster, each with an actor on it, and asking them all with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from t2i_ray.config import Config
from t2i_ray.doctor.finding import Finding, refused, unanswered
from t2i_ray.doctor.node import Node
from t2i_ray.launch import worker_environment


@dataclass
class Place:
    """A node of the cluster, and our actor there."""

    node: str  # its id
    where: str  # its address; of several at one address, with a number
    cpus: float
    gpus: float
    actor: Any

    @property
    def works(self) -> bool:
        """Whether workers may come here; a head often has no CPUs to give."""
        return self.cpus > 0 or self.gpus > 0


@dataclass
class Asked:
    """What was asked of a node, and when that ends."""

    check: str
    where: str
    reference: Any
    until: float  # of time.monotonic
    asked: float = field(default_factory=time.monotonic)

    def answer(self) -> Any:
        """The node's answer, or a Finding why there is none."""
        left = max(0.0, self.until - time.monotonic())
        if not ray.wait([self.reference], timeout=left)[0]:
            return unanswered(self.check, self.where, time.monotonic() - self.asked)
        try:
            return ray.get(self.reference)
        except RayTaskError as error:
            return refused(self.check, self.where, error.cause)
        except RayError as error:  # the actor could not start, or died
            return refused(self.check, self.where, error)


def place_actors(config: Config) -> list[Place]:
    """An actor on every node; they start in the background and ask for no CPU."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in nodes]
    places = []
    for number, node in enumerate(nodes):
        address = addresses[number]
        where = f"{address} ({number + 1})" if addresses.count(address) > 1 else address
        have = node["Resources"]
        cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
        actor = start(config, node["NodeID"], where)
        places.append(Place(node["NodeID"], where, cpus, gpus, actor))
    return places


def start(config: Config, node: str, where: str, gpus: int = 0) -> Any:
    """An actor on a node, with the variables that a worker there is given."""
    variables = {**worker_environment(config), "HF_HUB_OFFLINE": "1"}
    if not gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # they may be at work for others
    options = {
        "num_cpus": 0,
        "num_gpus": gpus,
        "max_concurrency": 16,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        "runtime_env": {"env_vars": variables},
    }
    return ray.remote(**options)(Node).remote(config.model_dump(mode="json"), where)


def ask(
    check: str, places: Iterable[Place], call: Callable[[Place], Any], until: float
) -> list[Asked]:
    """Ask nodes the same at once; ``call`` makes the reference."""
    return [Asked(check, place.where, call(place), until) for place in places]


def collect(asked: Iterable[Asked]) -> list[Finding]:
    """The findings of nodes that answer with lists of them, in the order of asking."""
    findings: list[Finding] = []
    for each in asked:
        answer = each.answer()
        findings += answer if isinstance(answer, list) else [answer]
    return findings
