"""What a report says, section by section: plain text and tables, whatever they are written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from t2i_ray.compare import statistics
from t2i_ray.compare.losses import NETWORKS, PAPER, PUBLISHED, WARNING, Range
from t2i_ray.compare.notes import interval, number
from t2i_ray.compare.settings import Ended, Row
from t2i_ray.config import larger_is_better

if TYPE_CHECKING:
    from t2i_ray.compare.comparison import Comparison

UNHAPPY: tuple[Ended, ...] = ("pruned", "failed", "unfinished")


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``labels`` columns are words, the others numbers."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    labels: int = 1


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it, in this order."""

    title: str
    text: list[str] = field(default_factory=list)
    picture: str | None = None  # file name
    alternative: str = ""  # the picture in words
    table: Table | None = None
    after: list[str] = field(default_factory=list)


def sections(comparison: Comparison) -> list[Section]:
    """All of them; one that has nothing to show says why."""
    return [
        _scores(comparison),
        _differences(comparison),
        _measures(comparison),
        *([_search(comparison)] if comparison.stage == "confirm" else []),
        _learning_rates(comparison),
        _cost(comparison),
        _progress(comparison),
        _samples(comparison),
        _losses(comparison),
        *([_left_out(comparison)] if left_out(comparison) else []),
    ]


def table_of(rows: Sequence[Row]) -> Table:
    """Settings, the best first. Kinds of ends that none came to are left out."""
    unit = {row.seconds[0] for row in rows if row.seconds}
    ends = [end for end in UNHAPPY if any(row.count(end) for row in rows)]
    seconds = f"{unit.pop()}-seconds" if len(unit) == 1 else "seconds"
    return Table(
        ("setting", "mean", "s.e.", "seeds", *ends, seconds),
        [
            (
                row.setting,
                number(row.mean),
                number(row.error),
                str(len(row.scores)),
                *(str(row.count(end)) for end in ends),
                f"{row.seconds[1]:.0f}" if row.seconds else "–",
            )
            for row in rows
        ],
    )


def left_out(comparison: Comparison) -> list[tuple[str, ...]]:
    """Runs that did not finish: stage, run, setting, how it ended, why."""
    rows = [*comparison.confirmed, *comparison.search]
    return [
        (row.stage, trial.run.name, row.setting, trial.ended, trial.reason or "–")
        for row in rows
        for trial in row.trials
        if trial.ended != "finished"
    ]


# --------------------------------------------------------------------------- each section


def _scores(comparison: Comparison) -> Section:
    metric = comparison.metric_of(comparison.stage)
    if not comparison.rows:
        return Section("Settings", ["There are no runs to compare yet."])
    kind = "Confirmation" if comparison.stage == "confirm" else "Settings"
    better = "larger" if comparison.larger else "smaller"
    text = [
        f"{metric} of the runs that finished; {better} is better. s.e. is the standard error of "
        "the mean over seeds, s / √n."
    ]
    drawn = "scores.png" in comparison.pictures()
    after = ["A point is a seed, the diamond their mean, the bar its 95 % t-interval."]
    return Section(
        kind,
        text,
        "scores.png" if drawn else None,
        f"{metric} of each setting, by seed",
        table_of(comparison.rows),
        after if drawn else [],
    )


def _differences(comparison: Comparison) -> Section:
    what = "encoders" if len(comparison.encoders) > 1 else "settings"
    if not comparison.differences:
        return Section("Differences", [f"There are no two {what} with a score to compare."])
    rows = []
    for (one, other), difference in comparison.differences.items():
        seeds = ", ".join(map(str, difference.seeds)) or "none in common"
        low_high = interval(difference.interval)
        shown = "yes" if difference.shown else "no"
        verdict = shown if difference.interval else "needs two common seeds"
        count = str(len(difference.seeds))
        rows.append((f"{one} − {other}", number(difference.mean), low_high, count, verdict, seeds))
    text = [
        "The first's score minus the second's, seed by seed: mean d̄ and its paired t-interval "
        "d̄ ∓ t(0.975, n − 1) s / √n, which treats the seeds as drawn at random and the "
        "differences as normally distributed. A difference is shown if the interval leaves out 0."
    ]
    if len(comparison.encoders) > 1:
        chosen = ", ".join(row.setting for row in comparison.contenders.values())
        text.append(f"Each encoder stands by its best setting: {chosen}.")
    if not comparison.larger:
        text.append("Smaller scores are better here: a negative difference favours the first.")
    columns = ("difference", "mean", "95 % interval", "n", "shown", "seeds")
    return Section(f"Differences between {what}", text, table=Table(columns, rows))


