"""How figures look: colours of a light and a dark page, axes, text as it stands, PNG bytes.

Nothing of matplotlib's global state is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2i_ray import report
from t2i_ray.compare.settings import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from t2i_ray.compare.comparison import Comparison


@dataclass(frozen=True)
class Theme:
    """Colours: of the page, of text, of lines that only help, and one a contender."""

    ground: str
    ink: str
    faint: str
    colours: tuple[str, ...]  # Okabe and Ito's, which colour-blind readers can tell apart


LIGHT = Theme(
    "#ffffff",
    "#22262e",
    "#8a8f99",
    (report.BLUE, report.ORANGE, report.GREEN, "#CC79A7", "#E69F00", "#56B4E9"),
)
DARK = Theme(
    "#1b1e24",
    "#e4e6ea",
    "#8a8f99",
    ("#56B4E9", "#E8833A", "#2DC39A", "#DD9CC0", "#F0C24B", "#8AA2E8"),
)


def empty_figure(width: float, height: float, theme: Theme) -> Figure:
    """Width and height in inches."""
    return report.new_figure(width, height, theme.ground)


def finish(axes: Any, theme: Theme, grid: str = "both", legend: bool = False) -> None:
    """Give axes the theme's colours, a grid in one or both directions, a legend beside them."""
    axes.set_facecolor(theme.ground)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.tick_params(which="both", colors=theme.faint, labelcolor=theme.ink, labelsize=9)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.grid(alpha=0.25, lw=0.6, color=theme.faint, axis=grid)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9,
                    labelcolor=theme.ink)  # fmt: skip


def colours_of(comparison: Comparison, theme: Theme) -> Callable[[Row], str]:
    """Of a setting: its contender's, the same in every figure; none for those that are no more."""
    names = list(comparison.contenders)
    names += [comparison.contender_of(row) for row in [*comparison.rows, *comparison.search]]
    order = list(dict.fromkeys(names))
    colours = dict(zip(order, theme.colours, strict=False))
    return lambda row: colours.get(comparison.contender_of(row), theme.faint)


def shown(text: str, width: int) -> str:
    """Text that matplotlib draws as it stands: no mathematics, no letter that its font lacks."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    font = FT2Font(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    letters = [c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in text]
    short = "".join(letters if len(letters) <= width else [*letters[: width - 1], "…"])
    return short.lstrip("_").replace("$", r"\$") or "□"


def png_of(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    return report.figure_png(figure, dpi=130)
