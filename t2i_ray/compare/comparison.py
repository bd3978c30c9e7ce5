"""Runs compared: settings, contenders, differences over seeds, and what to beware of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from t2i_ray.compare import notes, statistics
from t2i_ray.compare.settings import Row, Trial, to_rows, to_trials
from t2i_ray.config import RANKED, UserError, larger_is_better
from t2i_ray.runs import Stage
from t2i_ray.tracking import History, PastRun

MEASURE = re.compile(f"(val|test)/({RANKED})")
DEFAULT = "val/agreement/mean"
MOST = 6  # contenders shown side by side
GRIDS = "samples"


@dataclass(frozen=True)
class Comparison:
    """What there is to say of these runs. Curves and grids are read when first asked for."""

    title: str
    metric: str  # asked for; a confirmation is read on the test split
    runs: list[PastRun] = field(repr=False)
    sweeps: list[PastRun] = field(repr=False)
    history: History = field(repr=False)

    @cached_property
    def trials(self) -> list[Trial]:
        """All runs with what they tried."""
        return to_trials(self.runs)

    @property
    def larger(self) -> bool:
        """Whether a larger value is a better one."""
        return larger_is_better(self.metric) is not False

    def metric_of(self, stage: Stage) -> str:
        """A confirmation counts on the test split, which no choice was made by."""
        has_both = {trial.stage for trial in self.trials} == {"search", "confirm"}
        split, _, measure = self.metric.partition("/")
        if stage == "confirm":
            return f"test/{measure}"
        return f"{'val' if has_both else split}/{measure}"

    @cached_property
    def search(self) -> list[Row]:
        """Settings of the search, or of ordinary runs; the best first."""
        return to_rows(self.trials, "search", self.metric_of("search"), self.larger)

    @cached_property
    def confirmed(self) -> list[Row]:
        """Settings of the confirmation; empty without one."""
        return to_rows(self.trials, "confirm", self.metric_of("confirm"), self.larger)

    @property
    def stage(self) -> Stage:
        """The one that the answer comes from."""
        return "confirm" if any(row.scores for row in self.confirmed) else "search"

    @property
    def rows(self) -> list[Row]:
        """Settings of the stage that the answer comes from."""
        return self.confirmed if self.stage == "confirm" else self.search

    @property
    def encoders(self) -> list[str]:
        """Of the runs that finished, in the answer's stage; the best first."""
        return list(dict.fromkeys(row.encoder for row in self.rows if row.finished))

    def contender_of(self, row: Row) -> str:
        """The name under which a setting would contend."""
        return row.encoder if len(self.encoders) > 1 else row.setting

    @cached_property
    def contenders(self) -> dict[str, Row]:
        """What is compared: each encoder by its best setting, or, of one encoder, its settings.

        The best setting is the search's choice even where a confirmation tells otherwise: to
        choose again by what confirmed it would flatter the winner.
        """
        rows = [row for row in self.rows if row.finished]
        if len(self.encoders) < 2:
            return {self.contender_of(row): row for row in rows[:MOST]}
        searched = [row.setting for row in self.search if row.mean is not None]
        chosen: dict[str, Row] = {}
        for row in sorted(rows, key=lambda r: _rank(r.setting, searched)):
            chosen.setdefault(row.encoder, row)
        best_first = [row for row in self.rows if row in chosen.values()]
        return {row.encoder: row for row in best_first[:MOST]}

    @cached_property
    def differences(self) -> dict[tuple[str, str], statistics.Difference]:
        """Every pair of contenders, the better one first."""
        return {
            (one, other): statistics.paired_difference(
                self.contenders[one].scores, self.contenders[other].scores
            )
            for one, other in itertools.combinations(self.contenders, 2)
            if self.contenders[one].scores and self.contenders[other].scores
        }

    @property
    def headline(self) -> str:
        """The answer in a sentence or two, with its uncertainty."""
        return notes.headline(self)

    @property
    def warnings(self) -> list[str]:
        """What the numbers are not."""
        return notes.warnings(self)

    def measured(self, split: str) -> list[str]:
        """Names of measures with a direction that a contender has of a split, without it."""
        runs = [t.run for row in self.contenders.values() for t in row.finished.values()]
        found = {metric.partition("/")[2] for run in runs for metric in run.metrics
                 if MEASURE.fullmatch(metric) and metric.startswith(f"{split}/")}  # fmt: skip
        return sorted(found)

    # ------------------------------------------------------------------- read when needed

    @cached_property
    def losses(self) -> dict[str, dict[str, list[dict[int, float]]]]:
        """Contender -> g_loss and d_loss -> one curve a seed, by step."""
        return {
            name: {loss: self._curves(row, loss) for loss in ("g_loss", "d_loss")}
            for name, row in self.contenders.items()
        }

    @cached_property
    def progress(self) -> dict[str, list[dict[int, float]]]:
        """Contender -> the measure on the validation split while training, one curve a seed."""
        metric = f"val/{self.metric.partition('/')[2]}"
        return {name: self._curves(row, metric) for name, row in self.contenders.items()}

    def _curves(self, row: Row, metric: str) -> list[dict[int, float]]:
        trials = [row.finished[seed] for seed in sorted(row.finished)]
        curves = [self.history.curve(t.run, metric) for t in trials if metric in t.run.metrics]
        return [curve for curve in curves if curve]

    @cached_property
    def grids(self) -> Grids:
        """Every contender's last grid of one seed and step that all have."""
        return Grids.read(self.history, self.contenders)

    # --------------------------------------------------------------------------- as files

    @cached_property
    def _light(self) -> dict[str, bytes]:
        from t2i_ray.compare.figures import draw_all
        from t2i_ray.compare.style import LIGHT

        return draw_all(self, LIGHT)

    @cached_property
    def _dark(self) -> dict[str, bytes]:
        from t2i_ray.compare.figures import draw_all
        from t2i_ray.compare.style import DARK

        return draw_all(self, DARK)

    def pictures(self, *, dark: bool = False) -> dict[str, bytes]:
        """File name -> PNG, for a light or a dark page; what can't be drawn is not there."""
        return dict(self._dark if dark else self._light)

    def html(self) -> str:
        """A page of one file, pictures and all."""
        from t2i_ray.compare.page import html

        return html(self)

    def markdown(self, pictures: str | None = None) -> str:
        """The same in Markdown; with pictures only if it is told the folder they lie in."""
        from t2i_ray.compare.page import markdown

        return markdown(self, pictures)


