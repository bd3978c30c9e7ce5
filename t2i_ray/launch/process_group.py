"""The workers' process group, made by a driver and a controller that do without torch themselves.

With Ray's TorchConfig both import it first, which takes seconds, while two workers on the same
cores wait to do so.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

NEEDED = ("ray.train.torch", "t2i_ray.train")  # by a worker
PARTING = 30.0  # seconds that workers have to leave it, before they are ended


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
    def framework(self) -> TrainingFramework:
        """For Ray's page on training."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """For Ray's page on training."""
        return asdict(self)


class ProcessGroupBackend(Backend):  # type: ignore[misc] # Ray's decorators hide its type
    """In the controller."""

    share_cuda_visible_devices = True  # NCCL wants to see the other GPUs of its machine

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Let all workers join, or raise what one of them raised."""
        url = worker_group.execute_single(0, _free_url)
        worker_group.execute(_join, url, backend_config.backend, backend_config.timeout_s)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:  # noqa: ARG002
        """Let all workers leave; one that hangs is not waited for."""
        try:
            ray.get(worker_group.execute_async(_leave), timeout=PARTING)
        except GetTimeoutError:
            print(f"a worker has not left its process group after {PARTING:.0f} s", flush=True)


def _free_url() -> str:
    """Where rank 0 can be met."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as found:
        found.bind((address, 0))
        port = found.getsockname()[1]
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def _join(url: str, backend: str, timeout_s: float) -> None:
    for name in NEEDED:
        import_module(name)
    import torch.distributed

    context = ray.train.get_context()
    torch.distributed.init_process_group(
        backend,
        init_method=url,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=timeout_s),
    )


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
