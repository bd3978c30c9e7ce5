"""A round: a run, a fault, and a comparison with the unbroken twin."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from typing import Any

from chaos.facts import differences, facts_of, left_behind
from chaos.faults import FAULTS
from chaos.run import Lost, Run
from chaos.site import Site


@dataclass
class Twin:
    """What comes of a run to which nothing happens, and how many seconds it takes on S3."""

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def unbroken(site: Site, name: str = "unbroken") -> Twin:
    """One of today, on this site. Those of other places must be like it, too."""
    twin = Twin()
    run = Run(site, name, "s3", random.Random(0))
    try:
        run.start()
        twin.seconds = run.finish()
    finally:
        run.end()
    check(run, twin)
    return twin


def check(run: Run, twin: Twin) -> dict[str, Any]:
    """What came of a finished run, which is its own twin if there is none. Raises Lost."""
    facts = facts_of(run)
    twin.facts = twin.facts or facts
    problems = [f"differs: {name}" for name in differences(facts, twin.facts)]
    problems += [f"left behind: {what}" for what in left_behind(run)]
    if problems:
        raise Lost("; ".join(problems))
    return facts


def play(twin: Twin, name: str, run: Run) -> float:
    """Inflict the fault of this name; the seconds that were lost.

    Raises:
        Lost: the run did not recover, or not as its twin.
    """
    try:
        FAULTS[name].do(run)
        seconds = run.finish()
    finally:
        run.end()
    check(run, twin)
    return seconds - twin.seconds


def forget(run: Run) -> None:
    """Remove all of a round that went well."""
    run.place.store.delete(f"runs/{run.name}")
    shutil.rmtree(run.folder)