def _measures(comparison: Comparison) -> Section:
    split = comparison.metric_of(comparison.stage).partition("/")[0]
    names = comparison.measured(split)
    text = [
        f"Whatever else was measured on the split {split}: mean over the seeds that finished ± "
        "half of its 95 % t-interval. Only what ranks was chosen by; the others were looked at."
    ]
    rows = []
    for name in names:
        better = "larger" if larger_is_better(name) else "smaller"
        scores = [row.of(f"{split}/{name}") for row in comparison.contenders.values()]
        rows.append((name, better, *map(_mean_and_half, scores)))
    columns = ("measure", "better", *comparison.contenders)
    return Section("All measures", text, table=Table(columns, rows, labels=2) if rows else None)


def _mean_and_half(scores: Sequence[float]) -> str:
    bounds = statistics.t_interval(scores)
    half = f" ± {number((bounds[1] - bounds[0]) / 2)}" if bounds else ""
    return number(statistics.mean(scores)) + half


def _search(comparison: Comparison) -> Section:
    metric = comparison.metric_of("search")
    return Section(
        "Search",
        [
            f"{metric}, by which the settings were chosen; the best of each encoder went on to the "
            "confirmation above. These scores are not mixed with those: the winner's is flattered."
        ],
        table=table_of(comparison.search),
    )


def _learning_rates(comparison: Comparison) -> Section:
    title = "Learning rate and encoder"
    if "learning_rates.png" not in comparison.pictures():
        return Section(title, ["No learning rate varies among the runs that were measured."])
    text = [
        f"Mean {comparison.metric_of('search')} in the search. Where other fields vary too, the "
        "best of the settings is shown."
    ]
    alternative = "Mean score by learning rate and encoder"
    return Section(title, text, "learning_rates.png", alternative)


def _cost(comparison: Comparison) -> Section:
    title = "Quality against computing"
    if "cost.png" not in comparison.pictures():
        return Section(title, ["No two settings have a score and perf/..._seconds of one unit."])
    text = [
        "Mean score against mean seconds of training: processors (or GPUs) times wall-clock time, "
        "measures included. What a frozen encoder takes to embed the captions, once, is not in it. "
        "On the Pareto front is what no other setting beats in one without losing in the other. "
        "Seconds compare on equal hardware only."
    ]
    return Section(title, text, "cost.png", "Score against seconds, Pareto front marked")


def _progress(comparison: Comparison) -> Section:
    title = "The measure while training"
    if "progress.png" not in comparison.pictures():
        return Section(title, ["It was measured once in a run, or not at all: there is no curve."])
    text = ["On the validation split: mean over the contenders' seeds, each seed faint."]
    return Section(title, text, "progress.png", "Validation score by step")


def _samples(comparison: Comparison) -> Section:
    grids = comparison.grids
    several = len(grids.images) != 1
    title = "Same captions, same noise" if several else "Samples"
    if "samples.png" not in comparison.pictures():
        reason = grids.missing or "The grids do not show the same captions."
        return Section(title, [f"Left out. {reason}"])
    text = [
        f"Drawn at step {grids.step} with seed {grids.seed}. A row is a caption, a column a noise"
        + (": the same ones for each." if several else ".")
    ]
    return Section(title, text, "samples.png", "Sample pictures of all, side by side")


def _losses(comparison: Comparison) -> Section:
    rows = []
    for name, curves in comparison.losses.items():
        ranges = [Range.of(curves[loss]) for loss in NETWORKS]
        rows.append((name, *_cells(ranges), str(len(curves["g_loss"]))))
    for name, published in PUBLISHED.items():
        rows.append((name, *_cells([published[loss] for loss in NETWORKS]), "1"))
    columns = tuple(
        f"{loss[0].upper()} {what}" for loss in NETWORKS for what in ("min", "mean", "max")
    )
    after = [
        "G: generator, D: discriminator; nats, over all logged steps of all seeds. Published "
        f"figures: {PAPER}. Its data, networks and steps are not ours, and how its losses are "
        "scaled is not said."
    ]
    drawn = "losses.png" in comparison.pictures()
    return Section(
        "Losses",
        [WARNING] if drawn else [WARNING, "No losses of these runs are in MLflow."],
        "losses.png" if drawn else None,
        "Loss curves of each contender",
        Table(("", *columns, "runs"), rows),
        after,
    )


def _cells(ranges: Sequence[Range]) -> list[str]:
    return [number(x) for found in ranges for x in (found.low, found.mean, found.high)]


def _left_out(comparison: Comparison) -> Section:
    table = Table(("stage", "run", "setting", "ended", "why"), left_out(comparison), labels=5)
    return Section("Runs left out", ["They did not finish, and are in no mean."], table=table)
