"""A run that is killed ten times over its unbroken twin, as a picture: python -m chaos.figure.

Writes docs/results/chaos_kills.json, which holds both histories as MLflow has them, and
docs/results/chaos_kills.png, which is drawn from that file alone.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from chaos.faults import KILLS
from chaos.play import Twin, check
from chaos.run import Run
from chaos.site import KEPT, own_site
from t2i_ray.report import BLUE, GREY, ORANGE, figure_png, new_figure

STEPS, COUNT = 600, 10
FILE = Path(__file__).parent.parent.parent / "docs/results/chaos_kills.json"
ANY_NUMBER = "cluster.max_failures=-1"
CURVES = {"g_loss": ("generator", BLUE), "d_loss": ("discriminator", ORANGE)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.figure", description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--prepared", type=Path, default=KEPT / "prepared")
    given = parser.parse_args()
    if not given.file.exists():
        given.file.write_text(json.dumps(histories(given.prepared)) + "\n")
    given.file.with_suffix(".png").write_bytes(draw(json.loads(given.file.read_text())))


def histories(prepared: Path) -> dict[str, Any]:
    """Both runs' losses by metric, and what was killed at which step. Raises Lost."""
    with own_site(prepared) as there:
        twin = Twin()
        kills: list[dict[str, Any]] = []
        found: dict[str, Any] = {"kills": kills}
        for name in ("unbroken", "killed"):
            run = Run(there, name, "s3", random.Random(1), steps=STEPS)
            try:
                run.start(ANY_NUMBER)
                for i in range(COUNT if name == "killed" else 0):
                    run.reach(STEPS * (2 * i + 1) // (2 * COUNT + 1))
                    what = list(KILLS)[i % len(KILLS)]
                    print(f"step {run.step}: {what}", flush=True)
                    kills.append({"step": run.step, "what": what})
                    KILLS[what](run)
                    if run.ends_within(10):
                        there.mend()
                        run.start(ANY_NUMBER)
                run.finish()
            finally:
                run.end()
            facts = check(run, twin)
            found[name] = {metric: facts[f"history {metric}"] for metric in CURVES}
    return found


def draw(found: dict[str, Any]) -> bytes:
    """The unbroken run broad and faint, the killed one thin upon it, a mark for each kill; PNG."""
    figure = new_figure(9, 3.6)
    axes = figure.subplots()
    for metric, (label, colour) in CURVES.items():
        for name, width, alpha in (("unbroken", 5.0, 0.3), ("killed", 0.8, 1.0)):
            steps, values = zip(*found[name][metric], strict=True)
            axes.plot(
                steps, values, color=colour, lw=width, alpha=alpha, label=f"{label}, {name} run"
            )
    for kill in found["kills"]:
        axes.axvline(kill["step"], color=GREY, lw=0.8, ls=(0, (4, 3)))
        axes.annotate(
            f" {kill['what']}", (kill["step"], 1), xycoords=("data", "axes fraction"),
            rotation=90, va="top", fontsize=7, color=GREY,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss", title="Ten kills: one line")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
    return figure_png(figure, dpi=120)


if __name__ == "__main__":
    main()
