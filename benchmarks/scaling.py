"""Time of a step with one and two workers, where it goes, and a model of communication.

    python benchmarks/scaling.py configs/gan_cls_64.yaml --rounds 5 --steps 8

Round after round, each in fresh processes of one thread, on drawn flowers, feed and step as in a
run, but without Ray, checkpoints and logging (benchmarks/overhead.py has what those cost):

- alone: one worker makes all pieces of the batch;
- crowded: the same, while another process does the same beside it: what a busy neighbour costs on
  this machine, without a word between the two;
- together: two workers share the pieces by DDP over gloo.

The model of a step of n workers: its share of a step that one worker makes (crowded, if they sit on
one machine) and one all-reduce of all gradients by a ring, 2 (n - 1) / n times their bytes at the
bandwidth of the slowest link. That bandwidth is measured by all-reduces of as many bytes between
the same two workers. Printed is what the model says beside what was measured; DDP hides a part of
the all-reduce behind the backward, so the model is on the safe side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

from overhead import opened

PIECES = 2
WARM_UP = 2


def worker(path: str, data: str, overrides: list[str], steps: int) -> None:
    """One torchrun worker; rank 0 prints the seconds of each step and of each all-reduce."""
    import torch
    import torch.distributed as dist

    from t2i_ray.config import load_config
    from t2i_ray.train import Worker

    config = load_config(path, overrides)
    place = Worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    feed, gan = opened(config, place, data)
    if place.world > 1:
        dist.init_process_group("gloo")
        gan.distribute()
    sizes = {
        name: sum(p.numel() * p.element_size() for p in learner.parameters)
        for name, learner in gan.learners.items()
    }
    gradients = [torch.zeros(size // 4) for size in sizes.values()]

    def step() -> None:
        pieces = [feed.piece(0, micro) for micro in place.share(PIECES)]
        gan.step(pieces, 0, PIECES, place.world)

    def exchange() -> None:
        for gradient in gradients:
            dist.all_reduce(gradient)

    found = {"bytes": sizes, "step": timed(step, steps)}
    if place.world > 1:
        found["exchange"] = timed(exchange, steps)
        dist.destroy_process_group()
    if place.is_chief:
        print(json.dumps(found))


def timed(function: Callable[[], None], times: int) -> list[float]:
    """Seconds of each call, after those that warm up."""
    seconds = []
    for number in range(WARM_UP + times):
        start = time.perf_counter()
        function()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return seconds


def launch(world: int, arguments: list[str]) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={world}", __file__, *arguments),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--worker", nargs=2, metavar=("DATA", "STORAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    source = "data.source={kind: synthetic-flowers, images: 200}"
    overrides = [source, "cluster.workers=1", "cluster.threads=1", f"train.micro_batches={PIECES}"]
    if options.worker:
        data, place = options.worker
        worker(options.config, data, [*overrides, f"storage.uri={place}"], options.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, folder, [*overrides, f"storage.uri={folder}"])


def compare(options: argparse.Namespace, folder: str, overrides: list[str]) -> None:
    from t2i_ray.config import load_config
    from t2i_ray.data import prepare
    from t2i_ray.storage import open_store

    config = load_config(options.config, overrides)
    data = prepare(config.data, open_store(config.storage))
    arguments = [options.config, f"--steps={options.steps}", "--worker", data, folder]
    times: dict[str, list[float]] = {name: [] for name in ("alone", "crowded", "together")}
    exchanges: list[float] = []
    for _ in range(options.rounds):
        for name, worlds in (("alone", [1]), ("crowded", [1, 1]), ("together", [2])):
            running = [launch(world, arguments) for world in worlds]
            lines = [process.communicate()[0].splitlines()[-1] for process in running]
            found = [json.loads(line) for line in lines]
            times[name].append(median(t for one in found for t in one["step"]))
            exchanges += [median(one["exchange"]) for one in found if "exchange" in one]
    show(found[0]["bytes"], times, exchanges, config.train.batch_size)


def show(
    sizes: dict[str, int], times: dict[str, list[float]], exchanges: list[float], batch: int
) -> None:
    alone, crowded, together = (median(times[name]) for name in ("alone", "crowded", "together"))
    exchange, total = median(exchanges), sum(sizes.values())
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items())
    print(f"gradients: {total / 1e6:.1f} MB a step ({parts})")
    for name, seconds in (("alone", alone), ("crowded", crowded), ("together", together)):
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        print(f"{name:9} {seconds:.3f} s a step ({spread}), {batch / seconds:.1f} images/s")
    # Of two workers a ring sends as many bytes each way as there are: 2 (n - 1) / n = 1.
    print(f"all-reduce {exchange:.3f} s: {total / exchange / 1e9:.2f} GB/s")
    print(f"efficiency of 2 workers: {alone / 2 / together:.3f} against one alone")
    model = crowded / 2 + exchange
    print(
        f"model: {crowded / 2:.3f} + {exchange:.3f} = {model:.3f} s ({model / together - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
