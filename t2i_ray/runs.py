"""What a run is on storage: its identity, its attempts, and where it stands.

``runs/<name>/run.json`` belongs to the driver; ``progress.json`` is rank 0's pulse; a ``stop``
key asks rank 0 to checkpoint and leave.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from t2i_ray.claims import claim_attempt, lease_time
from t2i_ray.config import Config, UserError, flatten, identity_hash, identity_of
from t2i_ray.storage import MissingKey, Store

LOST_AFTER = 300.0  # seconds: rank 0 gives a sign every 5 s, and a start may take minutes
# What rank 0's pulse may hold, by type.
_PULSE: dict[str, Any] = {
    "step": int, "time": str, "host": str, "pid": int, "images_per_second": int | float,
}  # fmt: skip
STEP = "step"  # in a row of scores
# How reasons begin: of a run that a scheduler stopped, of those that would fail again alike, and of
# one that goes on when its sweep does.
PRUNED = "pruned at step"
DIVERGED = "a loss is not finite"
OVERFLOWN = "a gradient is not finite"
D_COLLAPSED = "the discriminator has collapsed"
G_COLLAPSED = "the generator has collapsed"
HOPELESS = (DIVERGED, OVERFLOWN, D_COLLAPSED, G_COLLAPSED)
STOPPED = "the sweep was stopped"
PRUNED_KEY = "pruned"  # of a run's storage: a scheduler stopped it, and nothing else did
Stage = Literal["search", "confirm"]  # of a sweep, in which a trial took place
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Attempt(BaseModel):
    """One go of the driver at the run, with the operational values it had."""

    number: int
    started: str
    ended: str | None = None
    commit: str = "unknown"
    operational: dict[str, Any] = Field(default_factory=dict)


class RunRecord(BaseModel):
    """The run as the driver knows it."""

    name: str
    id: str = ""  # see own_id; those of before it have none
    hash: str
    identity: dict[str, Any]
    data: str
    status: Status = "RUNNING"
    reason: str | None = None
    step: int = 0
    steps: int
    published: bool = False
    rollbacks: list[dict[str, Any]] = Field(default_factory=list)  # see train/guards.py
    attempts: list[Attempt] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """The logical id by which MLflow's run is found again."""
        return f"{self.name}-{self.hash}-{self.id}".rstrip("-")

    @property
    def attempt(self) -> int:
        """The number of the newest attempt; 0: there was none."""
        return self.attempts[-1].number if self.attempts else 0


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_store(store: Store, name: str) -> Store:
    """The part of the storage that belongs to a run."""
    return store.within(f"runs/{name}")


def own_id(place: Store) -> str:
    """What tells a run or sweep from those of the same name in other storages, or deleted ones.

    It is drawn once, and kept beside the record. Raises UserError if it is damaged.
    """
    place.create("id", secrets.token_hex(4).encode())
    drawn = place.read("id").decode(errors="replace")
    if not re.fullmatch("[0-9a-f]{8}", drawn):
        raise UserError(f"{place.uri}/id: damaged; delete this one file")
    return drawn


def read_run(store: Store, name: str) -> RunRecord | None:
    """The record of a run, or None if there is none. Raises UserError if it is damaged."""
    place = run_store(store, name)
    try:
        return RunRecord.model_validate_json(place.read("run.json"))
    except MissingKey:
        return None
    except ValueError as error:  # pydantic's is one
        reason = " ".join(str(error).split("[type=")[0].split())
        raise UserError(
            f"run {place.uri}/run.json: damaged ({reason}); delete this one file, and the command "
            "that trains the run goes on from its newest checkpoint"
        ) from None


def write_run(store: Store, record: RunRecord) -> None:
    """Replace the record."""
    run_store(store, record.name).write("run.json", record.model_dump_json(indent=1).encode())


def list_runs(store: Store) -> list[RunRecord]:
    """All runs of a storage, by name."""
    names = {key.split("/")[1] for key in store.list("runs") if key.endswith("/run.json")}
    return [record for name in sorted(names) if (record := read_run(store, name))]


