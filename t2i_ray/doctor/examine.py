"""All that a run needs, looked at: each check ends by its time, or says that it had no answer."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path

import ray

from t2i_ray import tracking
from t2i_ray.config import Config, UserError
from t2i_ray.data.prepare import prefix_of
from t2i_ray.data.sources import open_source
from t2i_ray.doctor import judge
from t2i_ray.doctor.finding import DRIVER, Aside, Finding, refused
from t2i_ray.doctor.node import About, about, try_mlflow, try_storage
from t2i_ray.doctor.nodes import Place, ask, collect, place_actors
from t2i_ray.doctor.ring import Ring
from t2i_ray.launch import reach, refuses_strangers, with_absolute_paths
from t2i_ray.storage import StorageError, Store, check_writable, open_store

SECONDS = 24.0
# By which share of that the nodes have started, and have answered; the rest is the all-reduce's.
STARTED, ANSWERED = 0.6, 0.85
ORDER = (
    "cluster", "versions", "token", "resources", "GPUs", "clock", "disk", "storage", "MLflow",
    "dataset", "encoder", "embeddings", "all-reduce",
)  # fmt: skip


def examine(config: Config, seconds: float = SECONDS) -> list[Finding]:
    """What a run of this config needs, a row each, in the order of the table.

    Args:
        config: of the run.
        seconds: after which all that has not answered is reported so.

    Raises:
        UserError: the config itself is at fault.
    """
    begun = time.monotonic()
    config = with_absolute_paths(config)
    driver = _Driver(config)
    rows: list[Finding] = []
    try:
        reach(config.cluster, config.storage, tell=False)  # a row of its own does
        rows.append(_joined())
    except UserError as error:
        rows.append(refused("cluster", DRIVER, error))
    rows += driver.findings(begun + seconds * STARTED)
    try:
        if ray.is_initialized():
            rows += _nodes(config, driver, rows, begun, seconds)
    finally:
        ray.shutdown()  # first: a node that did not answer may yet write
        driver.clean()
    return sorted(rows, key=lambda row: ORDER.index(row.check))


def _joined() -> Finding:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    address = ray.get_runtime_context().gcs_address
    return Finding("cluster", DRIVER, "ok", f"{len(nodes)} nodes, head at {address}")


class _Driver:
    """What is looked at from here, each in a thread of its own while the cluster is joined."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store: Store = open_store(config.storage).hurried()
        self.probe = f".doctor-{uuid.uuid4().hex}"
        self.prefix: str | None = None  # of the prepared data, once it was found
        self._written = False
        looks = {"storage": self._storage, "MLflow": self._mlflow, "dataset": self._dataset}
        self._asides = [Aside(check, look) for check, look in looks.items()]

    def findings(self, until: float) -> list[Finding]:
        """What was found by then."""
        return [aside.finding(until) for aside in self._asides]

    def clean(self) -> None:
        """Remove what was written; the storage may be out of reach by now."""
        if self._written:
            with suppress(StorageError):
                self._store.delete(self.probe)

    def _storage(self) -> Finding:
        check_writable(self._store)
        self._written = True
        self._store.write(f"{self.probe}/driver", b"driver")
        return try_storage(self._config, DRIVER, self.probe)

    def _mlflow(self) -> Finding:
        found = try_mlflow(self._config, DRIVER)
        destination = tracking.resolve(self._config)
        if destination is None:
            return found
        file = destination.uri.removeprefix("sqlite:///")
        if file != destination.uri and not Path(file).exists():
            return Finding("MLflow", DRIVER, "ok", f"{file}: the first run makes it")
        return Finding("MLflow", DRIVER, "ok", tracking.try_out(destination))

    def _dataset(self) -> Finding:
        config = self._config
        source = open_source(config.data.source, config.data.load_size, config.storage)
        prefix = prefix_of(config.data, source)
        if not self._store.exists(f"{prefix}/manifest.json"):
            return Finding(
                "dataset", DRIVER, "warning", f"{self._store.uri}/{prefix}: not prepared yet",
                "none needed: train prepares it before it starts",
            )  # fmt: skip
        self.prefix = prefix
        return Finding("dataset", DRIVER, "ok", f"{self._store.uri}/{prefix}")


def _nodes(
    config: Config, driver: _Driver, before: list[Finding], begun: float, seconds: float
) -> list[Finding]:
    """What is looked at on every node; ``before`` was found from here."""
    places = place_actors(config)
    ring = Ring(config, places)
    rows = list(judge.resources(config, places))
    asked = ask("versions", places, lambda p: p.actor.about.remote(), begun + seconds * STARTED)
    here, alive = about(), []
    rows.append(judge.versions(DRIVER, here.versions, here.versions))
    rows.append(judge.head(places[0].where, refuses_strangers()))
    rows += [judge.room(DRIVER, disk) for disk in here.disks]
    for place, each in zip(places, asked, strict=True):
        answer = each.answer()
        if isinstance(answer, Finding):
            rows.append(answer)
        else:
            alive.append(place)
            rows += _of_node(config, place, answer, here)
    # Not asked of whoever did not answer; and what is broken from here is broken everywhere.
    until = begun + seconds * ANSWERED
    clocks = [Aside("clock", partial(_clock, place, until), place.where) for place in alive]
    broken = {row.check for row in before if row.state == "failed"}
    calls = []
    if "storage" not in broken:
        calls += ask("storage", alive, lambda p: p.actor.storage.remote(driver.probe), until)
        if driver.prefix:
            calls += ask("dataset", alive, lambda p: p.actor.dataset.remote(driver.prefix), until)
        able = [place for place in alive if place.works] or alive
        calls += ask(
            "encoder",
            able,
            lambda p: p.actor.encoder.remote(driver.prefix, p is able[0]),
            until,
        )
    if "MLflow" not in broken:
        calls += ask("MLflow", alive, lambda p: p.actor.mlflow.remote(), until)
    rows += [clock.finding(until) for clock in clocks]
    rows += collect(calls)
    if len(alive) == len(places):
        rows += ring.sum_up(begun + seconds)
    ring.close()
    return rows


def _of_node(config: Config, place: Place, there: About, here: About) -> list[Finding]:
    return [
        judge.versions(place.where, there.versions, here.versions),
        judge.auth(place.where, there),
        judge.gpus(config, place, there),
        *(judge.room(place.where, disk) for disk in there.disks),
    ]


def _clock(place: Place, until: float) -> Finding:
    def ping() -> tuple[float, float, float]:
        left, before = max(0.0, until - time.monotonic()), time.time()
        return before, ray.get(place.actor.clock.remote(), timeout=left), time.time()

    return judge.clock(place.where, ping)
