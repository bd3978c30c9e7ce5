from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import small_disk
from servers import S3Server
from torch import Tensor

from t2i_ray import config
from t2i_ray.checkpoint import Checkpoint, Checkpoints, DamagedCheckpoint
from t2i_ray.storage import LocalStore, StorageError, open_store
from t2i_ray.storage.s3 import _client


class GatedStore(LocalStore):
    """Writing waits while the gate is closed, or fails while the store is out."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.failures = 0  # how many of the next writes fail
        self.failed = 0

    def write(self, key: str, data: bytes) -> None:
        self.entered.set()
        assert self.gate.wait(60)
        if self.failures:
            self.failures -= 1
            self.failed += 1
            raise StorageError("the store is out")
        super().write(key, data)


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path / "checkpoints")


def weights(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "generator": {"weight": torch.full((8, 4), float(step))},
        "optim_g": {"exp_avg": torch.arange(16.0) + step},
    }


def save(checkpoints: Checkpoints, step: int, **options: Any) -> None:
    checkpoints.save(step, weights(step), {"state": {"step": step}}, **options)
    assert checkpoints.wait(60)


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_sound(checkpoint: Checkpoint | None, step: int) -> bool:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.documents == {"state": {"step": step}}
    for group, named in weights(step).items():
        for name, tensor in named.items():
            assert torch.equal(checkpoint.tensors[group][name], tensor)
    return True


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


# -------------------------------------------------------------------------- round trip


def round_trip(checkpoints: Checkpoints) -> None:
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    shared = torch.randn(3)
    group = {
        "float32": torch.randn(5, 3),
        "float64": torch.randn(4, dtype=torch.float64),
        "bfloat16": torch.randn(7).bfloat16(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "odd": odd,
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "transposed": torch.randn(3, 5).T,
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "shared": shared,
        "shared again": shared,
    }
    documents = {"state": {"step": 7, "loss": [0.1, 1e300]}, "encoder": {"wörd": 1, "a": [None]}}
    checkpoints.save(7, {"every.kind": group, "none": {}}, documents)
    assert checkpoints.wait(60)
    loaded = checkpoints.load(7)
    assert loaded.documents == documents
    assert list(loaded.documents["encoder"]) == ["wörd", "a"]
    assert loaded.tensors["none"] == {}
    found = loaded.tensors["every.kind"]
    assert found.keys() == group.keys()
    for name, tensor in group.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(found[name]) == raw(tensor.detach()), name


def test_round_trip_bit_for_bit(store: GatedStore) -> None:
    round_trip(Checkpoints(store, keep=1))


@pytest.fixture
def s3_store(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    _client.cache_clear()
    uri = f"s3://{s3.bucket}/{tmp_path.name}"
    yield open_store(config.Storage(uri=uri, endpoint=s3.endpoint))
    _client.cache_clear()


def test_round_trip_through_s3(s3_store: Any) -> None:
    round_trip(Checkpoints(s3_store, keep=1))


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        save(Checkpoints(LocalStore(folder), keep=1), 3, score=0.5)
    one, other = (
        {path.name: path.read_bytes() for path in (folder / "step_00000003").iterdir()}
        for folder in folders
    )
    assert one == other
    assert sorted(one) == [
        "generator.safetensors",
        "manifest.json",
        "optim_g.safetensors",
        "state.json",
    ]


def test_only_some_groups(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=1)
    save(checkpoints, 1)
    (store.root / "step_00000001" / "optim_g.safetensors").unlink()
    loaded = checkpoints.load(1, only=["generator"])
    assert list(loaded.tensors) == ["generator"]
    assert loaded.documents == {"state": {"step": 1}}


@pytest.mark.parametrize("name", ["manifest", "", "../x", "a/b", ".hidden"])
def test_names_that_no_file_can_have(store: GatedStore, name: str) -> None:
    with pytest.raises(ValueError, match="can't be the name"):
        Checkpoints(store, keep=1).save(1, {}, {name: 1})
    assert store.list() == []


# --------------------------------------------------------------------------- retention


def test_the_last_the_best_and_the_pinned_are_kept(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=2)
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    scores = {10: 0.1, 20: 0.9, 30: float("nan"), 40: 0.3, 50: None, 60: 0.2}
    for step, score in scores.items():
        save(checkpoints, step, score=score)
        if step == 10:
            store.write("pins/the-good-one", b"10\n")
    assert checkpoints.steps() == [10, 20, 50, 60]
    checkpoints = Checkpoints(store, keep=1)  # as after a restart
    assert checkpoints.best() == 20
    store.delete("pins/the-good-one")
    save(checkpoints, 70)
    assert checkpoints.steps() == [20, 70]
    assert store.list("step_00000010") == []


def test_the_best_may_be_the_smallest(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=1, best_mode="min")
    for step, score in {1: 0.5, 2: 0.1, 3: 0.1, 4: 0.7}.items():
        save(checkpoints, step, score=score)
    assert checkpoints.best() == 3
    assert checkpoints.steps() == [3, 4]


def test_an_unreadable_pin_keeps_everything(
    store: GatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(store, keep=1)
    store.write("pins/model-1", b"?")
    save(checkpoints, 1)
    save(checkpoints, 2)
    assert checkpoints.steps() == [1, 2]
    assert "not removed" in caplog.text


def test_a_damaged_newer_one_does_not_push_out_a_sound_one(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=2)
    save(checkpoints, 20)
    save(checkpoints, 30)
    damage(store.root / "step_00000030" / "state.json")
    save(checkpoints, 25)  # resumed from before 30, with another interval
    assert checkpoints.steps() == [20, 25, 30]
    assert is_sound(checkpoints.latest(), 25)
    save(checkpoints, 30)
    assert is_sound(checkpoints.latest(), 30)
    assert checkpoints.steps() == [25, 30]


# ------------------------------------------------------------------------------ damage


def damage(path: Path, *, truncate: bool = False) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if truncate else data)


@pytest.mark.parametrize(
    "file", ["generator.safetensors", "optim_g.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_one_is_named_and_the_one_before_used(
    store: GatedStore, caplog: pytest.LogCaptureFixture, file: str, how: str
) -> None:
    checkpoints = Checkpoints(store, keep=3)
    for step in (1, 2, 3):
        save(checkpoints, step)
    path = store.root / "step_00000003" / file
    path.unlink() if how == "missing" else damage(path, truncate=how == "truncated")
    with pytest.raises(DamagedCheckpoint, match=f"step_00000003/{file}"):
        checkpoints.load(3)
    assert is_sound(checkpoints.latest(), 2)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"step_00000003/{file}" in caplog.text


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 2, "step": 3, "score": null, "files": {}}',
        b'{"format": 1, "step": 2, "score": null, "files": {}}',
        b'{"format": 1, "step": 3, "score": "x", "files": {}}',
        b'{"format": 1, "step": 3, "score": null, "files": []}',
        b'{"format": 1, "step": 3, "score": null, "files": {"a.json": {}}}',
        b'{"format": 1, "step": 3, "score": null, '
        b'"files": {"../a.json": {"sha256": "0", "size": 1}}}',
    ],
)
def test_manifests_that_are_none(store: GatedStore, manifest: bytes) -> None:
    store.write("step_00000003/manifest.json", manifest)
    with pytest.raises(DamagedCheckpoint):
        Checkpoints(store, keep=1).load(3)


def test_an_unreachable_store_is_not_taken_for_damage(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(store, keep=1)
    save(checkpoints, 1)

    def refuse(_: str) -> bytes:
        raise StorageError("the store is out")

    monkeypatch.setattr(store, "read", refuse)
    with pytest.raises(StorageError):
        checkpoints.latest()


# ------------------------------------------------------------------------ in background


def test_training_goes_on_while_the_store_is_slow(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=3)
    order: list[str] = []
    store.gate.clear()
    tensors, documents = weights(1), {"state": {"step": 1}}
    checkpoints.save(1, tensors, documents, on_durable=lambda step: order.append(f"durable {step}"))
    assert not checkpoints.wait(0)
    assert checkpoints.steps() == []
    tensors["generator"]["weight"] += 1  # what training does next must not reach the copy
    documents["state"]["step"] = 99

    assert store.entered.wait(60)

    def save_second() -> None:
        checkpoints.save(2, weights(2), {"state": {"step": 2}})
        order.append("saved 2")

    second = threading.Thread(target=save_second)
    second.start()
    second.join(0.2)
    assert second.is_alive()  # waits: the first is not durable
    store.gate.set()
    second.join(60)
    assert order == ["durable 1", "saved 2"]
    assert checkpoints.wait(60)
    assert is_sound(checkpoints.load(1), 1)
    assert is_sound(checkpoints.latest(), 2)


def test_what_must_be_there_is_written_before(store: GatedStore) -> None:
    """A run's last files: no checkpoint says that it has ended while they are missing."""
    checkpoints = Checkpoints(store, keep=3)
    whole: list[bool] = []

    def first() -> None:
        whole.append(store.exists("step_00000001/manifest.json"))
        if len(whole) < 3:
            raise StorageError("away")

    checkpoints.save(1, weights(1), {"state": {"step": 1}}, first=first)
    checkpoints.wait()
    assert whole == [False, False, False]
    assert is_sound(checkpoints.latest(), 1)


