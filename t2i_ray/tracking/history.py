"""What an MLflow holds of past runs: found by name, read on demand, and a place for a report."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_ray.config import UserError
from t2i_ray.storage.scratch import scratch
from t2i_ray.tracking.about import RUN_TAG, scrub
from t2i_ray.tracking.destination import Destination
from t2i_ray.tracking.parent import PARENT_TAG, SWEEP_TAG
from t2i_ray.tracking.server import connect, one_line, search

if TYPE_CHECKING:
    from mlflow.entities import Run

LARGEST = 1.0e308  # beyond it a value stands for infinity


@dataclass(frozen=True)
class PastRun:
    """One run as MLflow shows it. Its curves and files are read by `History`, on demand."""

    run_id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    started: int  # milliseconds since 1970
    params: Mapping[str, str] = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)  # the last value of each; finite ones
    dataset: str | None = None  # digest of the data it was trained on

    @property
    def parent(self) -> str | None:
        """Id of the sweep's run whose trial it is."""
        return self.tags.get(PARENT_TAG)

    @property
    def is_ours(self) -> bool:
        """Whether this program made it."""
        return bool(self.tags.keys() & {RUN_TAG, SWEEP_TAG}) or "encoder.kind" in self.params

    @property
    def is_sweep(self) -> bool:
        """Whether it is no training run, but the parent of some."""
        return "search.metric" in self.params


class History:
    """Past runs of one MLflow.

    Args:
        uri: of the server or database, as `tracking.locate` gives it.

    Raises:
        UserError: here and in every method: MLflow does not answer.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        path = uri.partition("///")[2].partition("?")[0]
        if uri.startswith("sqlite:") and not Path(path).exists():
            raise UserError(
                f"tracking_uri={scrub(uri)}: there is no such database; give --tracking-uri, or "
                "the --storage that the runs were trained with"
            )
        with self._asking():
            self._client = connect(Destination(uri, ""))

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever MLflow or its transport may raise
            raise UserError(
                f"tracking_uri={scrub(self._uri)}: MLflow does not answer ({one_line(error)}); "
                "start its server, or give another --tracking-uri"
            ) from None

    def find(self, names: Sequence[str]) -> tuple[list[PastRun], list[PastRun]]:
        """Training runs, and the sweeps among what was named; each once, the oldest first.

        A name is looked up as an experiment, then as a run or sweep, then as a run's id. A sweep
        stands for its trials, an experiment for all runs in it.

        Raises:
            UserError: nothing is called so, or several runs are.
        """
        runs: dict[str, PastRun] = {}
        sweeps: dict[str, PastRun] = {}
        with self._asking():
            experiments = {e.name: e.experiment_id for e in self._experiments()}
            for name in names:
                for run in self._named(name, experiments):
                    (sweeps if run.is_sweep else runs).setdefault(run.run_id, run)
                    if run.is_sweep:
                        link = f"tags.`{PARENT_TAG}` = '{run.run_id}'"
                        for trial in self._search(list(experiments.values()), link):
                            runs.setdefault(trial.run_id, trial)
            for parent in {run.parent for run in runs.values()} - sweeps.keys() - {None}:
                with contextlib.suppress(Exception):  # a parent that was deleted
                    sweeps[str(parent)] = _past(self._client.get_run(str(parent)))

        def by_age(run: PastRun) -> tuple[int, str]:
            return run.started, run.name

        return sorted(runs.values(), key=by_age), sorted(sweeps.values(), key=by_age)

    def _named(self, name: str, experiments: Mapping[str, str]) -> list[PastRun]:
        if name in experiments:  # which others may use as well
            return [run for run in self._search([experiments[name]], "") if run.is_ours]
        quote = '"' if "'" in name else "'"
        found = []
        if not ("'" in name and '"' in name):
            query = f"attributes.run_name = {quote}{name}{quote}"
            found = self._search(list(experiments.values()), query)
        if len(found) > 1:
            ids = ", ".join(run.run_id for run in found)
            raise UserError(f"name={name!r}: several runs are called so; give an id: {ids}")
        if not found:
            with contextlib.suppress(Exception):  # no such id
                found = [_past(self._client.get_run(name))]
        if not found:
            known = ", ".join(sorted(experiments))
            raise UserError(
                f"name={name!r}: no experiment, sweep or run is called so in {scrub(self._uri)}; "
                f"its experiments: {known}"
            )
        return found

    def _experiments(self) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_experiments(page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _search(self, experiments: list[str], query: str) -> list[PastRun]:
        return [_past(run) for run in search(self._client, experiments, query)]

    # -------------------------------------------------------------------------- on demand

    def curve(self, run: PastRun, metric: str) -> dict[int, float]:
        """A metric's finite values by step, in order; empty if it was never logged."""
        with self._asking():
            points = self._client.get_metric_history(run.run_id, metric)
        points = sorted(points, key=lambda point: (point.step, point.timestamp))
        return {point.step: point.value for point in points if _is_finite(point.value)}

    def files(self, run: PastRun, folder: str) -> list[str]:
        """Paths of a run's artifacts in a folder; what can't be listed is not there."""
        try:
            found = self._client.list_artifacts(run.run_id, folder)
        except Exception:  # of a store that is away, or of another machine
            return []
        return sorted(entry.path for entry in found if not entry.is_dir)

    def read(self, run: PastRun, path: str) -> bytes | None:
        """An artifact's content; None if it can't be had."""
        with scratch() as place:
            try:
                return Path(
                    self._client.download_artifacts(run.run_id, path, str(place))
                ).read_bytes()
            except Exception:  # likewise
                return None

    def write(self, run: PastRun, folder: str, files: Mapping[str, bytes]) -> None:
        """Give a run artifacts, replacing those of the same path."""
        with scratch() as place:
            for name, data in files.items():
                (place / name).write_bytes(data)
            with self._asking():
                self._client.log_artifacts(run.run_id, str(place), folder)


def _past(run: Run) -> PastRun:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return PastRun(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        status=run.info.status,
        started=run.info.start_time or 0,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics={name: value for name, value in run.data.metrics.items() if _is_finite(value)},
        dataset=inputs[0].dataset.digest if inputs else None,
    )


def _is_finite(value: float) -> bool:
    """Whether it was a number when it was logged: MLflow keeps infinity as the largest double."""
    return math.isfinite(value) and abs(value) < LARGEST
