"""Ray Train's trainer and its controller, both in one process of their own.

Ray Train has its trainer in the driver, which then starts the controller: two processes that import
all of Ray Train, one after the other, before the first worker starts. Here the driver starts this
one as soon as it may, and goes on meanwhile.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import ray
from ray.actor import ActorHandle

from t2i_ray.config import parse_config
from t2i_ray.launch.cluster import PLAIN_CHECKSUMS
from t2i_ray.launch.imports import import_all


class TrainController:
    """An actor beside the driver.

    Args:
        variables: environment, of which Ray Train's modules read some when they are imported.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        os.environ |= variables
        # What Ray says to itself, of settings that nobody here has made.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
        import_all(["t2i_ray.launch.trainer"])

    def fit(
        self, document: dict[str, Any], attempt: int, job: dict[str, Any], variables: dict[str, str]
    ) -> dict[str, Any]:
        """Run the workers of an attempt at the run of this config; how it ended.

        Args:
            document: the config.
            attempt: its number.
            job: what every worker is given.
            variables: environment of the workers, as the driver has it for them.
        """
        from ray.train import TrainingFailedError

        from t2i_ray.launch.trainer import trainer_of

        config = parse_config(document)
        try:
            trainer = trainer_of(config, attempt, job, variables)
            ending: dict[str, Any] = trainer.fit().return_value
        except TrainingFailedError as error:
            return {"status": "FAILED", "reason": _reason(error)}
        except Exception as error:
            return {"status": "FAILED", "reason": f"{type(error).__name__}: {error}"}
        return ending


def start_controller() -> ActorHandle[TrainController]:
    """On the driver's own node; it ends with the driver, or with the last handle to it."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("RAY_TRAIN_") or name in PLAIN_CHECKSUMS
    }
    node = ray.get_runtime_context().get_node_id()
    # Not by a runtime environment: without one, Ray may take a process that waits already.
    actor = ray.remote(num_cpus=0, label_selector={"ray.io/node-id": node})(TrainController)
    handle: ActorHandle[TrainController] = actor.remote(variables)
    return handle


def _reason(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        return f"worker {rank}: {lines[-1] if lines else type(failure).__name__}"
    return " ".join(str(error).split())[:500]
