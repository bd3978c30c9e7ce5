"""A sweep in MLflow: a parent run, which its trials name, and which says how it ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from t2i_ray.runs import Status
from t2i_ray.tracking.about import RUN_TAG, About, cut, param, scrub, tag
from t2i_ray.tracking.destination import Destination
from t2i_ray.tracking.server import (
    ensure_run,
    persist,
    run_url,
    search,
    set_status,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
#: Of a sweep's runs: which sweep, what is tried (for people, and as JSON), and in which stage.
SWEEP_TAG, SETTING_TAG = "t2i_ray.sweep", "t2i_ray.setting"
VALUES_TAG, STAGE_TAG = "t2i_ray.values", "t2i_ray.stage"


def of_sweep(about: About, sweep: Mapping[str, Any]) -> About:
    """About a sweep: what all its trials share, what varies, and how it is searched."""
    params = {
        f"{section}.{name}": param(value)
        for section in ("search", "space")
        for name, value in sweep[section].items()
    }
    document = yaml.safe_dump(dict(sweep), sort_keys=False, allow_unicode=True)
    texts = {"sweep.yaml": scrub(document)}
    return replace(about, params={**about.params, **params}, texts={**about.texts, **texts})


class Parent:
    """The parent run. An MLflow that is away when it begins may be back when it ends.

    Args:
        destination: where MLflow is; None: nothing is tracked.
        about: the sweep.
    """

    def __init__(self, destination: Destination | None, about: About) -> None:
        self._destination = destination
        self._about = about
        self.tags: dict[str, str] = {}  # which make a run its child
        self.run_id: str | None = None
        self.address: str | None = None
        if destination is None:
            return
        found = persist(destination, self._open, 10, f"{about.name} is not shown in MLflow yet")
        if found:
            self.run_id, self.address = found
            self.tags = {PARENT_TAG: self.run_id}

    def _open(self, client: MlflowClient, where: Destination) -> tuple[str, str]:
        from mlflow.entities import Param, RunTag

        run = ensure_run(client, where, self._about)
        run_id = run.info.run_id
        new = [Param(k, v) for k, v in self._about.params.items() if k not in run.data.params]
        for start in range(0, len(new), 100):
            client.log_batch(run_id, params=new[start : start + 100])
        tags = [RunTag(name, value) for name, value in self._about.tags.items()]
        client.log_batch(run_id, tags=tags)
        for path, text in self._about.texts.items():
            client.log_text(run_id, text, path)
        client.update_run(run_id, status="RUNNING")
        return run_id, run_url(where, run)

    def finish(
        self,
        status: Status,
        tags: Mapping[str, str],
        texts: Mapping[str, str],
        trials: Collection[str] = (),
        timeout: float = 30,
    ) -> bool:
        """Say how it ended; False, after a warning, if MLflow can't be reached in so many seconds.

        Those of the trials (their runs' keys) that began while it could not be reached, and so
        named no parent, do so now.
        """
        if self._destination is None:
            return True

        def work(client: MlflowClient, where: Destination) -> bool:
            if self.run_id is None:
                self.run_id, self.address = self._open(client, where)
            for name, value in tags.items():
                client.set_tag(self.run_id, name, tag(value))
            for path, text in texts.items():
                client.log_text(self.run_id, cut(scrub(text), 1_000_000), path)
            self._adopt(client, trials)
            return True

        failure = f"the end of {self._about.name} not written"
        return bool(persist(self._destination, work, timeout, failure)) and set_status(
            self._destination, self._about.key, status
        )

    def _adopt(self, client: MlflowClient, trials: Collection[str]) -> None:
        experiment = client.get_run(self.run_id).info.experiment_id
        for run in search(client, [experiment], f"tags.`{SWEEP_TAG}` = '{self._about.name}'"):
            if run.data.tags.get(RUN_TAG) in trials and PARENT_TAG not in run.data.tags:
                client.set_tag(run.info.run_id, PARENT_TAG, self.run_id)
