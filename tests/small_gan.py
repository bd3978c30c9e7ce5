"""A GAN of a few weights with an encoder of its own, and pieces to train it on, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from small_configs import networks
from torch import Tensor, nn

from t2i_ray.config import Config, parse_config
from t2i_ray.family import Objective, Piece
from t2i_ray.gan_cls import GanCls
from t2i_ray.pretrain import Pair, Tower

WORDS, TOKENS, DIM = 20, 4, 6


class TinyEncoder(nn.Module):
    """Token ids [b, L] -> [b, DIM]; its start is the same in every process."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.words = nn.Embedding(WORDS, 5)
            self.out = nn.Linear(5, DIM)

    def forward(self, rows: Tensor) -> Tensor:
        code: Tensor = self.out(3 * self.words(rows).mean(1)).tanh()
        return code


def make_config(
    model: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **train: Any,
) -> Config:
    """A run of such a GAN; what is given changes its sections model, optim, data and train."""
    pair = {"init_from": "a pair"} if train.get("pretrained_matching") else {}
    return parse_config(
        {
            "name": "tiny",
            "encoder": {"kind": "bigru", **pair},
            "data": {"image_size": 16, "load_size": 16} | (data or {}),
            "model": networks(3, 4, [8, 6], ema=0.9) | (model or {}),
            "optim": {"lr_g": 1e-3, "lr_d": 2e-3, "lr_encoder": 5e-4} | (optim or {}),
            "train": {"steps": 10, "batch_size": 16, "precision": "float64", **train},
        }
    )


def make_pieces(count: int, seed: int = 0) -> list[Piece]:
    """A batch of 16 in so many pieces."""
    random = torch.Generator().manual_seed(seed)
    size = 16 // count

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def rows() -> Tensor:
        return torch.randint(WORDS, (size, TOKENS), generator=random)

    return [
        Piece(real(size, 3, 16, 16).tanh(), rows(), rows(), real(size, 3)) for _ in range(count)
    ]


def make_pair() -> Pair:
    """A pair that was pretrained, as it were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder, tower = TinyEncoder(), Tower([8, 6], DIM, 4, cosine=True)
        for parameter in [*encoder.parameters(), *tower.parameters()]:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return Pair(encoder, tower).double()


def make_gan(**train: Any) -> GanCls:
    gan = GanCls(make_config(**train), TinyEncoder(), DIM)
    if gan.train.pretrained_matching:
        gan.pair = make_pair()
    for network in (gan.generator, gan.discriminator):  # far from the start, where all is linear
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            for parameter in network.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
    return gan


def gradients(objective: Objective) -> dict[str, Tensor]:
    """Those of all networks that have any, as network.parameter."""
    return {
        f"{part}.{name}": parameter.grad
        for part, network in objective.networks.items()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def assert_pieces_add_up(
    make: Callable[[], Objective], pieces: Sequence[Piece] | None = None
) -> None:
    """Two workers with one piece each make the update of one worker with both."""
    pieces = pieces or make_pieces(2)
    whole, halves = make(), [make() for _ in range(2)]
    whole.step(pieces, 0, 2, 1)
    for half, piece in zip(halves, pieces, strict=True):
        half.step([piece], 0, 2, 2)
    shares = [gradients(half) for half in halves]
    for name, value in gradients(whole).items():
        mean = (shares[0][name] + shares[1][name]) / 2
        assert torch.allclose(value, mean, rtol=1e-9, atol=1e-15), name
