"""A long run with a fault every so many steps, beside its unbroken twin: python -m chaos.soak.

Writes FILE, which holds both histories as MLflow has them, the faults, and the memory of all
processes; prints a table of that memory; and draws a picture from the file alone.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from chaos.faults import KILLS, Deed
from chaos.memory import Watch, table
from chaos.play import Twin, check
from chaos.proxy import Mood
from chaos.run import Run
from chaos.site import KEPT, own_site
from t2i_ray.report import BLUE, GREY, ORANGE, figure_png, new_figure

FILE = KEPT / "soak.json"
AWAY = 3.0  # seconds that a server is away
CURVES = {"g_loss": ("generator", BLUE), "d_loss": ("discriminator", ORANGE)}


def mlflow_away(run: Run) -> None:
    run.site.mlflow.stop()
    time.sleep(AWAY)
    run.site.mlflow.start()


def s3_refuses(run: Run) -> None:
    with run.site.to_s3.being(Mood(status=503)):
        time.sleep(AWAY)


DEEDS: dict[str, Deed] = {**KILLS, "MLflow away": mlflow_away, "S3 refuses": s3_refuses}


def main() -> None:
    parser = argparse.ArgumentParser(prog="chaos.soak", description=__doc__)
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--prepared", type=Path, default=KEPT / "prepared")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between two faults")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the servers
    if not given.file.exists():
        found = soak(given.prepared, given.steps, range(given.every, given.steps, given.every))
        given.file.write_text(json.dumps(found) + "\n")
    found = json.loads(given.file.read_text())
    given.file.with_suffix(".png").write_bytes(draw(found))
    for name in ("unbroken", "broken"):
        print(f"\n{name}: {found[name]['seconds']:.0f} s\n\n{table(found[name]['memory'])}")


def soak(prepared: Path, steps: int, at: range) -> dict[str, Any]:
    """Both runs, the second with a fault at each of these steps. Raises Lost."""
    with own_site(prepared) as there:
        twin = Twin()
        found: dict[str, Any] = {}
        for name, steps_of_faults in (("unbroken", range(0)), ("broken", at)):
            run = Run(there, name, "s3", random.Random(1), steps=steps)
            try:
                with Watch(run) as watch:
                    run.may_end = len(at)
                    run.start()
                    met = [meet(run, *each) for each in zip(steps_of_faults, cycle(DEEDS))]
                    seconds = run.finish()
                facts = check(run, twin)
            finally:
                run.end()
            found[name] = {"seconds": seconds, "memory": watch.series, "faults": met}
            found[name] |= {metric: facts[f"history {metric}"] for metric in CURVES}
    return found


def meet(run: Run, step: int, what: str) -> dict[str, Any]:
    """The fault, once the step is durable, and all that it needs until the run goes on."""
    run.reach(step)
    print(f"step {run.step}: {what}", flush=True)
    DEEDS[what](run)
    lost = run.recover()
    run.site.mend()
    return {"step": run.step, "what": what, "seconds": round(lost, 1)}


def draw(found: dict[str, Any]) -> bytes:
    """The unbroken run broad and faint, the other thin upon it, a mark for each fault; PNG."""
    figure = new_figure(10, 4)
    axes = figure.subplots()
    for metric, (label, colour) in CURVES.items():
        for name, width, alpha in (("unbroken", 5.0, 0.3), ("broken", 0.8, 1.0)):
            steps, values = zip(*found[name][metric], strict=True)
            axes.plot(
                steps, values, color=colour, lw=width, alpha=alpha, label=f"{label}, {name} run"
            )
    faults = found["broken"]["faults"]
    for fault in faults:
        axes.axvline(fault["step"], color=GREY, lw=0.8, ls=(0, (4, 3)))
        axes.annotate(
            f" {fault['what']}", (fault["step"], 1), xycoords=("data", "axes fraction"),
            rotation=90, va="top", fontsize=7, color=GREY,
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss", title=f"{len(faults)} faults: one line")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
    return figure_png(figure, dpi=120)


if __name__ == "__main__":
    main()
