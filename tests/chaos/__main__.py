"""The long form: ``make chaos ROUNDS=200 SEED=1``; again, and it goes on where it stopped."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from servers import missing_programs

from chaos.facts import left_behind
from chaos.faults import FAULTS, possible
from chaos.ledger import Ledger, Row, deck, table
from chaos.play import Twin, deal, forget, places, play, steps_of, unbroken
from chaos.run import Lost, Run
from chaos.site import KEPT, Site, own_site
from t2i_ray.storage import StorageError

LEDGER = KEPT / "ledger.jsonl"
COMMIT = subprocess.run(
    ["git", "describe", "--always", "--dirty"],
    cwd=Path(__file__).parent,
    capture_output=True,
    text=True,
).stdout.strip()


def main() -> int:
    """1 if a round of this seed went wrong, 0 if none did."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=len(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--only", default="", help="of faults whose names have this in them")
    given = parser.parse_args()
    if missing := missing_programs():
        parser.error(f"not installed: {', '.join(missing)}; see CONTRIBUTING.md")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ledger = Ledger(given.ledger)
    while todo(ledger, given):
        with own_site(given.ledger.parent / "prepared") as there:
            names = [name for name in possible(there) if given.only in name]
            if skipped := FAULTS.keys() - set(possible(there)):
                print(f"can't be inflicted here: {', '.join(sorted(skipped))}", flush=True)
            sitting(there, ledger, given.seed, deck(names, given.seed, given.rounds))
    rows = [row for row in ledger.of(given.seed) if row.round < given.rounds]
    print(table(rows))
    for row in rows:
        if not row.recovered:
            print(f"round {row.round}, {row.fault}: {row.problem} (see {row.folder})")
    return int(not all(row.recovered for row in rows))


def todo(ledger: Ledger, given: argparse.Namespace) -> list[int]:
    """The rounds that have yet to be played."""
    done = {row.round for row in ledger.of(given.seed)}
    return [number for number in range(given.rounds) if number not in done]


def sitting(there: Site, ledger: Ledger, seed: int, faults: list[str]) -> None:
    """Play what is left, until it is done or the site is beyond repair."""
    unbroken(there, "warm")  # a site's first takes longer than any other
    twins: dict[int, Twin] = {}  # by the steps that they take
    done = {row.round for row in ledger.of(seed)}
    hands = [hand for hand in deal(faults) if not done.issuperset(hand)]
    while hands:
        numbered = hands.pop(0)
        steps = steps_of(numbered)
        if steps not in twins:
            twins[steps] = twin = unbroken(there, f"unbroken-{steps}", steps)
            usual = f"{twin.start:.0f} s to its second checkpoint, {twin.pace:.1f} s for two more"
            print(f"unbroken, {steps} steps: {usual}", flush=True)
        first, hand = min(numbered), list(numbered.values())
        rng = random.Random(f"{seed}-{first}")
        where = rng.choice([place for place in places(hand) if place in there.places])
        run = Run(there, f"round-{first}", where, rng, steps)
        met, problem = attempt(twins[steps], hand, run)
        sound = not problem or is_sound(run)
        folder = ledger.path.parent / f"failed-{seed}-{first}"
        if problem:
            keep(run, folder)
        else:
            forget(run)
        if left := dict(list(numbered.items())[len(met) :]):
            hands.insert(0, left)  # for another run
        for (number, name), (step, lost) in zip(numbered.items(), met, strict=False):
            ledger.add(
                Row(
                    seed, number, name, where, step, COMMIT, not problem, run.commands,
                    round(lost, 1), problem, str(folder) if problem else "",
                )
            )  # fmt: skip
            came = problem or f"recovered, {lost:+.0f} s"
            print(f"round {number}: {name} ({where}, step {step}): {came}", flush=True)
        if not sound:
            return  # what is left must not befall the next one


def attempt(twin: Twin, hand: list[str], run: Run) -> tuple[list[tuple[int, float]], str]:
    """Play a hand; of each fault its step and what it cost; and what went wrong."""
    nothing = [(0, 0.0) for _ in hand]
    try:
        return play(twin, hand, run), ""
    except Lost as why:
        return nothing, str(why)
    except Exception:  # perhaps the suite's own fault: it counts until it is understood
        return nothing, traceback.format_exc()


def is_sound(run: Run) -> bool:
    """Whether the next round can take place here, after one that went wrong."""
    try:
        run.site.mend()
        return not left_behind(run)
    except Exception:  # whatever of it is broken
        return False


def keep(run: Run, folder: Path) -> None:
    """Copy the log, the run's files but for tensors, and MLflow's log."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run.folder, folder)
    (folder / "processes").write_text("\n".join(run.site.processes().values()))
    shutil.copy(run.site.mlflow.folder / "server.log", folder / "mlflow.log")
    with suppress(StorageError):  # it may be what is broken
        for key in run.store.list():
            if not key.endswith(".safetensors"):
                target = folder / "stored" / key
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(run.store.read(key))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
