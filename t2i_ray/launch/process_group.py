"""The workers' process group, made by a driver and a controller that do without torch themselves.

With Ray's TorchConfig both import it first, which takes seconds, while two workers on the same
cores wait to do so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from t2i_ray.launch.imports import import_all

#: By a worker. DDP imports the last one, which takes as long as torch itself.
NEEDED = ("torch.distributed", "t2i_ray.train", "torch._dynamo")
PARTING = 30.0  # seconds that workers have to leave it, before they are ended

_listening: list[Any] = []  # in rank 0's process: its store, from _listen to _join


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc] # Ray's decorators hide its type
    """torch.distributed's backend (nccl, gloo), and seconds until a collective gives up."""

    backend: str
    timeout_s: float

    @property
    def backend_cls(self) -> type[Backend]:
        """Who makes and ends it."""
        return ProcessGroupBackend

    @property
    def framework(self) -> TrainingFramework | None:
        """Not told to Ray's page on training.

        Ray would send torch.__version__ to its controller, which is no str and imports torch there.
        """
        return None

    def to_dict(self) -> dict[str, Any]:
        """For Ray's page on training."""
        return asdict(self)


class ProcessGroupBackend(Backend):  # type: ignore[misc] # Ray's decorators hide its type
    """In the controller."""

    share_cuda_visible_devices = True  # NCCL wants to see the other GPUs of its machine

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Let all workers join, or raise what one of them raised."""
        found = worker_group.execute(_listen, backend_config.timeout_s)
        place = next(place for place in found if place)
        worker_group.execute(_join, *place, backend_config.backend, backend_config.timeout_s)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:  # noqa: ARG002
        """Let all workers leave; one that hangs is not waited for."""
        try:
            ray.get(worker_group.execute_async(_leave), timeout=PARTING)
        except GetTimeoutError:
            print(f"a worker has not left its process group after {PARTING:.0f} s", flush=True)


def _listen(timeout_s: float) -> tuple[str, int] | None:
    """Import what is needed, all workers at a time. Of rank 0: where it listens from now on.

    A port that is only looked for may be another process's when it is wanted.
    """
    import_all(NEEDED)
    if ray.train.get_context().get_world_rank() != 0:
        return None
    address = str(ray.util.get_node_ip_address())
    _listening.append(_store(address, 0, timeout_s, is_master=True))
    return address, int(_listening[-1].port)


def _join(address: str, port: int, backend: str, timeout_s: float) -> None:
    import torch.distributed

    context = ray.train.get_context()
    torch.distributed.init_process_group(
        backend,
        store=_listening.pop() if _listening else _store(address, port, timeout_s),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def _store(address: str, port: int, timeout_s: float, *, is_master: bool = False) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # it is documented

    timeout = timedelta(seconds=timeout_s)
    return TCPStore(address, port, is_master=is_master, timeout=timeout, wait_for_workers=False)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
