"""The report as one HTML file and as Markdown; names and captions are escaped in both."""

from __future__ import annotations

import base64
import html as escaping
import re
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from t2i_ray.compare.notes import plural
from t2i_ray.compare.sections import sections

if TYPE_CHECKING:
    from t2i_ray.compare.comparison import Comparison


def html(comparison: Comparison) -> str:
    """One file without a script or a request: pictures lie in it as data, light and dark."""
    import jinja2

    template = resources.files("t2i_ray.compare").joinpath("page.html").read_text("utf8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(
        comparison=comparison,
        summary=summary(comparison),
        sections=sections(comparison),
        light={name: _data(png) for name, png in comparison.pictures().items()},
        dark={name: _data(png) for name, png in comparison.pictures(dark=True).items()},
    )


def summary(comparison: Comparison) -> str:
    """How much was compared."""
    trials = comparison.trials
    counts = [
        f"{sum(trial.ended == ended for trial in trials)} {ended}"
        for ended in ("finished", "pruned", "failed", "unfinished")
        if any(trial.ended == ended for trial in trials)
    ]
    settings = len({row.setting for row in [*comparison.search, *comparison.confirmed]})
    text = f"{plural(len(trials), 'run')} of {plural(settings, 'setting')}"
    return text + (f": {', '.join(counts)}" if counts else "")


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


# -------------------------------------------------------------------------------- markdown


def markdown(comparison: Comparison, pictures: str | None = None) -> str:
    """The report in Markdown.

    Args:
        comparison: what to report.
        pictures: the folder the pictures lie in, seen from the file; None leaves them out.
    """
    parts = [f"# {text(comparison.title)}", text(summary(comparison))]
    parts.append(f"**{text(comparison.headline)}**")
    if comparison.warnings:
        parts.append("\n".join(f"- {text(warning)}" for warning in comparison.warnings))
    for section in sections(comparison):
        parts += [f"## {section.title}", *map(text, section.text)]
        if section.picture and pictures is not None:
            place = re.sub(r"[^\w./-]", lambda c: f"%{ord(c[0]):02X}", pictures)
            prefix = f"{place}/" if place else ""
            parts.append(f"![{text(section.alternative)}]({prefix}{section.picture})")
        if section.table:
            table = section.table
            parts.append(markdown_table(table.columns, table.rows, table.labels))
        parts += map(text, section.after)
    return "\n\n".join(parts) + "\n"


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], labels: int | None = None
) -> str:
    """A table of plain text; columns after the first ``labels`` are numbers. None: none are."""
    labels = len(columns) if labels is None else labels
    align = ["---" if i < labels else "---:" for i in range(len(columns))]
    cells = [[text(cell) for cell in line] for line in (columns, *rows)]
    cells.insert(1, align)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def text(plain: str) -> str:
    """Plain text as Markdown that shows it as it is, on one line."""
    line = escaping.escape(" ".join(plain.split()), quote=False)
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
