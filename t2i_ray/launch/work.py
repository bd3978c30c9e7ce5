"""What runs on every worker: the loop of train/, told by Ray Train which worker it is."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError

from t2i_ray.claims import Number, check
from t2i_ray.config import Config, parse_config
from t2i_ray.lines import lines_of
from t2i_ray.runs import Scores, run_store
from t2i_ray.storage import FencedStore, open_store, patiently

if TYPE_CHECKING:
    import torch


def work(job: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker."""
    import ray.train

    from t2i_ray.launch.gauges import gauges
    from t2i_ray.train import Job, Worker, train

    logging.getLogger().setLevel(logging.WARNING)  # Ray tells every report
    config = parse_config(job["config"])
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=own_device(config),
    )
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


def own_device(config: Config) -> torch.device:
    """The GPU that Ray gave to this worker, or the CPU."""
    import torch

    if not config.cluster.gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # half a second of imports

    device: torch.device = get_device()
    return device


def notice() -> str | None:
    """Why all workers should go on elsewhere, if so; to be asked by all at the same step."""
    import ray.train

    info = ray.train.get_preemption_info()
    if info is None:
        return None
    nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
    return f"node {nodes} is drained" if nodes else "there is room for more workers"
