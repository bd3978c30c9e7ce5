"""What Ray, MLflow, checkpoints and sample grids cost: a whole run against the bare step.

    python benchmarks/overhead.py configs/demo.yaml --steps 600 --rounds 3

Each round trains the same config twice: by torchrun with nothing but feed and step, and by
``t2i-ray train`` with all it does. Both are timed from step WARM_UP to the last step, so start-up
is in neither; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP = 50


def bare(config_path: str, data: str, overrides: list[str]) -> None:
    """One torchrun worker: feed and step, nothing else; rank 0 prints images per second."""
    import torch
    import torch.distributed as dist

    from t2i_ray.config import load_config
    from t2i_ray.data import open_prepared
    from t2i_ray.encoders import build_encoder, caption_rows
    from t2i_ray.gan_cls import GanCls
    from t2i_ray.storage import open_store
    from t2i_ray.train import Worker
    from t2i_ray.train.feed import Feed

    dist.init_process_group("gloo")
    config = load_config(config_path, overrides)
    worker = Worker(dist.get_rank(), dist.get_world_size())
    worker.prepare_torch(config)
    store = open_store(config.storage)
    prepared = open_prepared(store, data)
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.encoder, prepared.captions)
    feed = Feed(config, prepared, caption_rows(encoder, prepared.captions, store), worker.device)
    gan = GanCls(config, encoder.module, encoder.dim)
    gan.distribute()
    started = 0.0
    for step in range(config.train.steps):
        if step == WARM_UP:
            started = time.perf_counter()
        micro_batches = config.train.micro_batches
        pieces = [feed.piece(step, micro) for micro in worker.share(micro_batches)]
        gan.step(pieces, step, micro_batches, worker.world)
    dist.barrier()
    elapsed = time.perf_counter() - started
    if worker.is_chief:
        print(json.dumps((config.train.steps - WARM_UP) * config.train.batch_size / elapsed))
    dist.destroy_process_group()


def whole(config_path: str, overrides: list[str], name: str, store: Path) -> float:
    """Images per second of ``t2i-ray train``, by the times at which MLflow's losses were taken."""
    command = [sys.executable, "-m", "t2i_ray", "train", config_path, *overrides, f"name={name}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    from mlflow import MlflowClient

    from t2i_ray.config import load_config

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids, f"attributes.run_name = '{name}'")
    history = {m.step: m.timestamp for m in client.get_metric_history(run.info.run_id, "d_loss")}
    steps = load_config(config_path, overrides).train
    seconds: float = (history[steps.steps] - history[WARM_UP]) / 1000
    return (steps.steps - WARM_UP) * steps.batch_size / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", metavar="DATA", help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    overrides = [f"train.steps={options.steps}", f"storage.uri={options.storage}"]
    if options.bare:
        bare(options.config, options.bare, overrides)
        return
    from t2i_ray.config import load_config
    from t2i_ray.data import prepare
    from t2i_ray.storage import open_store

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"train.steps={options.steps}", f"storage.uri={folder}"]
        config = load_config(options.config, overrides)
        data = prepare(config.data, open_store(config.storage))
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
            f"{config.cluster.workers} workers of {config.cluster.threads} threads; "
            f"images/s from step {WARM_UP} to {options.steps}"
        )
        ratios = []
        for i in range(options.rounds):
            torchrun = [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                f"--nproc-per-node={config.cluster.workers}",
                *(__file__, options.config, f"--steps={options.steps}"),
                *("--bare", data, "--storage", folder),
            ]
            env = {**os.environ, "OMP_NUM_THREADS": str(config.cluster.threads)}
            done = subprocess.run(torchrun, check=True, stdout=subprocess.PIPE, text=True, env=env)
            alone = float(done.stdout.strip().splitlines()[-1])
            run = whole(options.config, overrides, f"round-{i}", Path(folder))
            ratios.append(run / alone)
            print(f"round {i}: bare {alone:.0f}, whole {run:.0f}, ratio {run / alone:.3f}")
        print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
