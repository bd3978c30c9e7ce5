"""What the numbers say in a sentence, and what they do not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i_ray.compare.settings import repeated
from t2i_ray.compare.statistics import Difference

if TYPE_CHECKING:
    from t2i_ray.compare.comparison import Comparison

ENOUGH = 5  # seeds


def number(value: float | None) -> str:
    """Four digits after the point, two of large numbers; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"


def interval(bounds: tuple[float, float] | None) -> str:
    """[low, high], or a dash."""
    return "–" if bounds is None else f"[{number(bounds[0])}, {number(bounds[1])}]"


def plural(count: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


# -------------------------------------------------------------------------------- headline


def headline(comparison: Comparison) -> str:
    """Who is ahead of whom by how much, as far as the seeds tell."""
    names = [name for name, row in comparison.contenders.items() if row.scores]
    metric = comparison.metric_of(comparison.stage)
    if not names and any(row.finished for row in comparison.rows):
        return f"No answer: no finished run has {metric}."
    if not names:
        return "No answer yet: no run has finished."
    first, *others = names
    row = comparison.contenders[first]
    if not others:
        error = f" ± {number(row.error)} (standard error)" if row.error is not None else ""
        return (
            f"{first}: {metric} {number(row.mean)}{error}, {plural(len(row.scores), 'seed')}. "
            + ("No other setting has a score." if len(comparison.rows) > 1 else "One setting only.")
        )
    differences = {other: comparison.differences[first, other] for other in others}
    second = others[0]
    sentences = [_sentence(first, second, differences[second], comparison)]
    sentences += [_short(other, differences[other], comparison.larger) for other in others[1:3]]
    return " ".join(sentences)


def _sentence(first: str, second: str, difference: Difference, comparison: Comparison) -> str:
    metric = comparison.metric_of(comparison.stage)
    count = len(difference.seeds)
    if difference.mean is None:
        return f"{first} is best on {metric}, but shares no seed with {second}."
    gap = difference.mean if comparison.larger else -difference.mean
    if difference.interval is None:
        return (
            f"At the one seed that both have, {first} differs from {second} by {gap:+.4f} on "
            f"{metric} (above zero: better); one pair shows no difference."
        )
    facts = f"{number(gap)} {interval(_oriented(difference, comparison.larger))}"
    seeds = f"{plural(count, 'paired seed')}, 95 %"
    if not (difference.shown and gap > 0):
        return f"No difference shown between {first} and {second} on {metric}: {facts}, {seeds}."
    if comparison.stage == "search":
        return f"In the search, {first} is ahead of {second} by {facts} on {metric}, {seeds}."
    return f"{first} beats {second} by {facts} on {metric}, {seeds}."


def _short(other: str, difference: Difference, larger: bool) -> str:
    bounds = _oriented(difference, larger)
    if difference.mean is None or bounds is None:
        return f"Against {other}: nothing shown."
    facts = f"{number(difference.mean if larger else -difference.mean)} {interval(bounds)}"
    return f"Against {other}: {facts}{'' if difference.shown else ', no difference shown'}."


def _oriented(difference: Difference, larger: bool) -> tuple[float, float] | None:
    """The interval of how much better the first is."""
    if difference.interval is None or larger:
        return difference.interval
    return -difference.interval[1], -difference.interval[0]


# -------------------------------------------------------------------------------- warnings


def warnings(comparison: Comparison) -> list[str]:
    """Whatever makes the answer worth less than it looks."""
    found = _of_stages(comparison) + _of_seeds(comparison) + _of_runs(comparison)
    return list(dict.fromkeys(found))


def _of_stages(comparison: Comparison) -> list[str]:
    found = []
    trials = [trial for row in comparison.rows for trial in row.trials]
    if comparison.stage == "search":
        if len([row for row in comparison.search if row.scores]) > 1:
            found.append(
                "The winner of a search is flattered: it was chosen by the very scores shown. "
                "Train it again with fresh seeds and measure on the test split."
            )
        if comparison.confirmed:
            metric = comparison.metric_of("confirm")
            found.append(f"A confirmation was begun, but no run of it has {metric} yet.")
    else:
        confirmed = {row.encoder for row in comparison.confirmed if row.scores}
        lacking = {row.encoder for row in comparison.search} - confirmed
        if lacking and confirmed:
            found.append(f"Not confirmed, and so not in the answer: {', '.join(sorted(lacking))}.")
        for row in comparison.confirmed:
            searched = {
                seed
                for other in comparison.search
                if other.setting == row.setting
                for seed in other.scores
            }
            if shared := sorted(searched & row.scores.keys()):
                found.append(f"{row.setting} was confirmed on seeds it was chosen by: {shared}.")
    if any(trial.ended == "pruned" for trial in trials):
        found.append(
            "Pruned runs are not in the means. Pruning takes the bad seeds of a setting, so a mean "
            "without them is too good."
        )
    return found


def _of_seeds(comparison: Comparison) -> list[str]:
    found = []
    counts = [len(row.scores) for row in comparison.contenders.values() if row.scores]
    if counts and min(counts) < ENOUGH:
        found.append(
            f"Few seeds: a contender has {plural(min(counts), 'seed')}. With fewer than {ENOUGH} "
            "an interval is wide and rests on the scores being normally distributed."
        )
    for (one, other), difference in comparison.differences.items():
        if difference.only_one:
            seeds = ", ".join(map(str, difference.only_one))
            found.append(
                f"{one} and {other} do not have the same seeds; left out of their difference: "
                f"{seeds}."
            )
    if len(comparison.differences) > 1:
        found.append(
            f"{len(comparison.differences)} differences have an interval of 95 % each: that one of "
            "them misses is likelier than 5 %."
        )
    return found


def _of_runs(comparison: Comparison) -> list[str]:
    found = []
    finished = [t.run for row in comparison.rows for t in row.finished.values()]
    for tag, what in (
        ("hw.cpu", "processors"),
        ("hw.gpus", "GPUs"),
        ("hw.cores", "numbers of cores"),
    ):
        kinds = sorted({run.tags.get(tag, "none") for run in finished})
        if len(kinds) > 1:
            found.append(
                f"The runs had different {what} ({'; '.join(kinds)}): their seconds do not compare."
            )
    if len({run.params.get("evaluation.samples") for run in finished}) > 1:
        found.append("evaluation.samples differs: scores of few pictures are noisier and biased.")
    if len({run.dataset for run in finished if run.dataset}) > 1:
        found.append("The runs were trained on different data: their scores do not compare.")
    unmeasured = [
        trial.run.name
        for row in comparison.rows
        for seed, trial in row.finished.items()
        if seed not in row.scores
    ]
    if unmeasured and len(unmeasured) < len(finished):
        found.append(f"Finished, but not measured: {', '.join(sorted(unmeasured))}.")
    if twice := repeated(comparison.rows):
        names = ", ".join(sorted(trial.run.name for trial in twice))
        found.append(f"Runs that repeat a setting and seed do not count a second time: {names}.")
    if any(sweep.status == "RUNNING" for sweep in comparison.sweeps):
        found.append("The sweep has not ended: trials that have not begun are not counted.")
    return found
