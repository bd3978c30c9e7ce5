"""How a run ended: written down on storage and in MLflow, at once or later."""

from __future__ import annotations

from typing import Any

from t2i_ray import tracking
from t2i_ray.checkpoint import Checkpoint, Checkpoints
from t2i_ray.claims import Number, Superseded, check
from t2i_ray.config import Config, parse_config
from t2i_ray.runs import RunRecord, is_lost, now, read_run, run_store, write_run
from t2i_ray.storage import Store
from t2i_ray.storage.scratch import scratch


def settle(
    store: Store,
    config: Config,
    record: RunRecord,
    outcome: dict[str, Any],
    *,
    alone: bool = True,
) -> None:
    """Write down how the run ended, here and in MLflow.

    A run that is alone, and not one of many, also says so and gives MLflow its model.
    """
    place = run_store(store, record.name)
    try:
        check(place, Number(record.attempt))
    except Superseded as why:  # what its record says is the other one's affair
        record.status = "FAILED"
        print(f"{record.name}: {why}; nothing more is written here", flush=True)
        return
    record.status = outcome["status"]
    reason = outcome.get("reason")  # perhaps the words of some library's exception
    record.reason = tracking.scrub(reason) if reason else None
    if "step" not in outcome:  # no worker could say so
        outcome["step"] = max(Checkpoints(place.within("checkpoints"), keep=1).steps(), default=0)
    record.step = outcome["step"]
    record.rollbacks = outcome.get("rollbacks", record.rollbacks)
    record.attempts[-1].ended = now()
    write_run(store, record)
    # A worker that could not publish has waited already.
    patience = 20 if outcome.get("published", True) else 1
    complete = sync(store, record, config, patience=patience, model=alone)
    if not alone:
        return
    print(
        f"{record.name}: {record.status.lower()} at step {record.step}/{record.steps}"
        + (f": {record.reason}" if record.reason else "")
        + ("" if complete else f"\n{record.name}: MLflow is behind: t2i-ray sync {record.name}"),
        flush=True,
    )


def sync(
    store: Store,
    record: RunRecord,
    config: Config | None = None,
    tracking_uri: str | None = None,
    patience: float = 20,
    model: bool = True,
) -> bool:
    """Give MLflow whatever it lacks of a run, its measures, model and status; whether it has all.

    What the newest checkpoint held back is sent again: what MLflow has already, it stores once.
    An MLflow that does not answer is waited for ``patience`` seconds.
    """
    from t2i_ray.generate import MODEL_TENSORS  # torch: not before the workers have started

    place = run_store(store, record.name)
    parts = MODEL_TENSORS if model else ()
    checkpoint = Checkpoints(place.within("checkpoints"), keep=1).latest(only=parts)
    if is_lost(store, record):  # its driver could not say so any more
        record.status, record.reason = "KILLED", "the driver was lost"
        record.step = checkpoint.step if checkpoint else 0
        write_run(store, record)
    if config is None:
        if checkpoint is None:
            return True
        config = parse_config(checkpoint.documents["config"])
    if tracking_uri:
        moved = config.tracking.model_copy(update={"uri": tracking_uri})
        config = config.model_copy(update={"tracking": moved})
    destination = tracking.resolve(config)
    complete = True
    if checkpoint is not None:
        left = checkpoint.documents["tracking"]
        complete = tracking.sync(destination, left, store, patience, attempt=record.attempt)
        if complete and (documents := _measured(place)):
            rows: dict[int, dict[str, float]] = {}
            for document in documents.values():
                rows.setdefault(document["step"], {}).update(document["metrics"])
            complete = tracking.add(
                destination, left, store, rows, patience, record.attempt, documents
            )
    model = model and config.model.draws and record.status == "FINISHED"
    if complete and destination and checkpoint and model:
        complete = _log_model(destination, record, checkpoint, config.tracking.register_model)
    if complete and record.status != "RUNNING":
        complete = tracking.set_status(
            destination,
            record.key,
            record.status,
            record.reason,
            patience,
            # One that failed before its first step may have told MLflow nothing.
            must_exist=checkpoint is not None,
        )
    record.published = complete
    newest = read_run(store, record.name) or record
    if newest.status == record.status:  # else its driver has ended meanwhile, and knows better
        write_run(store, newest.model_copy(update={"published": complete}))
    return complete


def _measured(place: Store) -> dict[str, dict[str, Any]]:
    """The documents of what was measured of checkpoints besides training, by key.

    Of two of a step, that of training (val/... comes after val.json) is the last, and counts.
    """
    keys = place.list("evaluation")
    return {key: place.read_json(key) for key in keys if key.endswith(".json")}


def _log_model(
    destination: tracking.Destination, record: RunRecord, checkpoint: Checkpoint, register: bool
) -> bool:
    from t2i_ray.generate import export

    with scratch() as place:
        folder = place / "generator"
        folder.mkdir()
        export(checkpoint, folder)
        try:
            step = checkpoint.step
            tracking.log_model(destination, record.key, folder, step=step, register=register)
        except Exception as error:  # whatever MLflow or its transport may raise
            why = tracking.one_line(error)
            print(f"{record.name}: warning: the model is not in MLflow yet: {why}", flush=True)
            return False
    return True