def test_an_outage_delays_and_loses_nothing(
    store: GatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(store, keep=3)
    durable: list[int] = []
    save(checkpoints, 1, on_durable=durable.append)
    store.failures = 3
    save(checkpoints, 2, on_durable=durable.append)
    save(checkpoints, 3, on_durable=durable.append)
    assert store.failed == 3
    assert durable == [1, 2, 3]
    assert is_sound(checkpoints.load(2), 2)
    assert len(caplog.records) == 1  # one warning a minute
    assert "checkpoint 2 not written yet, trying on: the store is out" in caplog.text


def test_an_outage_of_a_real_server(
    s3: S3Server, s3_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(s3_store, keep=3)
    save(checkpoints, 1)
    s3.server.stop_gateway()
    try:
        checkpoints.save(2, weights(2), {"state": {"step": 2}})
        until(lambda: "checkpoint 2 not written yet" in caplog.text)
    finally:
        s3.server.start_gateway()
    assert checkpoints.wait(60)
    assert is_sound(checkpoints.latest(), 2)
    assert s3.env["AWS_SECRET_ACCESS_KEY"] not in caplog.text


def test_closing_gives_up_on_a_store_that_is_out(
    store: GatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(store, keep=3)
    durable: list[int] = []
    save(checkpoints, 1)
    store.failures = 10**9
    checkpoints.save(2, weights(2), {}, on_durable=durable.append)
    until(lambda: store.failed > 0)
    checkpoints.close()
    assert "checkpoint 2 given up" in caplog.text
    assert durable == []
    assert is_sound(checkpoints.latest(), 1)
    with pytest.raises(RuntimeError, match="closed"):
        checkpoints.save(3, weights(3), {})


def test_what_fails_in_the_thread_is_not_lost(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=3)

    def burst(step: int) -> None:
        raise ZeroDivisionError(step)

    checkpoints.save(1, weights(1), {"state": {"step": 1}}, on_durable=burst)
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait(60)
    save(checkpoints, 2)
    assert checkpoints.steps() == [1, 2]


# ------------------------------------------------------------------- disk full, killed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", kilobytes=256) as problem:
        if problem:
            pytest.skip(problem)
        yield tmp_path / "small"


def test_a_full_disk(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    large = {"generator": {"weight": torch.ones(100, 256)}, "tail": {"weight": torch.ones(1)}}
    checkpoints = Checkpoints(LocalStore(disk), keep=2)
    save(checkpoints, 1)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(150 << 10))

    checkpoints.save(2, large, {})
    until(lambda: "No space left on device" in caplog.text)
    checkpoints.close()
    assert not (disk / "step_00000002").exists()
    assert is_sound(checkpoints.latest(), 1)

    caplog.clear()
    checkpoints = Checkpoints(LocalStore(disk), keep=2)
    checkpoints.save(2, large, {})
    until(lambda: "No space left on device" in caplog.text)
    ballast.unlink()
    assert checkpoints.wait(60)
    assert checkpoints.steps() == [1, 2]
    assert torch.equal(checkpoints.load(2).tensors["generator"]["weight"], torch.ones(100, 256))


KILLED = """
import sys, time
from pathlib import Path
import torch
from t2i_ray.checkpoint import Checkpoints
from t2i_ray.storage import LocalStore

class Stuck(LocalStore):
    def write(self, key, data):
        if key == sys.argv[2]:
            print("stuck", flush=True)
            time.sleep(600)
        super().write(key, data)

checkpoints = Checkpoints(Stuck(Path(sys.argv[1])), keep=3)
for step in (1, 2):
    tensors = {
        "generator": {"weight": torch.full((8, 4), float(step))},
        "optim_g": {"exp_avg": torch.arange(16.0) + step},
    }
    checkpoints.save(step, tensors, {"state": {"step": step}})
    checkpoints.wait()
"""


@pytest.mark.parametrize("file", ["optim_g.safetensors", "manifest.json"])
def test_killed_in_the_middle_of_a_save(
    store: GatedStore, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    command = [sys.executable, "-c", KILLED, str(store.root), f"step_00000002/{file}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert store.exists("step_00000002/generator.safetensors")
    checkpoints = Checkpoints(store, keep=3)
    assert checkpoints.steps() == [1]
    assert is_sound(checkpoints.latest(), 1)
    assert "step_00000002/manifest.json is damaged: missing" in caplog.text
    store.write("step_00000002/stale.json", b"{}")
    save(checkpoints, 2)
    assert is_sound(checkpoints.latest(), 2)
    assert not store.exists("step_00000002/stale.json")


def test_a_step_saved_again_is_never_half_old(store: GatedStore) -> None:
    checkpoints = Checkpoints(store, keep=3)
    save(checkpoints, 1)
    save(checkpoints, 2)
    store.failures = 1
    store.gate.clear()
    store.entered.clear()
    checkpoints.save(2, {}, {"state": "again"})
    assert store.entered.wait(60)
    assert checkpoints.steps() == [1]  # from the first moment on
    store.gate.set()
    assert checkpoints.wait(60)
    assert checkpoints.load(2) == Checkpoint(2, {}, {"state": "again"})
    manifest = json.loads(store.read("step_00000002/manifest.json"))
    assert list(manifest["files"]) == ["state.json"]
