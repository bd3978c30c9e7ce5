"""One DDP worker: its place among the others, its device, and what they agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from t2i_ray.config import Config

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Worker:
    """Rank of a world; a world of one needs no process group."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @classmethod
    def alone(cls, config: Config) -> Worker:
        """The only worker of a run, on the GPU if the run is to have one."""
        return cls(device=torch.device("cuda", 0) if config.cluster.gpu else CPU)

    @property
    def is_chief(self) -> bool:
        """Whether this worker saves, logs and draws for all."""
        return self.rank == 0

    def share(self, micro_batches: int) -> range:
        """The micro-batches of a step that are this worker's; every worker has at least one."""
        return range(self.rank, micro_batches, self.world)

    def agree(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        if self.world == 1:
            return number
        message = torch.tensor([number], dtype=torch.int64, device=self.device)
        dist.broadcast(message, src=0)
        return int(message.item())

    def total(
        self, values: Mapping[str, Tensor], *wishes: bool
    ) -> tuple[dict[str, float], list[bool]]:
        """The sum of every value over the ranks, and of each wish whether any rank has it.

        One all-reduce for all, so that all ranks leave at the same step.
        """
        message = torch.stack([value.double() for value in values.values()])
        message = torch.cat([message, torch.tensor(wishes).to(message)])
        if self.world > 1:
            dist.all_reduce(message)
        sums = message.tolist()
        wished = [number > 0 for number in sums[len(values) :]]
        return dict(zip(values, sums, strict=False)), wished

    def prepare_torch(self, config: Config) -> None:
        """Threads and determinism, set and not guessed."""
        torch.set_num_threads(config.cluster.threads)
        torch.use_deterministic_algorithms(config.train.deterministic)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = not config.train.deterministic
            torch.backends.cuda.matmul.allow_tf32 = False
