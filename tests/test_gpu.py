"""What needs a GPU. Skips itself elsewhere, and says so."""

from __future__ import annotations

import pytest
import torch
from runner import Runner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_bfloat16_and_compile_train_on_a_gpu(runner: Runner) -> None:
    runner.train(
        "gpu", "cluster.gpu=true", "train.precision=bfloat16", "train.compile=true",
        "cluster.address=local", env={"RAY_ADDRESS": "local"},
    )  # fmt: skip
    assert runner.record("gpu").status == "FINISHED"
    assert runner.checkpoint("gpu").tensors["history"]["g_loss"].isfinite().all()


def test_deterministic_runs_on_a_gpu_are_equal_bit_for_bit(runner: Runner) -> None:
    options = ("cluster.gpu=true", "train.deterministic=true", "cluster.address=local")
    for name in ("gpu-a", "gpu-b"):
        runner.train(name, *options, env={"RAY_ADDRESS": "local"})
    assert runner.sums("gpu-a", 60) == runner.sums("gpu-b", 60)
