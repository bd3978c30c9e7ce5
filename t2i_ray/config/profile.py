"""Which updates of a run are to be profiled."""

from __future__ import annotations

import re

LONGEST = 100  # updates: a trace of more has millions of operations, and no viewer opens it


def profiled(text: str | None, steps: int) -> range:
    """``START..STOP`` as the updates START + 1 to STOP, counted by those before each; None: none.

    Raises:
        ValueError: it is not of this form, or not within a run of so many steps.
    """
    if text is None:
        return range(0)
    found = re.fullmatch(r"(\d{1,12})\.\.(\d{1,12})", text)
    if found is None:
        raise ValueError(f"train.profile={text}: write it as START..STOP, e.g. 100..110")
    start, stop = map(int, found.groups())
    if start >= stop:
        raise ValueError(
            f"train.profile={text}: it stops where it starts, or before; write e.g. "
            f"{start}..{start + 10}"
        )
    if stop > steps:
        raise ValueError(
            f"train.profile={text}: the run has train.steps={steps}; stop there or before"
        )
    if stop - start > LONGEST:
        raise ValueError(
            f"train.profile={text}: {stop - start} steps make a trace that no viewer opens; write "
            f"e.g. {start}..{start + 10}, at most {LONGEST} steps"
        )
    return range(start, stop)
