"""Ray's set-up of torch on the workers, by processes that do not wait for torch themselves.

Importing torch takes seconds, and with Ray's TorchConfig they pass one after the other: in the
driver, in the controller, and in the workers. Here the driver does without, and the controller
imports it while the workers do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig

NEEDED = ("ray.train.torch", "t2i_ray.train")  # by a worker


@dataclass
class TorchLater(BackendConfig):  # type: ignore[misc] # Ray's decorators hide its type
    """What TorchConfig is told: the process group's backend, and seconds until it gives up."""

    backend: str
    timeout_s: float

    @property
    def backend_cls(self) -> type[Backend]:
        """Who sets up the workers."""
        return TorchLaterBackend

    @property
    def train_func_context(self) -> Any:
        """What makes the context of a worker's loop."""
        return _context

    @property
    def framework(self) -> TrainingFramework:
        """For Ray's page on training."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """For Ray's page on training."""
        return asdict(self)

    @property
    def now(self) -> TorchConfig:
        """Ray's own."""
        from ray.train.torch import TorchConfig

        return TorchConfig(backend=self.backend, timeout_s=self.timeout_s)


class TorchLaterBackend(Backend):  # type: ignore[misc] # Ray's decorators hide its type
    """Ray's backend for torch, once the workers have begun to import it."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: TorchLater) -> None:
        """Make the process group."""
        worker_group.execute_async(_import)
        config = backend_config.now
        config.backend_cls().on_start(worker_group, config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchLater) -> None:
        """End it."""
        config = backend_config.now
        config.backend_cls().on_shutdown(worker_group, config)


def _context() -> AbstractContextManager[Any]:
    from ray.train.torch.config import TorchConfigContextManager

    context: AbstractContextManager[Any] = TorchConfigContextManager()
    return context


def _import() -> None:
    for name in NEEDED:
        import_module(name)
