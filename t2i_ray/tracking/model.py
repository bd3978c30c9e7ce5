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
from t2i_ray.storage.scratch import scratch
from t2i_ray.tracking.about import STEP_TAG, scrub, tag
from t2i_ray.tracking.destination import Destination, locate
from t2i_ray.tracking.server import connect, find_run, one_line, prepare_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

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
    if logged != str(step):
        uri = _log(client, run, folder, step)
        client.set_tag(run.info.run_id, MODEL_TAG, tag(f"{step} {uri}"))
    if register:
        with _pointed_at(destination):
            _register(client, run.info.run_name, uri)
    return uri


@contextlib.contextmanager
def download_model(uri: str, storage: Storage) -> Iterator[Path]:
    """The folder that log_model was given, from ``models:/<name>/<version>`` or the like.

    It is a copy, which goes at the end of the ``with``. MLflow is looked for where
    MLFLOW_TRACKING_URI says, else beside a local storage.

    Raises:
        UserError: there is no such model, or it is not one of ours.
    """
    destination = locate(Tracking(), storage)
    prepare_mlflow()
    import mlflow.artifacts
    import mlflow.models

    with scratch() as place:
        try:
            with _pointed_at(destination):
                folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(place)))
            flavor = mlflow.models.Model.load(str(folder)).flavors["python_function"]
            generator = folder / str(flavor["artifacts"]["generator"]["path"])
        except Exception as error:  # whatever MLflow or the artifacts' store may raise
            raise UserError(
                f"model {uri}: {one_line(error)}; give models:/<name>/<version> of a model that "
                f"t2i-ray has logged at {scrub(destination.uri)}"
            ) from error
        yield generator


@contextlib.contextmanager
def _pointed_at(destination: Destination) -> Iterator[None]:
    """For the calls that know only the process-wide server.

    By the environment: mlflow's own setters write to it too, and do not restore it.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = destination.uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _log(client: MlflowClient, run: Run, folder: Path, step: int) -> str:
    """Step by step, where MLflow's own ``Model.log`` would leave a new model at every failure."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    run_id, number = run.info.run_id, str(step)
    model = _model_of(client, run, number)
    model_id = model.model_id
    if model.status != LoggedModelStatus.READY:
        with scratch() as place:
            _save(place / "model", folder, model)
            client.log_model_artifacts(model_id, str(place / "model"))
        measured = [
            Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run_id)
            for name in run.data.metrics
            for m in client.get_metric_history(run_id, name)
            if m.step == step and m.model_id is None
        ]
        client.log_batch(run_id, metrics=measured)
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run_id).outputs
    if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return str(model.model_uri)


def _model_of(client: MlflowClient, run: Run, step: str) -> LoggedModel:
    """The run's model of this step: a complete one, else the oldest, which is made if need be.

    Others are deleted: of two processes that made one at once, the second sees both.
    """
    from mlflow.entities import LoggedModelStatus

    experiment, run_id = run.info.experiment_id, run.info.run_id

    def models() -> list[LoggedModel]:
        query = f"source_run_id = '{run_id}' AND tags.`{STEP_TAG}` = '{step}'"
        return sorted(
            client.search_logged_models([experiment], query),
            key=lambda m: (m.status != LoggedModelStatus.READY, m.creation_timestamp, m.model_id),
        )

    found = models()
    if not found:
        client.create_logged_model(
            experiment, "generator", run_id, {STEP_TAG: step}, dict(run.data.params)
        )
        found = models()
    for other in found[1:]:
        client.delete_logged_model(other.model_id)
    return found[0]


def _save(place: Path, folder: Path, model: LoggedModel) -> None:
    with warnings.catch_warnings():  # hints for authors of type hints and input examples
        warnings.simplefilter("ignore", UserWarning)
        import mlflow.pyfunc
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema

        mlflow.pyfunc.save_model(
            str(place),
            python_model=str(CODE),
            artifacts={"generator": str(folder)},
            signature=ModelSignature(
                inputs=Schema(
                    [ColSpec("string", "caption"), ColSpec("long", "seed", required=False)]
                ),
                outputs=Schema([ColSpec("string", "png"), ColSpec("string", "warning")]),
            ),
            # Named, so that MLflow does not load the model to guess them.
            pip_requirements=[f"t2i-ray=={t2i_ray.__version__}"],
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=model.source_run_id,
                model_uuid=model.model_id,
                model_id=model.model_id,
            ),
        )


def _register(client: MlflowClient, name: str, uri: str) -> None:
    import mlflow

    versions = client.search_model_versions(f"name = '{name}'")
    if all(version.source != uri for version in versions):
        mlflow.register_model(uri, name)
