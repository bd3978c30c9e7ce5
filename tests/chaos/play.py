"""A run, the faults that befall it, and a comparison with the unbroken twin."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from chaos.facts import differences, facts_of, left_behind
from chaos.faults import FAULTS
from chaos.run import Lost, Over, Run
from chaos.site import STEPS, STRETCH, Site

# Faults that befall a run at most: a start of its own for each would take most of the time.
HAND = 4


@dataclass
class Twin:
    """What comes of a run to which nothing happens.

    Args:
        facts: what came of it.
        start: seconds from its command to its second checkpoint.
        pace: seconds that two checkpoints take later on.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    start: float = 0.0
    pace: float = 0.0


def unbroken(site: Site, name: str = "unbroken", steps: int = STEPS) -> Twin:
    """One of today, on this site, stored on S3. Those of other places must be like it, too."""
    twin = Twin()
    run = Run(site, name, "s3", random.Random(0), steps)
    try:
        run.start()
        twin.start = run.recover()
        run.reach(steps // 2)
        twin.pace = run.recover()
        run.finish()
        check(run, twin)
    finally:
        run.end()
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


def deal(names: Sequence[str]) -> list[dict[int, str]]:
    """Faults, by number, as hands: those that befall the same run, one after the other.

    Each goes to the first hand that can take it: there is a place for all, and of those that begin
    or end a run there is one.
    """
    hands: list[dict[int, str]] = []
    for number, name in enumerate(names):
        at = FAULTS[name].at
        for hand in hands:
            taken = at != "any" and any(FAULTS[other].at == at for other in hand.values())
            if len(hand) < HAND and not taken and places([*hand.values(), name]):
                hand[number] = name
                break
        else:
            hands.append({number: name})
    order = ("start", "any", "end")
    return [
        dict(sorted(h.items(), key=lambda each: order.index(FAULTS[each[1]].at))) for h in hands
    ]


def steps_of(hand: Sized) -> int:
    """How many a run takes that these befall."""
    return STRETCH * max(len(hand), 2)


def places(hand: Sequence[str]) -> list[str]:
    """Where a run may be stored that all of these are to befall."""
    return sorted(set.intersection(*(set(FAULTS[name].places) for name in hand)))


def play(twin: Twin, hand: Sequence[str], run: Run) -> list[tuple[int, float]]:
    """Inflict these faults; of each the step at which it came, and the seconds that it cost.

    The last ones may be left over: some faults take long, and the run goes on meanwhile.

    Raises:
        Lost: the run did not recover, or not as its twin.
    """
    met: list[tuple[int, float]] = []
    try:
        for number, name in enumerate(hand):
            fault = FAULTS[name]
            ends = [run.steps * part // len(hand) for part in (number, number + 1)]
            run.stretch = range(*ends)
            run.may_end += fault.ends
            if fault.at != "start" and not run.commands:
                run.start()
            try:
                fault.do(run)
            except Over:
                if not met:
                    raise
                run.may_end -= fault.ends
                break
            step = run.step
            met.append((step, run.recover() - (twin.pace if step else twin.start)))
            if fault.says not in run.said:
                raise Lost(f"nothing says {fault.says!r}")
            if fault.at == "end":
                run.wait()
            run.site.mend()
        run.finish()
        check(run, twin)
    finally:
        run.end()
    return met


def forget(run: Run) -> None:
    """Remove all of a run that went well."""
    run.place.store.delete(f"runs/{run.name}")
    shutil.rmtree(run.folder)
