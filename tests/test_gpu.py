"""What needs a GPU. Skips itself elsewhere, and says so."""

from __future__ import annotations

import pytest
import torch
from runner import Runner
from servers import free_port

from t2i_ray.doctor.reduce import all_reduce

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


def test_doctor_on_a_gpu(runner: Runner) -> None:
    output = runner.run(
        "doctor", runner.config("gpu-doctor"), "--timeout", "100", "cluster.gpu=true",
        "cluster.address=local", env={"RAY_ADDRESS": "local"},
    )  # fmt: skip
    assert [line for line in output.splitlines() if line.split()[:2] == ["ok", "GPUs"]], output


def test_an_all_reduce_of_one_over_nccl() -> None:
    """With one worker doctor leaves it out; it raises what NCCL raises, or if the sum is wrong."""
    address = f"127.0.0.1:{free_port()}"
    assert all_reduce(0, 1, address, gpu=True, seconds=60) == 0  # it sends nothing to others
