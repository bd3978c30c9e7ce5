"""What a run is on storage."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from t2i_ray.config import Config, Storage, UserError, parse_config
from t2i_ray.launch.fit import Signs
from t2i_ray.runs import (
    begin_attempt,
    is_lost,
    last_seen,
    list_runs,
    read_run,
    request_stop,
    run_store,
    write_run,
)
from t2i_ray.storage import LocalStore, MissingKey, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Storage(uri=str(tmp_path)))


def config(**changes: object) -> Config:
    return parse_config({"name": "a", "train": {"steps": 10}, **changes})


def begin(store: Store, run: Config, digest: str = "d") -> int:
    return begin_attempt(store, run, data="data/x", digest=digest, commit="c").attempt


def test_attempts_count_and_keep_their_operational_values(store: Store) -> None:
    assert begin(store, config()) == 1
    assert begin(store, config(cluster={"threads": 3})) == 2
    record = read_run(store, "a")
    assert record
    assert [a.operational["cluster.threads"] for a in record.attempts] == [1, 3]
    assert "seed" not in record.attempts[0].operational
    assert list_runs(store) == [record]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """In MLflow, which several storages share: by an id that is drawn, and outlives the record."""
    stores = [open_store(Storage(uri=str(tmp_path / name))) for name in ("mine", "yours")]
    keys = []
    for store in stores:
        begin(store, config())
        keys.append(read_run(store, "a"))
    mine, yours = (record.key for record in keys if record)
    assert mine != yours
    run_store(stores[0], "a").delete("run.json")  # as the error says that finds it damaged
    begin(stores[0], config())
    again = read_run(stores[0], "a")
    assert again
    assert again.key == mine
    shutil.rmtree(tmp_path / "mine/runs/a")
    begin(stores[0], config())
    anew = read_run(stores[0], "a")
    assert anew
    assert anew.key not in (mine, yours)
    run_store(stores[1], "a").delete("run.json")
    run_store(stores[1], "a").write("id", b"' OR 1=1")
    with pytest.raises(UserError, match="a/id: damaged; delete this one file"):
        begin(stores[1], config())


def test_two_drivers_that_begin_a_run_at_once_are_told_apart(tmp_path: Path) -> None:
    class Behind(LocalStore):
        """As the second one sees it: nothing there, when the first is about to write."""

        def read(self, key: str) -> bytes:
            if key == "id":
                return super().read(key)
            raise MissingKey(key)

        def list(self, prefix: str = "") -> list[str]:
            return []

        def within(self, prefix: str) -> LocalStore:
            return Behind(tmp_path / prefix)

    begin(LocalStore(tmp_path), config())
    before = read_run(LocalStore(tmp_path), "a")
    with pytest.raises(UserError, match="another driver has just begun this"):
        begin(Behind(tmp_path), config())
    assert read_run(LocalStore(tmp_path), "a") == before


def test_other_identity_or_other_data_is_refused_and_nothing_changes(store: Store) -> None:
    begin(store, config())
    before = read_run(store, "a")
    for run, digest, says in (
        (config(seed=3), "d", "seed: 0 there, 3 here"),
        (config(), "e", "data.digest: d there, e here"),
    ):
        with pytest.raises(UserError, match=says):
            begin(store, run, digest)
    assert read_run(store, "a") == before


def test_a_new_attempt_forgets_an_old_wish_to_stop(store: Store) -> None:
    begin(store, config())
    request_stop(store, "a")
    assert run_store(store, "a").exists("stop")
    begin(store, config())
    assert not run_store(store, "a").exists("stop")


def test_lost_is_who_runs_without_a_sign_of_life(store: Store) -> None:
    begin(store, config())
    record = read_run(store, "a")
    assert record
    assert not is_lost(store, record)
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    record.attempts[-1].started = hour_ago
    assert not is_lost(store, record)  # its lease is young
    seen = last_seen(store, record)
    assert seen
    assert seen.isoformat() > hour_ago
    run_store(store, "a").delete("lease.json")
    assert is_lost(store, record)
    run_store(store, "a").write(
        "progress.json", f'{{"step": 1, "time": "{datetime.now(UTC).isoformat()}"}}'.encode()
    )
    assert not is_lost(store, record)
    run_store(store, "a").write("progress.json", b'{"step": 1, "ti')
    assert is_lost(store, record)
    record.status = "FINISHED"
    write_run(store, record)
    assert not is_lost(store, record)


def test_nobody_is_waited_for_if_none_gives_a_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 11.0, 12.0, 39.0, 42.0, 60.0, 90.0, 91.0, 100.0])
    monkeypatch.setattr("t2i_ray.launch.fit.time.monotonic", lambda: next(clock))
    store = LocalStore(tmp_path)
    signs = Signs(store, "a")
    assert [signs.lacking() for _ in range(5)] == [False, False, False, False, True]
    run_store(store, "a").write_json("progress.json", {"step": 1})
    assert [signs.lacking() for _ in range(4)] == [False, True, True, True]


def test_the_second_new_sign_shows_that_rank_0_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 12.0, 14.0, 16.0, 17.0, 18.0])
    monkeypatch.setattr("t2i_ray.launch.fit.time.monotonic", lambda: next(clock))
    store = LocalStore(tmp_path)
    progress = run_store(store, "a")
    progress.write_json("progress.json", {"step": 7})  # of the attempt before
    signs = Signs(store, "a")
    assert not signs.seen()
    assert not signs.seen()
    progress.write_json("progress.json", {"step": 7, "time": "now"})
    assert not signs.seen()
    assert not signs.seen()
    progress.write_json("progress.json", {"step": 9})
    assert not signs.seen()  # not looked for so soon
    assert signs.seen()
