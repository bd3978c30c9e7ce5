"""Log a trained generator as an MLflow model, and register it if asked."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import t2i_ray
from t2i_ray.config import Storage, Tracking, UserError
from t2i_ray.tracking.about import scrub, tag
from t2i_ray.tracking.server import (
    Destination,
    connect,
    find_run,
    locate,
    one_line,
    prepare_mlflow,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_TAG = "t2i_ray.model"
CODE = Path(__file__).with_name("pyfunc.py")


def log_model(
    destination: Destination, key: str, folder: Path, *, step: int, register: bool = False
) -> str:
    """Log the exported model in ``folder`` with the run of ``key``; returns its ``models:/`` URI.

    The same step is logged, and registered, once: a second call returns the first one's URI.
    Call it after the run's metrics are published; those of the step are then shown with it.

    Args:
        destination: where MLflow is.
        key: the run's.
        folder: what ``Pipeline.from_folder`` loads: safetensors and JSON.
        step: of the checkpoint from which it was made.
        register: make it the next version in the registry, under the run's name.

    Raises:
        LookupError: there is no run of this key.
        Exception: what MLflow raises if it can't be reached.
    """
    client = connect(destination)
    run = find_run(client, destination, key)
    if run is None:
        raise LookupError(f"no run {key} in MLflow's experiment {destination.experiment}")
    logged, _, uri = str(run.data.tags.get(MODEL_TAG, "")).partition(" ")
    with _pointed_at(destination, run.info.experiment_id):
        if logged != str(step):
            uri = _log(run.info.run_id, folder, step)
            client.set_tag(run.info.run_id, MODEL_TAG, tag(f"{step} {uri}"))
        if register:
            _register(client, run.info.run_name, uri)
    return uri


def download_model(uri: str, storage: Storage) -> Path:
    """The folder that log_model was given, from ``models:/<name>/<version>`` or the like.

    MLflow is looked for where MLFLOW_TRACKING_URI says, else beside a local storage.

    Raises:
        UserError: there is no such model, or it is not one of ours.
    """
    destination = locate(Tracking(), storage)
    prepare_mlflow()
    import mlflow.artifacts
    import mlflow.models

    try:
        with _pointed_at(destination):
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        flavor = mlflow.models.Model.load(str(folder)).flavors["python_function"]
        return folder / str(flavor["artifacts"]["generator"]["path"])
    except Exception as error:  # whatever MLflow or the artifacts' store may raise
        raise UserError(
            f"model {uri}: {one_line(error)}; give models:/<name>/<version> of a model that "
            f"t2i-ray has logged at {scrub(destination.uri)}"
        ) from error


@contextlib.contextmanager
def _pointed_at(destination: Destination, experiment_id: str | None = None) -> Iterator[None]:
    """For the calls that know only the process-wide server and experiment.

    By the environment: mlflow's own setters write to it too, and do not restore it. A logged
    model belongs to the process's experiment, which need not be that of its run.
    """
    changes = {"MLFLOW_TRACKING_URI": destination.uri}
    if experiment_id:
        changes["MLFLOW_EXPERIMENT_ID"] = experiment_id
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _log(run_id: str, folder: Path, step: int) -> str:
    with warnings.catch_warnings():  # hints for authors of type hints and input examples
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        signature = ModelSignature(
            inputs=Schema([ColSpec("string", "caption"), ColSpec("long", "seed", required=False)]),
            outputs=Schema([ColSpec("string", "png")]),
        )
        info = Model.log(
            artifact_path=None,
            name="generator",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            step=step,
            python_model=str(CODE),
            artifacts={"generator": str(folder)},
            signature=signature,
            # Named, so that MLflow does not load the model to guess them.
            pip_requirements=[f"t2i-ray=={t2i_ray.__version__}"],
        )
    return str(info.model_uri)


def _register(client: MlflowClient, name: str, uri: str) -> None:
    import mlflow

    versions = client.search_model_versions(f"name = '{name}'")
    if all(version.source != uri for version in versions):
        mlflow.register_model(uri, name)
