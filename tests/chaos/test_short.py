"""The short form of the suite: servers, disk and nodes fail under a run. The long one: make chaos.

What other tests do to runs is not repeated: docs/reliability.md says which does what.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from runner import Runner
from servers import S3Server

from chaos.faults import FAULTS, requests
from chaos.ledger import Ledger, Row, deck, table
from chaos.play import Twin, check, deal, places, play, unbroken
from chaos.proxy import Mood, Proxy
from chaos.run import Run, until
from chaos.site import Site, site_of


@pytest.fixture(scope="module")
def site(s3: S3Server, mlflow_server: MlflowServer, runner: Runner) -> Iterator[Site]:
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server: apt-get install redis-server")
    folder = Path(tempfile.mkdtemp(prefix="t2i-chaos-"))
    with site_of(folder, s3, mlflow_server, prepared=runner.folder / "store") as made:
        yield made
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def twin(site: Site) -> Twin:
    return unbroken(site)


def meets(proxy: Proxy, mood: Mood, count: int = 4) -> None:
    """Until the mood has held for so many."""
    before = proxy.spoiled
    with proxy.being(mood):
        until(lambda: proxy.spoiled >= before + count, "requests")


def test_mlflow_and_s3_fail_in_every_way(site: Site, twin: Twin) -> None:
    """MLflow is away at the start and at the end, too; nothing of it ends the run."""
    run = Run(site, "servers", "s3", random.Random(0))
    site.mlflow.stop()
    run.start()
    run.reach(1)
    with site.to_s3.being(Mood(delay=1.0)):  # training waits for its checkpoints meanwhile
        site.mlflow.start()
    moods = {
        Mood(status=503): Mood(status=429),
        Mood(cut_request=True, methods=frozenset({"PUT", "POST"})): Mood(cut_answer=True),
        Mood(cut_answer=True): Mood(status=500),
    }
    met = requests(site.to_mlflow)
    for of_s3, of_mlflow in moods.items():
        run.reach(run.step + 1)
        with site.to_mlflow.being(of_mlflow):
            meets(site.to_s3, of_s3)
    with site.to_mlflow.being(Mood(status=500)):  # in one of the moods at least
        until(met, "a request to MLflow")
    site.s3.server.stop_gateway()
    site.s3.server.start_gateway()
    site.mlflow.stop()
    assert run.wait() == 0
    record = run.record
    assert record
    assert (record.status, record.published, run.commands) == ("FINISHED", False, 1)
    site.mend()
    where = run.place.told
    options = ["-s", where.uri, "--endpoint", str(where.endpoint)]
    options += ["--tracking-uri", site.mlflow.uri]  # the same server by another address
    at_once = [run.give("sync", run.name, *options) for _ in range(2)]
    assert [run.wait(each) for each in at_once] == [0, 0]
    assert run.wait(run.give("sync", run.name, *options)) == 0  # nothing is left to add
    record = run.record
    assert record
    assert record.published
    check(run, twin)


def test_a_full_disk_a_lost_node_and_a_killed_controller(site: Site, twin: Twin) -> None:
    hand = ["disk full, of the storage"] * bool(site.disk) + ["node lost", "controller killed"]
    run = Run(site, "nodes", "disk" if site.disk else "folder", random.Random(3))
    assert len(play(twin, hand, run)) == len(hand)
    assert run.commands == 2  # for the controller
    if not site.disk:
        pytest.skip("all but the full disk: a small one can't be mounted here")


def test_the_deck_holds_every_fault_alike() -> None:
    names = list("abcde")
    drawn = deck(names, seed=1, rounds=12)
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == names
    assert drawn[:7] == deck(names, seed=1, rounds=7)  # more rounds do not change those before
    assert drawn != deck(names, seed=2, rounds=12)


def test_hands_begin_and_end_where_a_fault_wants_it() -> None:
    kill, start, end = "rank 0 killed", "MLflow away at the start", "MLflow away at the end"
    s3, disk = "S3 slow", "disk full, of the storage"
    hands = deal([kill, end, start, kill, start, disk, s3, disk])
    assert [list(hand.items()) for hand in hands] == [
        [(2, start), (0, kill), (3, kill), (1, end)],
        [(4, start), (6, s3)],
        [(5, disk), (7, disk)],
    ]
    drawn = deck(sorted(FAULTS), seed=1, rounds=200)
    hands = deal(drawn)
    assert sorted(each for hand in hands for each in hand.items()) == [*enumerate(drawn)]
    assert all(places([*hand.values()]) for hand in hands)


def test_a_ledger_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "new/ledger.jsonl"
    row = Row(1, 0, "worker killed", "s3", 40, "abc", True, 1, 12.3)
    Ledger(path).add(row)
    with path.open("a") as file:
        file.write('{"seed": 1, "rou')
    ledger = Ledger(path)
    assert ledger.rows == [row]
    ledger.add(Row(1, 1, "worker killed", "s3", 48, "abc", False, 4, 0.0, "lost"))
    assert [row.round for row in Ledger(path).of(1)] == [0, 1]
    assert "| worker killed | 2 | 1 | 12 | 12 |" in table(ledger.rows)
    assert "| worker killed | 1 | 1 | 0 | 0 |" in table([replace(row, lost=-0.4)])  # not -0
