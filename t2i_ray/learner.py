"""An optimiser with the networks that it trains, whose gradients are averaged over the workers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from t2i_ray.config import Optim


class Learner:
    """Networks that take their steps together, by Adam.

    Args:
        networks: by name; their first weights must be the same on all workers. Only parameters
            that require gradients are trained.
        rates: each network's learning rate, before the schedule's factor.
        optim: the schedule and Adam's decays.

    Attributes:
        scale: one more factor on all learning rates.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], rates: Mapping[str, float], optim: Optim
    ) -> None:
        self._optim = optim
        self.scale = 1.0
        self._named = {
            f"{name}.{key}": parameter
            for name, network in networks.items()
            for key, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        groups = [
            {"params": [p for p in network.parameters() if p.requires_grad], "base_lr": rates[name]}
            for name, network in networks.items()
        ]
        self.parameters = list(self._named.values())
        self.optimizer = Adam(groups, betas=(optim.beta1, optim.beta2), fused=True)
        self._reduce: nn.Module = Reducer(*networks.values())

    def distribute(self) -> None:
        """Average gradients over the workers of the default process group."""
        self._reduce = DistributedDataParallel(
            self._reduce,
            gradient_as_bucket_view=True,
            # The only ones are a text model's constants: nothing to send at every step.
            forward_sync_buffers=False,
        )

    def begin(self, step: int, steps: int) -> None:
        """Forget the last gradient and set the learning rates of this step of so many."""
        factor = schedule(self._optim, step, steps) * self.scale
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor, last: bool, keep: bool = False) -> None:
        """Add a loss's gradient; on the last piece of a batch, average over the workers.

        The pieces before do not go through DDP at all: even under no_sync its forward may talk
        to the other workers, and those have another number of pieces.

        Args:
            loss: 0-dim.
            last: whether it is the batch's last piece.
            keep: whether its graph is needed once more.
        """
        if last:
            loss = self._reduce(loss)
        torch.autograd.backward(loss, inputs=self.parameters, retain_graph=keep)

    def update(self) -> None:
        """Take the step."""
        self.optimizer.step()

    def gradient_norm(self) -> Tensor:
        """Length of the last gradient, of all parameters together; 0-dim, float64."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            device = self.parameters[0].device if self.parameters else None
            return torch.zeros((), dtype=torch.float64, device=device)
        length: Tensor = torch.stack(torch._foreach_norm(gradients)).double().norm()
        return length

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors, as "exp_avg.<network>.<parameter>" and the like."""
        return {
            f"{kind}.{name}": value
            for name, parameter in self._named.items()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises KeyError for an unknown parameter."""
        self.optimizer.state.clear()
        for key, value in state.items():
            kind, name = key.split(".", 1)
            parameter = self._named[name]
            # The fused kernel wants moments laid out as the parameter is.
            room = parameter.detach() if value.dim() else value.to(parameter.device)
            self.optimizer.state[parameter][kind] = torch.empty_like(room).copy_(value)


class Reducer(nn.Module):
    """What DistributedDataParallel wraps: it owns networks, and its forward hands back the loss.

    DDP averages gradients over the workers in the backward that follows its own forward. Calling
    it on the loss, right before that backward, puts the averaging exactly where it is due,
    however many graphs of the same network are alive at that moment.
    """

    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, loss: Tensor) -> Tensor:
        """The loss itself."""
        return loss


def schedule(optim: Optim, step: int, steps: int) -> float:
    """Factor on the learning rates at this step of so many."""
    if optim.schedule == "halving":
        return float(0.5 ** (step // optim.halve_every))
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    return 1.0
