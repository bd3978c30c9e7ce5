"""Figures of a comparison as PNG bytes, for a light and for a dark page.

Matplotlib does the plotting, without any of its global state. Names come from users: they are
shown as they are, never read as mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from t2i_ray import report
from t2i_ray.compare import notes, statistics
from t2i_ray.compare.settings import Row
from t2i_ray.compare.style import (
    LIGHT,
    Theme,
    colours_of,
    empty_figure,
    finish,
    png_of,
    shown,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from t2i_ray.compare.comparison import Comparison

ROWS = 24  # settings in one figure
CELLS = 10  # learning rates in one heat map; more are points
TILES = 9  # sample pictures in a row, of all contenders together


def draw_all(comparison: Comparison, theme: Theme) -> dict[str, bytes]:
    """File name -> PNG; what there is nothing to draw of is left out."""
    figures: dict[str, Callable[[Comparison, Theme], bytes | None]] = {
        "scores.png": scores,
        "learning_rates.png": learning_rates,
        "cost.png": cost,
        "progress.png": progress,
        "losses.png": losses,
    }
    drawn = {name: draw(comparison, theme) for name, draw in figures.items()}
    if theme is LIGHT:  # pictures are the same on any page
        drawn["samples.png"] = samples(comparison)
    return {name: png for name, png in drawn.items() if png}


# --------------------------------------------------------------------------------- figures


def scores(comparison: Comparison, theme: Theme) -> bytes | None:
    """Each setting's seeds as points, with the mean and its 95 % t-interval."""
    rows = [row for row in comparison.rows if row.scores][:ROWS]
    if not rows:
        return None
    figure = empty_figure(8.6, 1.1 + 0.42 * len(rows), theme)
    axes = figure.subplots()
    colour_of = colours_of(comparison, theme)
    for y, row in enumerate(rows):
        colour, values = colour_of(row), list(row.scores.values())
        axes.plot(values, [y - 0.24] * len(values), "o", color=colour, alpha=0.6, ms=5, mew=0)
        if row.interval:
            axes.plot(row.interval, [y, y], "-", color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(
            [row.mean or 0.0], [y], "D", color=colour, ms=7, mec=theme.ground, mew=1.2, zorder=4
        )
    axes.set_yticks(range(len(rows)), [shown(row.setting, 52) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    better = "larger" if comparison.larger else "smaller"
    axes.set_xlabel(f"{rows[0].metric} ({better} is better)")
    finish(axes, theme, grid="x")
    return png_of(figure)


def learning_rates(comparison: Comparison, theme: Theme) -> bytes | None:
    """Mean score by encoder and learning rate; of many rates, points instead of a map.

    One encoder with two learning rates gives a map of these two.
    """
    rows = [row for row in comparison.search if row.mean is not None]
    rates = rate_names(rows)
    if not rates:
        return None
    few = all(len(_rates_of(rows, rate)) <= CELLS for rate in rates)
    lines = [row.encoder for row in rows]  # one a setting; the best first
    if few and len(set(lines)) == 1 and len(rates) == 2:
        (*rates, other) = rates
        lines = [f"{other} = {row.values.get(other, '–')}" for row in rows]
    count = len(set(lines))
    figure = empty_figure(8.6, (1.2 + 0.62 * count if few else 3.4) * len(rates), theme)
    for axes, rate in zip(np.atleast_1d(figure.subplots(len(rates), 1)), rates, strict=True):
        if few:
            _heat_map(axes, comparison.larger, rows, lines, rate, theme)
        else:
            _points(axes, comparison, rows, rate, theme)
        axes.set_xlabel(rate)
    return png_of(figure)


def cost(comparison: Comparison, theme: Theme) -> bytes | None:
    """Mean score against mean seconds of training, the Pareto front marked; a panel a stage."""
    stages = [rows for rows in (comparison.search, comparison.confirmed) if len(costed(rows)) > 1]
    if not stages:
        return None
    figure = empty_figure(8.6 if len(stages) == 1 else 10, 3.6, theme)
    for axes, rows in zip(np.atleast_1d(figure.subplots(1, len(stages))), stages, strict=True):
        known = costed(rows)
        seconds = [row.seconds[1] for row in known if row.seconds]
        means = [row.mean or 0.0 for row in known]
        sign = -1 if comparison.larger else 1
        front = statistics.pareto_front(
            [(cost, sign * mean) for cost, mean in zip(seconds, means, strict=True)]
        )
        _scatter(axes, comparison, known, seconds, theme)
        axes.plot([seconds[i] for i in front], [means[i] for i in front], "o-", ms=13, lw=1.2,
                  mfc="none", color=theme.faint, zorder=1,
                  drawstyle="steps-post", label="Pareto front")  # fmt: skip
        unit = known[0].seconds[0] if known[0].seconds else ""
        axes.set_xlabel(f"{unit}-seconds of training")
        axes.set_ylabel(rows[0].metric)
        axes.margins(0.12)
        finish(axes, theme, legend=axes is figure.axes[-1])
    return png_of(figure)


def progress(comparison: Comparison, theme: Theme) -> bytes | None:
    """The measure while training: the mean over seeds, each seed faint."""
    curves = {name: found for name, found in comparison.progress.items() if found}
    if not any(len(curve) > 1 for found in curves.values() for curve in found):
        return None
    figure = empty_figure(8.6, 3.6, theme)
    axes = figure.subplots()
    colour_of = colours_of(comparison, theme)
    for name, found in curves.items():
        colour = colour_of(comparison.contenders[name])
        for curve in found:
            axes.plot(list(curve), list(curve.values()), color=colour, alpha=0.3, lw=0.9)
        steps, values = mean_curve(found)
        axes.plot(steps, values, "o-", color=colour, lw=2, ms=3.5, label=shown(name, 34))
    axes.set(xlabel="step", ylabel=f"val/{comparison.metric.partition('/')[2]}")
    finish(axes, theme, legend=True)
    return png_of(figure)


def losses(comparison: Comparison, theme: Theme) -> bytes | None:
    """Small multiples: each contender's two losses, mean over seeds strong, each seed faint."""
    every = {name: found for name, found in comparison.losses.items() if any(found.values())}
    if not every:
        return None
    columns = min(3, len(every))
    lines = -(-len(every) // columns)
    figure = empty_figure(8.6 if columns < 3 else 9.6, 2.5 * lines + 0.5, theme)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    low, top, colour_of = 0.0, 0.0, colours_of(comparison, theme)
    for axes, (name, found) in zip(grid.flat, every.items(), strict=False):
        colour = colour_of(comparison.contenders[name])
        for label, key, style in (("generator", "g_loss", "-"), ("discriminator", "d_loss", "--")):
            smooth = [_smooth(curve) for curve in found[key]]
            for curve in smooth:
                axes.plot(list(curve), list(curve.values()), color=colour, alpha=0.3, lw=0.8)
            steps, values = mean_curve(smooth)
            low = min(low, float(values.min(initial=0)))
            top = max(top, float(values.max(initial=0)))
            axes.plot(steps, values, style, color=colour, lw=1.9, label=label)
        axes.set_title(shown(name, 34), fontsize=10, loc="left", color=theme.ink)
        finish(axes, theme)
    for axes in list(grid.flat)[len(every) :]:
        axes.set_visible(False)
    if low < top:  # a cvae's bound, of a density, may lie below zero
        grid.flat[0].set_ylim(1.2 * low, 1.2 * top)
    figure.supxlabel("step", fontsize=10, color=theme.ink)
    figure.supylabel("loss (nats)", fontsize=10, color=theme.ink)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False,
                  labelcolor=theme.ink, fontsize=9)  # fmt: skip
    return png_of(figure)


def samples(comparison: Comparison) -> bytes | None:
    """The contenders' sample grids side by side; None if they can't stand so."""
    grids = comparison.grids
    if not grids.images:
        return None
    columns = max(2, min(6, TILES // len(grids.images)))
    try:
        return report.side_by_side(grids.images, grids.image_size, columns)
    except ValueError:
        return None


# -------------------------------------------------------------------------- what is drawn


def rate_names(rows: Sequence[Row]) -> list[str]:
    """The learning rates that vary among settings."""
    names = {name for row in rows for name in row.values if name.rpartition(".")[2][:3] == "lr_"}
    return [name for name in sorted(names) if len(_rates_of(rows, name)) > 1]


def _rates_of(rows: Sequence[Row], rate: str) -> list[float]:
    found = {row.values[rate] for row in rows if rate in row.values}
    return sorted(value for value in found if isinstance(value, float | int))


def costed(rows: Sequence[Row]) -> list[Row]:
    """Settings with a score and seconds, if these are all of one unit."""
    known = [row for row in rows if row.mean is not None and row.seconds]
    return known if len({row.seconds[0] for row in known if row.seconds}) == 1 else []


def mean_curve(curves: Sequence[Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that all curves have, and the mean there."""
    if not curves:
        return np.array([]), np.array([])
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(steps), np.array([np.mean([curve[s] for curve in curves]) for s in steps])


def _smooth(curve: Mapping[int, float]) -> dict[int, float]:
    values = report.running_mean(report.running_mean(np.array(list(curve.values()))))
    thin = 1 + len(curve) // 2000
    return dict(list(zip(curve, values.tolist(), strict=True))[::thin])


def _heat_map(
    axes: Axes,
    larger: bool,
    rows: Sequence[Row],
    lines: Sequence[str],
    rate: str,
    theme: Theme,
) -> None:
    """A cell: the best mean of the settings with this rate in this line; one line a row."""
    rates, names = _rates_of(rows, rate), list(dict.fromkeys(lines))
    table = np.full((len(names), len(rates)), np.nan)
    chosen: dict[tuple[int, int], Row] = {}
    for row, line in reversed(list(zip(rows, lines, strict=True))):  # the best last
        if isinstance(row.values.get(rate), float | int):
            cell = names.index(line), rates.index(float(row.values[rate]))
            chosen[cell], table[cell] = row, row.mean
    colours = "cividis" if larger else "cividis_r"
    image = axes.imshow(table, cmap=colours, aspect="auto")
    for (y, x), row in chosen.items():
        red, green, blue, _ = image.cmap(image.norm(table[y, x]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        text = f"{notes.number(row.mean)}\nn = {len(row.scores)}"
        axes.text(x, y, text, ha="center", va="center", fontsize=9,
                  color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(len(rates)), [f"{value:g}" for value in rates])
    axes.set_yticks(range(len(names)), [shown(name, 30) for name in names])
    axes.set_xticks(np.arange(len(rates) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=theme.ground, lw=3)
    axes.tick_params(which="both", length=0, colors=theme.ink, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.xaxis.label.set_color(theme.ink)


def _points(
    axes: Axes, comparison: Comparison, rows: Sequence[Row], rate: str, theme: Theme
) -> None:
    own = [row for row in rows if isinstance(row.values.get(rate), float | int)]
    axes.set_xscale("log")
    _scatter(axes, comparison, own, [float(row.values[rate]) for row in own], theme)
    axes.set_ylabel(own[0].metric)
    finish(axes, theme, legend=True)


def _scatter(
    axes: Axes, comparison: Comparison, rows: Sequence[Row], x: Sequence[float], theme: Theme
) -> None:
    """Mean scores at x; a colour and a line of the legend for each contender."""
    colour_of = colours_of(comparison, theme)
    drawn: set[str] = set()
    for row, at in zip(rows, x, strict=True):
        colour = colour_of(row)
        name = "other settings" if colour == theme.faint else comparison.contender_of(row)
        label = None if name in drawn else shown(name, 34)
        drawn.add(name)
        axes.plot([at], [row.mean or 0.0], "o", ms=7, color=colour, label=label)
