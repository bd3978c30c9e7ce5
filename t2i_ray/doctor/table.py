"""The findings as a table; as plain lines where nobody looks at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from t2i_ray.doctor.finding import DRIVER, Finding

COLORS = {"ok": "green", "warning": "yellow", "failed": "bold red"}
SINGLY = 3  # so many nodes that are well have rows of their own


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print them in the order given, and then how many there are of each state."""
    rows = merged(list(findings))
    if console.is_terminal:
        table = Table("", "check", "where", "found", "remedy", show_lines=False)
        for row in rows:
            state = Text(row.state, COLORS[row.state])
            table.add_row(state, *map(Text, (row.check, row.where, row.found, row.remedy)))
        console.print(table)
    else:
        wide = [max(map(len, column)) for column in zip(*map(_start, rows), strict=True)]
        for row in rows:
            start = "  ".join(
                f"{word:{width}}" for word, width in zip(_start(row), wide, strict=True)
            )
            line = f"{start}  {row.found}" + (f"; {row.remedy}" if row.remedy else "")
            console.print(Text(line), soft_wrap=True)
    counts = {state: sum(row.state == state for row in rows) for state in COLORS}
    console.print(Text(", ".join(f"{n} {state}" for state, n in counts.items())), soft_wrap=True)


def _start(row: Finding) -> tuple[str, str, str]:
    return row.state, row.check, row.where


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Many nodes that are well make one row, which shows the worst of them."""
    rows: list[Finding] = []
    for _, same in groupby(findings, lambda each: (each.check, each.where == DRIVER)):
        group = list(same)
        well = [each for each in group if each.state == "ok"]
        nodes = len({each.where for each in well})
        if nodes > SINGLY:
            worst = max(well, key=lambda each: each.weight)
            where = f"{nodes} nodes"
            rows.append(Finding(worst.check, where, "ok", f"the worst: {worst.found}"))
            group = [each for each in group if each.state != "ok"]
        rows += group
    return rows
