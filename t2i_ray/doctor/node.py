"""What is looked at on a node, by an actor that is pinned to it."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from t2i_ray import __version__, tracking
from t2i_ray.config import Config, UserError, parse_config
from t2i_ray.data import open_prepared
from t2i_ray.doctor.finding import Finding, refused
from t2i_ray.storage import MissingKey, StorageError, open_store
from t2i_ray.storage.cache import Cache

PIECE = 4 << 20  # bytes that are written and read
SLOW = 1.0  # MB/s, and seconds a request, from which on training would feel it
HASHING = 5.0  # seconds for the sums of shards


class Disk(NamedTuple):
    """Room in a folder, bytes."""

    folder: str
    free: int
    total: int


class About(NamedTuple):
    """What a process runs on; the driver's is compared with the nodes'."""

    versions: dict[str, str]
    auth: bool  # whether Ray asks for a token
    gpus: list[str]  # as nvidia-smi names them
    disks: list[Disk]


def about() -> About:
    """Of the process that calls it."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    versions = {
        "Python": ".".join(map(str, sys.version_info[:3])),
        "Ray": metadata.version("ray"),
        "t2i_ray": __version__,
        "torch": metadata.version("torch"),
    }
    folders = dict.fromkeys((tempfile.gettempdir(), str(Cache.of_node().folder)))
    return About(versions, is_token_auth_enabled(), _gpus(), [disk(each) for each in folders])


def disk(folder: str) -> Disk:
    """Room in a folder, which need not exist yet."""
    there = Path(folder)
    while not there.exists():
        there = there.parent
    usage = shutil.disk_usage(there)
    return Disk(folder, usage.free, usage.total)


def _gpus() -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def try_storage(config: Config, where: str, probe: str) -> Finding:
    """Read what the driver wrote under ``probe``, then time a few MB of our own, which go again."""
    store = open_store(config.storage).hurried()
    own = f"{probe}/{uuid.uuid4().hex}"
    content = os.urandom(PIECE)
    try:
        store.read(f"{probe}/driver")
    except MissingKey:
        return Finding(
            "storage", where, "failed",
            f"{store.uri} is not what it is on the driver: what it wrote there is missing",
            "mount the same folder on every node, or use s3://...",
        )  # fmt: skip
    try:
        trips = [_seconds(lambda: store.exists(own)) for _ in range(3)]
        up = _seconds(lambda: store.write(own, content))
        down = _seconds(lambda: _same(store.read(own), content))
    finally:
        store.delete(own)
    rates = [PIECE / 1e6 / seconds for seconds in (up, down)]
    found = f"{min(trips) * 1000:.1f} ms a request, {rates[0]:.0f} MB/s up, {rates[1]:.0f} down"
    if min(rates) < SLOW or min(trips) > SLOW:
        remedy = "it is slow: checkpoints will lag; use one that is nearer, or a faster line"
        return Finding("storage", where, "warning", found, remedy)
    return Finding("storage", where, "ok", found, weight=up + down)


def _same(found: bytes, content: bytes) -> None:
    if found != content:
        raise StorageError(
            "what was read is not what was written; look after the server", "Damaged"
        )


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def try_mlflow(config: Config, where: str) -> Finding:
    """Whether this node reaches MLflow: rank 0 publishes from where it happens to be."""
    destination = tracking.resolve(config)
    if destination is None:
        return Finding("MLflow", where, "ok", "tracking.enabled=false")
    if destination.elsewhere:
        return Finding(
            "MLflow", where, "warning", "the driver's is not known here",
            "name it in the workers' environment (MLFLOW_TRACKING_URI), or the driver sends all "
            "at a run's end",
        )  # fmt: skip
    parts = urlsplit(destination.uri)
    if parts.scheme.startswith("sqlite"):
        return Finding("MLflow", where, "ok", "a file in the storage")
    begun = time.perf_counter()
    if parts.scheme.startswith("http"):
        if problem := tracking.check_access(destination):
            raise UserError(problem)
    else:
        port = parts.port or {"postgresql": 5432, "mysql": 3306}.get(
            parts.scheme.split("+")[0], 1433
        )
        try:
            socket.create_connection((parts.hostname or "localhost", port), timeout=5).close()
        except OSError as error:
            raise UserError(
                f"MLflow's database at {parts.hostname}:{port} does not answer ({error}); start "
                "it, or let this node reach it"
            ) from None
    seconds = time.perf_counter() - begun
    return Finding("MLflow", where, "ok", f"answers in {seconds * 1000:.0f} ms", weight=seconds)


