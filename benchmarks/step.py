"""How fast one step is, and what share of this machine's matrix speed it reaches.

    python benchmarks/step.py --rounds 15

Networks and batch of configs/gan_cls_64.yaml, on codes computed beforehand, float32, on the CPU.
Each round times a matrix product and one step of every variant in turn, and what is printed are
medians over rounds, so that noise of the machine hits all alike.

"linear head" is the alternating step with the head of the best-known PyTorch repository, one 4x4
convolution over [features, tiled text]. The paired ratio of the two is the price of a
discriminator that can tell a mismatched caption from a matching one.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.utils.flop_counter import FlopCounterMode

from t2i_ray.config import load_config
from t2i_ray.family import Piece
from t2i_ray.gan_cls import GanCls
from t2i_ray.learner import Learner

CONFIG = Path(__file__).parent.parent / "configs" / "gan_cls_64.yaml"
TEXT_IN = 1024
SIDE = 2048  # of the matrices


class LinearHead(nn.Module):
    """score = conv4x4([features, text]): no interaction of picture and caption."""

    def __init__(self, text_dim: int, channels: int):
        super().__init__()
        self.text = nn.Linear(TEXT_IN, text_dim)
        self.last = nn.Conv2d(channels + text_dim, 1, 4)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        text = leaky_relu(self.text(code), 0.2)  # [b, text_dim]
        tiled = text[:, :, None, None].expand(-1, -1, 4, 4)
        score: Tensor = self.last(torch.cat([features, tiled], 1))  # [b, 1, 1, 1]
        return score.flatten()


def make_step(update: str, linear: bool = False) -> Callable[[], object]:
    """A function that makes one step of the whole batch, in one piece."""
    config = load_config(CONFIG, [f"train.update={update}"])
    gan = GanCls(config, nn.Identity(), TEXT_IN)
    if linear:
        gan.discriminator.trunk.join = nn.Identity()  # type: ignore[assignment]
        head = LinearHead(config.model.text_dim, config.model.d_channels[-1])
        gan.discriminator.head = head  # type: ignore[assignment]
        networks = {"discriminator": gan.discriminator}
        rates = {"discriminator": config.optim.lr_d}
        gan.learner_d = gan.learners["optimizer_d"] = Learner(networks, rates, config.optim)
    size, count = config.data.image_size, config.train.batch_size
    right, wrong = torch.randn(2, count, TEXT_IN)
    noise = torch.randn(count, config.model.noise_dim)
    piece = Piece(torch.rand(count, 3, size, size) * 2 - 1, right, wrong, noise)
    return lambda: gan.step([piece], step=0, micro_batches=1, world=1)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def operations(function: Callable[[], object]) -> float:
    """GFLOP (multiply and add are two)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops()) / 1e9


def measure(threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    a, b = torch.randn(2, SIDE, SIDE)
    run: dict[str, Callable[[], object]] = {
        "matmul": lambda: a @ b,
        "alternating": make_step("alternating"),
        "simultaneous": make_step("simultaneous"),
        "linear head": make_step("alternating", linear=True),
    }
    gflop = {name: operations(function) for name, function in run.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds):
        for name, function in run.items():
            times[name].append(seconds(function))
    batch = load_config(CONFIG).train.batch_size
    matmul = median(gflop["matmul"] / t for t in times["matmul"])
    print(f"\n{threads} thread(s): matrix product {matmul:.0f} GFLOP/s")
    print(f"{'':14}{'images/s':>10}{'GFLOP':>8}{'GFLOP/s':>9}{'of matmul':>11}")
    for name in list(run)[1:]:
        speed = [gflop[name] / t for t in times[name]]
        share = median(
            s / (gflop["matmul"] / m) for s, m in zip(speed, times["matmul"], strict=True)
        )
        images = batch / median(times[name])
        print(f"{name:14}{images:10.1f}{gflop[name]:8.1f}{median(speed):9.1f}{share:11.0%}")
    pairs = list(zip(times["alternating"], times["linear head"], strict=True))
    print(f"head: {median(ours / theirs for ours, theirs in pairs) - 1:+.1%} time a step")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of one training step.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}; load average {os.getloadavg()[0]:.1f} (0 is quiet)")
    for threads in arguments.threads:
        measure(threads, arguments.rounds)


if __name__ == "__main__":
    main()
