"""An all-reduce among nodes, timed."""

from __future__ import annotations

import time
from datetime import timedelta

ROUNDS = 3


def all_reduce(rank: int, world: int, address: str, *, gpu: bool, seconds: float) -> float:
    """Bytes per second that leave each worker; raises what torch.distributed raises.

    A ring sends 2 (n - 1) / n of the buffer over each worker's line (NCCL's "bus bandwidth",
    https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md).

    Args:
        rank: of this process.
        world: how many there are.
        address: host:port of the first.
        gpu: whether by NCCL on this process's GPU, or by gloo.
        seconds: how long to wait for the others.
    """
    import torch
    from torch import distributed

    device = torch.device("cuda" if gpu else "cpu")
    numbers = torch.ones((64 if gpu else 8) << 18, device=device)  # of 4 bytes
    distributed.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    try:
        taken = [_once(numbers, gpu) for _ in range(1 + ROUNDS)][1:]
        if numbers[0].item() != float(world) ** (1 + ROUNDS):
            raise RuntimeError("the sum is wrong")
    finally:
        distributed.destroy_process_group()
    return 2 * (world - 1) / world * numbers.nbytes / min(taken)


def _once(numbers: object, gpu: bool) -> float:
    import torch
    from torch import distributed

    assert isinstance(numbers, torch.Tensor)
    distributed.barrier()
    begun = time.perf_counter()
    distributed.all_reduce(numbers)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begun
