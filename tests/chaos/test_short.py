"""The short form of the suite: servers, disk and nodes fail under a run. The long one: make chaos.

What other tests do to runs is not repeated: docs/reliability.md says which does what.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from runner import Runner
from servers import S3Server

from chaos.faults import KILLS, full, pass_by
from chaos.ledger import Ledger, Row, deck, table
from chaos.play import Twin, check, unbroken
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


def meets(proxy: Proxy, mood: Mood, requests: int) -> None:
    """Until the mood has held for so many."""
    before = proxy.spoiled
    with proxy.being(mood):
        until(lambda: proxy.spoiled >= before + requests, "requests")


def test_services_are_away_slow_refusing_and_cut_off(site: Site, twin: Twin) -> None:
    """MLflow at the start, in the middle and at the end; S3 in the middle."""
    run = Run(site, "services", "s3", random.Random(0))
    site.mlflow.stop()
    run.start()
    run.reach(1)
    site.mlflow.start()
    for mood in (Mood(status=429), Mood(cut_answer=True), Mood(status=500)):
        site.to_mlflow.mood = mood
        run.reach(run.step + 1)
    for mood in (
        Mood(delay=1.0),
        Mood(status=503),
        Mood(cut_request=True, methods=frozenset({"PUT", "POST"})),
        Mood(cut_answer=True),
    ):
        meets(site.to_s3, mood, requests=4)
        run.reach(run.step + 1)
    site.s3.server.stop_gateway()
    site.s3.server.start_gateway()
    site.mlflow.stop()
    assert run.wait() == 0
    record = run.record
    assert record
    assert (record.status, record.published) == ("FINISHED", False)
    run.finish()
    check(run, twin)


def test_a_disk_is_full_a_node_lost_and_the_controller_killed(site: Site, twin: Twin) -> None:
    run = Run(site, "machines", "disk" if site.disk else "folder", random.Random(2))
    run.start()
    run.reach(1)
    if site.disk:
        with full(run):
            pass_by(run, (5, 20))
    for name in ("node lost", "controller killed"):
        run.reach(run.step + 1)
        KILLS[name](run)
    run.finish()
    check(run, twin)
    if not site.disk:
        pytest.skip("all but the full disk: may not mount a small disk")


def test_the_deck_holds_every_fault_alike() -> None:
    names = list("abcde")
    drawn = deck(names, seed=1, rounds=12)
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == names
    assert drawn[:7] == deck(names, seed=1, rounds=7)  # more rounds do not change those before
    assert drawn != deck(names, seed=2, rounds=12)


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
