"""The rounds that were played, one line of JSON each, and the table of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Row:
    """A round: a fault, and what came of it and of the run that it befell, perhaps with others."""

    seed: int
    round: int
    fault: str
    stored: str  # at which of the site's places
    step: int  # that was durable when the fault came
    commit: str
    recovered: bool
    commands: int  # how often the same command was given for the run
    lost: float  # seconds until it had gone on, the fault's own duration included
    problem: str = ""
    folder: str = ""  # of a round that went wrong


class Ledger:
    """A file that only grows. A line that was torn when the suite was ended is no round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError):
                self.rows.append(Row(**json.loads(line)))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * torn + json.dumps(asdict(row)) + "\n")

    def of(self, seed: int) -> list[Row]:
        return [row for row in self.rows if row.seed == seed]


def deck(names: Sequence[str], seed: int, rounds: int) -> list[str]:
    """A fault for each round: all of them in random order, then all again in another."""
    drawn: list[str] = []
    while len(drawn) < rounds:
        cards = sorted(names)
        random.Random(f"{seed} {len(drawn)}").shuffle(cards)
        drawn += cards
    return drawn[:rounds]


def table(rows: Sequence[Row]) -> str:
    """What came of each fault, as markdown."""
    lines = [
        "| fault | rounds | recovered | seconds lost, median | worst |",
        "|---|---|---|---|---|",
    ]
    for name in [*sorted({row.fault for row in rows}), "all"]:
        of = [row for row in rows if row.fault == name or name == "all"]
        lost = [row.lost for row in of if row.recovered]
        times = f"{median(lost):z.0f} | {max(lost):z.0f}" if lost else "- | -"
        lines.append(f"| {name} | {len(of)} | {sum(row.recovered for row in of)} | {times} |")
    return "\n".join(lines)