@dataclass(frozen=True)
class Grids:
    """Sample grids that can stand side by side."""

    images: Mapping[str, bytes]  # contender -> PNG; empty if there are none
    image_size: int = 0  # of one picture, pixels
    seed: int = 0
    step: int = 0
    missing: str = ""  # why there are none

    @classmethod
    def read(cls, history: History, contenders: Mapping[str, Row]) -> Grids:
        """Of the first seed, and its last step, at which every contender drew one."""
        if not contenders:
            return cls({}, missing="No run has finished.")
        common = set.intersection(*(set(row.finished) for row in contenders.values()))
        for seed in sorted(common):
            runs = {name: row.finished[seed].run for name, row in contenders.items()}
            for same in ("model.noise_dim", "data.image_size"):
                if len({run.params.get(same) for run in runs.values()}) > 1:
                    return cls({}, missing=f"{same} differs, so the grids do not compare.")
            size = int(next(iter(runs.values())).params.get("data.image_size", 64))
            listed = [set(history.files(run, GRIDS)) for run in runs.values()]
            for path in sorted(set.intersection(*listed), reverse=True):
                read = {name: history.read(run, path) for name, run in runs.items()}
                images = {name: png for name, png in read.items() if png}
                step = re.search(r"(\d+)\.png$", path)
                if step and len(images) == len(runs):
                    return cls(images, size, seed, int(step[1]))
        return cls(
            {}, missing="No seed has a sample grid of every contender at the same step in MLflow."
        )


def compare(names: Sequence[str], tracking_uri: str, metric: str | None = None) -> Comparison:
    """Compare what MLflow holds of these experiments, sweeps and runs.

    Args:
        names: experiments, sweeps, runs, or runs' ids; each stands for all its runs.
        tracking_uri: of MLflow's server or database.
        metric: what ranks; None: what the sweep was searched by, else val/agreement/mean.

    Raises:
        UserError: nothing is called so, MLflow does not answer, or the metric can't rank.
    """
    if not names:
        raise UserError("names: nothing to compare; give an experiment, a sweep or runs")
    history = History(tracking_uri)
    runs, sweeps = history.find(names)
    searched = {sweep.params.get("search.metric", DEFAULT) for sweep in sweeps}
    if metric is not None:
        _check(metric, runs)
    elif len(searched) > 1:
        raise UserError(
            f"metric=null: the sweeps were searched by {', '.join(sorted(searched))}; choose one "
            "by --metric"
        )
    else:
        metric = searched.pop() if searched else DEFAULT
    known = {run.run_id: run.name for run in (*sweeps, *runs)}  # a sweep's driver gives its id
    title = ", ".join(dict.fromkeys(known.get(name, name) for name in names))
    return Comparison(title, metric, runs, sweeps, history)


def _check(metric: str, runs: Sequence[PastRun]) -> None:
    known = {name for run in runs for name in run.metrics if MEASURE.fullmatch(name)}
    if metric in known:
        return
    remedy = f"give one of {', '.join(sorted(known))}" if known else "these runs have no measure"
    if "loss" in metric or metric.startswith(("d_", "g_")):
        raise UserError(
            f"metric={metric}: a loss ranks no models, each has a game of its own; {remedy}"
        )
    raise UserError(f"metric={metric}: nobody measured that here; {remedy}")


def _rank(setting: str, order: Sequence[str]) -> int:
    return order.index(setting) if setting in order else len(order)
