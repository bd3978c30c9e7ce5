"""Two at work on one run: the second is told, or the first one writes nothing any more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from servers import S3Server
from small_configs import TINY, write_config

from t2i_ray import claims
from t2i_ray.checkpoint import Checkpoints
from t2i_ray.claims import Lease, Number, Superseded, check, claim_attempt, claim_term, newest
from t2i_ray.config import Storage, UserError, load_config
from t2i_ray.data import prepare
from t2i_ray.launch.settle import settle
from t2i_ray.runs import begin_attempt, read_run, run_store
from t2i_ray.storage import FencedStore, LocalStore, StorageError, Store, open_store
from t2i_ray.storage.s3 import _client
from t2i_ray.tracking import describe
from t2i_ray.train import Job, Worker, train

HOLDER = """
import sys, time
from pathlib import Path
from t2i_ray.claims import Lease, claim_attempt
from t2i_ray.storage import LocalStore
place = LocalStore(Path(sys.argv[1]))
with Lease(place, claim_attempt(place, "a")):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "runs/a")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another driver at work on the run, on this machine."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "runs/a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def elsewhere(place: Store, seconds_ago: float, **more: Any) -> None:
    """A lease of attempt 1, of a driver on another machine."""
    claim_attempt(place, "a")
    lease = place.read_json("lease.json")
    time = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
    lease |= {"host": "far", "pid": 7, "machine": "another", "time": time, **more}
    place.write_json("lease.json", lease)


def test_a_second_driver_is_refused_until_the_first_is_dead(
    place: Store, other: subprocess.Popen[str]
) -> None:
    other.send_signal(signal.SIGSTOP)  # it is no less alive
    for _ in range(2):
        with pytest.raises(UserError, match=rf"name='a': process {other.pid} on .* is at work"):
            claim_attempt(place, "a")
    other.kill()
    other.wait()
    assert claim_attempt(place, "a") == 2


