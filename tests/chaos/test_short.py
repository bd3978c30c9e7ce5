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

from chaos.faults import FAULTS, KILLS
from chaos.ledger import Ledger, Row, deck, table
from chaos.play import Twin, check, unbroken
from chaos.proxy import Mood, Proxy
from chaos.run import Run, until
from chaos.site import STEPS, Site, site_of


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


def test_mlflow_away_at_the_start_failing_and_away_at_the_end(site: Site, twin: Twin) -> None:
    run = Run(site, "mlflow", "s3", random.Random(0))
    site.mlflow.stop()
    run.start()
    run.reach(1)
    site.mlflow.start()
    for step, mood in (
        (STEPS // 4, Mood(status=429)),
        (STEPS // 3, Mood(cut_answer=True)),
        (STEPS // 2, Mood(status=500)),
    ):
        site.to_mlflow.mood = mood
        run.reach(step)
    site.mlflow.stop()
    assert run.wait() == 0
    record = run.record
    assert record
    assert (record.status, record.published) == ("FINISHED", False)
    run.finish()
    check(run, twin)


def meets(proxy: Proxy, mood: Mood, requests: int) -> None:
    """Until the mood has held for so many."""
    before = proxy.spoiled
    with proxy.being(mood):
        until(lambda: proxy.spoiled >= before + requests, "requests")


def test_s3_slow_refusing_cut_off_and_gone(site: Site, twin: Twin) -> None:
    run = Run(site, "objects", "s3", random.Random(1))
    run.start()
    run.reach(1)
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
    run.finish()
    assert run.commands == 1
    check(run, twin)


def test_a_full_disk(site: Site, twin: Twin) -> None:
    if not site.disk:
        pytest.skip("may not mount a small disk")
    run = Run(site, "full", "disk", random.Random(2))
    FAULTS["disk full, of the storage"].do(run)
    run.finish()
    check(run, twin)


def test_a_node_is_lost_and_the_controller_killed(site: Site, twin: Twin) -> None:
    run = Run(site, "nodes", "folder", random.Random(3))
    FAULTS["node lost"].do(run)
    run.reach(run.step + 1)
    KILLS["controller killed"](run)
    run.finish()
    check(run, twin)


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