def known_run(store: Store, config: Config, digest: str) -> RunRecord | None:
    """The record of the run that is to begin or to go on, if there is one.

    Args:
        store: the storage.
        config: the run's.
        digest: of its data.

    Raises:
        UserError: the name is taken by a run of another identity.
    """
    record = read_run(store, config.name)
    if record and record.hash != identity_hash(config, digest):
        there, here = record.identity, {**identity_of(config), "data.digest": digest}
        raise UserError(
            f"name={config.name!r}: this run exists with another identity "
            f"({_difference(there, here)}); take another name, or the old values"
        )
    return record


def begin_attempt(
    store: Store, config: Config, *, data: str, digest: str, commit: str, patience: float = 0
) -> RunRecord:
    """Create the run, or continue it as its next attempt; a FINISHED run is returned as it is.

    Raises:
        UserError: the name is taken by a run of another identity, or another driver is at work on
            it, and still is after ``patience`` seconds.
    """
    identity = {**identity_of(config), "data.digest": digest}
    record = known_run(store, config, digest) or RunRecord(
        name=config.name,
        id=own_id(run_store(store, config.name)),
        hash=identity_hash(config, digest),
        identity=identity,
        data=data,
        steps=config.train.steps,
    )
    if record.status == "FINISHED":
        return record
    place = run_store(store, config.name)
    number = claim_attempt(place, config.name, after=record.attempt, patience=patience)
    record = read_run(store, config.name) or record  # its last driver may just have ended
    if record.status == "FINISHED":
        return record
    record.status, record.reason, record.published = "RUNNING", None, False
    fields = flatten(config)
    record.attempts.append(
        Attempt(
            number=number,
            started=now(),
            commit=commit,
            operational={key: fields[key] for key in fields if key not in identity},
        )
    )
    place.delete("stop")
    write_run(store, record)
    return record


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in keys)


def result_key(split: str, step: int | None = None) -> str:
    """Where a run keeps what was measured: last, or aside of the checkpoint of this step."""
    return f"evaluation/{split}" + ("" if step is None else f"/step_{step:08d}") + ".json"


class Scores:
    """What a run measured while it trained, step by step, in its ``scores.json``."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = run_store(store, name)
        self.rows: list[dict[str, float]] = []
        self.read()

    def read(self) -> None:
        """Look again at what is on storage."""
        self.rows = self._store.read_json("scores.json", [])

    @property
    def step(self) -> int:
        """The last one that was measured; 0: none."""
        return int(self.rows[-1][STEP]) if self.rows else 0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Keep what was measured after so many steps, unless it is there from before a restart."""
        if values and step > self.step:
            rows = [*self.rows, {STEP: step, **values}]
            self._store.write_json("scores.json", rows)
            self.rows = rows  # now that it is sure

    def forget_after(self, step: int) -> None:
        """The run has gone back to this step."""
        kept = [row for row in self.rows if row[STEP] <= step]
        if kept != self.rows:
            self.rows = kept
            self._store.write_json("scores.json", self.rows)


def request_stop(store: Store, name: str) -> None:
    """Ask the run's rank 0 to checkpoint at the next step boundary and leave."""
    run_store(store, name).write("stop", now().encode())


def is_lost(store: Store, record: RunRecord) -> bool:
    """Whether a run that says RUNNING has shown no sign of life for LOST_AFTER seconds."""
    if record.status != "RUNNING":
        return False
    seen = last_seen(store, record)
    return seen is None or (datetime.now(UTC) - seen).total_seconds() > LOST_AFTER


def last_seen(store: Store, record: RunRecord) -> datetime | None:
    """The latest sign of life of the run's driver or of its rank 0."""
    signs = [
        *(attempt.started for attempt in record.attempts[-1:]),
        read_progress(store, record.name).get("time", ""),
        lease_time(run_store(store, record.name)),
    ]
    return max(filter(None, map(_time, signs)), default=None)


def _time(text: str) -> datetime | None:
    """A time with a zone; None if that is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


def read_progress(store: Store, name: str) -> dict[str, Any]:
    """Rank 0's latest pulse: step, time, images per second; empty if there is none."""
    try:
        progress = run_store(store, name).read_json("progress.json", {})
    except ValueError:
        return {}
    if not isinstance(progress, dict):
        return {}
    return {key: value for key, value in progress.items() if isinstance(value, _PULSE.get(key, ()))}