def try_dataset(config: Config, where: str, prefix: str) -> Finding:
    """Tables and pictures of prepared data, with their sums; on S3 through this node's cache."""
    store = open_store(config.storage).hurried()
    prepared = open_prepared(store, prefix)
    shards, end, sound = prepared.manifest.shards, time.monotonic() + HASHING, 0
    for shard in shards:
        key = f"{prefix}/shards/{shard.name}.npy"
        try:
            path = store.fetch(key, shard.images_sha256)
        except (MissingKey, StorageError, ValueError) as error:
            if isinstance(error, StorageError) and error.code != "Damaged":
                raise
            path = None
        if path is None or not _has_hash(path, shard.images_sha256):
            copy = path is not None and store.uri not in str(path)
            raise UserError(
                f"{path if copy else f'{store.uri}/{key}'}: missing or damaged; "
                + (
                    "delete this copy"
                    if copy
                    else f"delete the folder {prefix} and run t2i-ray prepare again"
                )
            )
        sound += 1
        if time.monotonic() > end:
            break
    some = "all" if sound == len(shards) else f"{sound} of"
    return Finding(
        "dataset", where, "ok",
        f"{len(prepared.captions)} captions, digest {prepared.digest}, {some} {len(shards)} shards "
        "have their hashes",
    )  # fmt: skip


def _has_hash(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def try_encoder(config: Config, where: str, prefix: str | None, *, embed: bool) -> list[Finding]:
    """Load the text encoder without the network; with ``embed`` its embeddings are looked for."""
    if not config.encoder.outside:
        found = f"{config.encoder.kind}: trained with the run, nothing to load"
        return [Finding("encoder", where, "ok", found)]
    from t2i_ray.encoders import build_encoder, cached

    store = open_store(config.storage).hurried()
    captions = open_prepared(store, prefix).captions if prefix else ["a red flower"]
    try:
        encoder = build_encoder(config.encoder, captions, config.storage)
        if embed:
            encoder.rows(captions[:1])
    except UserError as error:
        return [refused("encoder", where, error)]
    kind = "frozen" if not encoder.trainable else "trained on"
    findings = [Finding("encoder", where, "ok", f"loads offline, {encoder.dim} wide, {kind}")]
    if embed and prefix and encoder.fingerprint is not None:
        state = cached(encoder, captions, store)
        row = Finding("embeddings", where, "ok", f"of {len(captions)} captions, hashes are right")
        if state:
            remedy = "none needed: train computes them before it starts"
            row = Finding("embeddings", where, "warning", state, remedy)
        findings.append(row)
    return findings


class Node:
    """The actor; methods run beside one another, so that one that hangs holds up no other."""

    def __init__(self, document: dict[str, Any], where: str) -> None:
        self._config, self._where = parse_config(document), where

    def about(self) -> About:
        """Of this node."""
        return about()

    def clock(self) -> float:
        """Seconds since 1970, by this node."""
        return time.time()

    def storage(self, probe: str) -> list[Finding]:
        """See try_storage."""
        return self._safely("storage", lambda: [try_storage(self._config, self._where, probe)])

    def mlflow(self) -> list[Finding]:
        """See try_mlflow."""
        return self._safely("MLflow", lambda: [try_mlflow(self._config, self._where)])

    def dataset(self, prefix: str) -> list[Finding]:
        """See try_dataset."""
        return self._safely("dataset", lambda: [try_dataset(self._config, self._where, prefix)])

    def encoder(self, prefix: str | None, embed: bool) -> list[Finding]:
        """See try_encoder."""
        look = lambda: try_encoder(self._config, self._where, prefix, embed=embed)  # noqa: E731
        return self._safely("encoder", look)

    def free_address(self) -> str:
        """host:port on which the first rank may listen."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as listener:
            listener.bind((host, 0))
            return f"{host}:{listener.getsockname()[1]}"

    def reduce(self, rank: int, world: int, address: str, gpu: bool, seconds: float) -> float:
        """Bytes per second that an all-reduce moves over each worker's line; see reduce.py."""
        from t2i_ray.doctor.reduce import all_reduce

        return all_reduce(rank, world, address, gpu=gpu, seconds=seconds)

    def _safely(self, check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
        try:
            return look()
        except Exception as error:  # of any library, which the driver need not have
            return [refused(check, self._where, error)]