def test_one_that_is_about_to_be_gone_is_waited_for(
    place: Store, other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ending = threading.Timer(0.7, other.kill)
    ending.start()
    reaper = threading.Thread(target=other.wait)
    reaper.start()
    assert claim_attempt(place, "a", patience=60) == 2
    assert f"waits up to 60 s for process {other.pid}" in capsys.readouterr().out
    reaper.join()


def test_a_lease_of_another_machine_runs_out(
    place: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "LASTS", 2.0)
    elsewhere(place, seconds_ago=0.5)
    assert claim_attempt(place, "a") == 2
    assert "for process 7 on far to be gone" in capsys.readouterr().out
    elsewhere(place, seconds_ago=3)
    assert capsys.readouterr().out == ""
    assert claim_attempt(place, "a") == 4


def test_a_lease_of_another_machine_that_is_renewed_is_in_force(place: Store) -> None:
    elsewhere(place, seconds_ago=1)
    renewal = {**place.read_json("lease.json"), "time": datetime.now(UTC).isoformat()}
    renewing = threading.Timer(0.3, place.write_json, ["lease.json", renewal])
    renewing.start()
    with pytest.raises(UserError, match="process 7 on far is at work on it"):
        claim_attempt(place, "a")
    assert newest(place) == Number(1)


def test_where_processes_can_not_be_seen_the_lease_says_all(
    place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_started", lambda pid: "")  # no /proc
    elsewhere(place, seconds_ago=1, machine=claims._machine())
    renewal = {**place.read_json("lease.json"), "time": datetime.now(UTC).isoformat()}
    renewing = threading.Timer(0.3, place.write_json, ["lease.json", renewal])
    renewing.start()
    with pytest.raises(UserError, match="process 7 on far is at work on it"):
        claim_attempt(place, "a")
    elsewhere(place, seconds_ago=claims.LASTS + 1, machine=claims._machine())
    assert claim_attempt(place, "a") == 3


def test_a_lease_is_released_and_renewed(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEWED_EVERY", 0.02)
    with Lease(place, claim_attempt(place, "a")) as lease:
        first = place.read_json("lease.json")
        claim_attempt(place, "a")  # this process may: it knows what it does
        lease._thread.join(10)  # it has seen that it is no longer the newest
        assert not lease._thread.is_alive()
    assert place.read_json("lease.json")["attempt"] == first["attempt"] + 1
    elsewhere(place, seconds_ago=0, released=True)
    assert claim_attempt(place, "a") == 4


@pytest.mark.parametrize(
    "lease", [b"", b"[]", b'{"attempt": 1, "pid": "x"}', b'{"attempt": 1, "time": "soon"}']
)
def test_a_lease_that_is_none_holds_nobody_up(place: Store, lease: bytes) -> None:
    claim_attempt(place, "a")
    place.write("lease.json", lease)
    assert claim_attempt(place, "a") == 2


def one_of_many_wins(place: Store) -> None:
    won: list[int] = []
    refused: list[str] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        try:
            won.append(claim_attempt(place, "a"))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(refused) == 8
    assert len(set(won)) == len(won) >= 1
    assert max(won) == newest(place).attempt


def test_one_of_many_wins(place: Store) -> None:
    one_of_many_wins(place)


def test_claims_on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    _client.cache_clear()
    where = Storage(uri=f"s3://{s3.bucket}/{tmp_path.name}", endpoint=s3.endpoint)
    place = open_store(where)
    one_of_many_wins(place)
    attempt = newest(place).attempt
    old, new = claim_term(place, attempt), claim_term(place, attempt)
    check(place, new)
    with pytest.raises(Superseded):
        check(place, old)
    _client.cache_clear()


# ------------------------------------------------------------------------------- fencing


def test_only_the_newest_rank_0_of_the_newest_attempt_writes(place: Store) -> None:
    assert claim_attempt(place, "a") == 1
    own = [claim_term(place, 1), claim_term(place, 1)]
    old, new = (FencedStore(place, partial(check, place, one)) for one in own)
    new.within("deeper").write("x", b"1")
    for write in (
        lambda: old.write("x", b"2"),
        lambda: old.create("y", b"2"),
        lambda: old.delete("deeper"),
        lambda: old.within("deeper").write("x", b"2"),
        lambda: old.upload(Path(__file__), "z"),
        lambda: old.abort_uploads("deeper"),
    ):
        with pytest.raises(Superseded, match="attempt 1 was started again"):
            write()
    assert old.read("deeper/x") == b"1"
    assert claim_attempt(place, "a") == 2
    with pytest.raises(Superseded, match="attempt 2 has taken over from attempt 1"):
        new.write("x", b"2")
    with pytest.raises(Superseded):
        claim_term(place, 1)
    assert claim_term(place, 2) == Number(2, 1)


def test_a_superseded_checkpoint_is_not_finished_and_commits_nothing(tmp_path: Path) -> None:
    place = LocalStore(tmp_path)
    own = claim_term(place, 1)
    checkpoints = Checkpoints(
        FencedStore(place, lambda: check(place, own)).within("checkpoints"), keep=1
    )
    durable: list[int] = []

    def late() -> None:  # in the thread, before the first file: as if it had stood still there
        claim_term(place, 1)

    checkpoints.save(1, {}, {"state": {}}, first=late, on_durable=durable.append)
    with pytest.raises(Superseded):
        checkpoints.wait()
    assert not durable
    assert Checkpoints(place.within("checkpoints"), keep=1).steps() == []


def test_a_run_that_is_taken_over_leaves_and_says_why(tmp_path: Path) -> None:
    """Its own driver, and its workers that are started again, write nothing either."""
    path = write_config(tmp_path, "a", TINY)
    config = load_config(path, ["tracking.enabled=false", "train.steps=500", "checkpoint.every=5"])
    store = open_store(config.storage)
    data = prepare(config.data, store)
    record = begin_attempt(store, config, data=data, digest="d", commit="c")
    job = Job(config.model_dump(mode="json"), data, None, describe(config, key="a").to_json())
    place = run_store(store, "a")
    taken_over: list[int] = []

    def report(step: int, _: dict[str, float]) -> None:
        if step == 10:
            taken_over.append(claim_attempt(place, "a"))

    end = train(job, Worker(), report)
    assert taken_over == [2]
    assert (end.status, end.reason) == ("KILLED", "attempt 2 has taken over from attempt 1")
    assert 10 < end.step < 500
    assert Checkpoints(place.within("checkpoints"), keep=1).steps()[-1] <= end.step
    before = {key: place.read(key) for key in place.list()}
    again = train(job, Worker())
    assert (again.status, again.step, again.reason) == ("KILLED", 0, end.reason)
    settle(store, config, record, {"status": "FINISHED", "step": 500})
    assert record.status == "FAILED"
    assert {key: place.read(key) for key in place.list()} == before
    found = read_run(store, "a")
    assert found
    assert found.status == "RUNNING"


def test_what_a_killed_rank_0_was_uploading_is_aborted_by_the_next(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And nothing of another run's, or what others may be uploading to this one."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    _client.cache_clear()
    client = _client(s3.endpoint, None)
    storage = {"uri": f"s3://{s3.bucket}/{tmp_path.name}", "endpoint": s3.endpoint}
    config = load_config(
        write_config(tmp_path, "a", {**TINY, "train": {**TINY["train"], "steps": 2}}),
        [f"storage={json.dumps(storage)}", "tracking.enabled=false"],
    )
    store = open_store(config.storage)
    data = prepare(config.data, store)
    begin_attempt(store, config, data=data, digest="d", commit="c")
    own, others = ["a/checkpoints/step_00000001/x", "a/encoder/x"], ["b/checkpoints/x", "a/other/x"]
    code = (
        "import os, sys; from t2i_ray.storage.s3 import S3Store, _client\n"
        "bucket, prefix, endpoint, key = sys.argv[1:]\n"
        "kill = lambda **_: os.kill(os.getpid(), 9)\n"
        "_client(endpoint, None, False).meta.events.register('before-call.s3.UploadPart', kill)\n"
        "store = S3Store(bucket, prefix, endpoint=endpoint, region=None)\n"
        "store.write(key, bytes(65 << 20))"
    )
    for key in own + others:
        arguments = [s3.bucket, tmp_path.name, s3.endpoint, f"runs/{key}"]
        assert subprocess.run([sys.executable, "-c", code, *arguments]).returncode == -9

    def left() -> list[str]:
        found = client.list_multipart_uploads(Bucket=s3.bucket, Prefix=f"{tmp_path.name}/")
        return [entry["Key"].partition("/runs/")[2] for entry in found["Uploads"]]

    assert sorted(left()) == sorted(own + others)
    job = Job(config.model_dump(mode="json"), data, None, describe(config, key="a").to_json())
    assert train(job, Worker()).status == "FINISHED"
    assert sorted(left()) == sorted(others)
    _client.cache_clear()


def test_credentials_that_may_not_abort_uploads_may_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: LocalStore, prefix: str = "") -> None:
        raise StorageError("AccessDenied", "AccessDenied")

    monkeypatch.setattr(LocalStore, "abort_uploads", refused, raising=False)
    config = load_config(
        write_config(tmp_path, "a", TINY), ["train.steps=2", "tracking.enabled=false"]
    )
    store = open_store(config.storage)
    data = prepare(config.data, store)
    begin_attempt(store, config, data=data, digest="d", commit="c")
    job = Job(config.model_dump(mode="json"), data, None, describe(config, key="a").to_json())
    assert train(job, Worker()).status == "FINISHED"
    assert "warning: uploads of killed processes are not removed: " in capsys.readouterr().out


def test_this_process_is_known_again() -> None:
    this = claims.Process.this()
    assert this.is_here
    assert claims.Process.parse(json.loads(json.dumps(this._asdict()))) == this
    assert not this._replace(started="1").is_here  # its number was another's before
    assert not this._replace(machine="another").is_here
    assert claims.Process.parse({**this._asdict(), "pid": -os.getpid()}) is None
