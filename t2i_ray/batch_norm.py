"""Fixed statistics for networks that have trained without: see `models.py`. Torch alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def reserve_statistics(module: nn.Module) -> None:
    """Make room for fixed BatchNorm statistics, so that they are saved and loaded."""
    for norm in _norms(module):
        norm.running_mean = torch.zeros_like(norm.weight, requires_grad=False)
        norm.running_var = torch.ones_like(norm.weight, requires_grad=False)


@torch.no_grad()
def estimate_statistics(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Fix a module's BatchNorm statistics to their mean over batches of its inputs.

    Leaves the module in eval mode, where it uses them: what it makes of one input then depends on
    no other. Weights are untouched.
    """
    reserve_statistics(module)
    norms = _norms(module)
    module.train()
    for norm in norms:
        norm.track_running_stats = True
    for count, inputs in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / count  # a running mean over all batches so far
        module(*inputs)
    for norm in norms:
        norm.track_running_stats = False
    module.eval()


def _norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [p for p in module.modules() if isinstance(p, nn.BatchNorm1d | nn.BatchNorm2d)]
