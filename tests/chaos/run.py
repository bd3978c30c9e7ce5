"""One run on a site: started, found where it is, broken, and given again until it is done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from chaos.site import DOCUMENT, EVERY, STEPS, Site
from t2i_ray.checkpoint import Checkpoints
from t2i_ray.claims import newest
from t2i_ray.runs import RunRecord, read_run, run_store
from t2i_ray.storage import Store

WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"
PATIENCE = 600.0  # seconds for a short run's command to end, and for what a fault waits for
#: Temporary folders that are not ours: PyTorch's cache, one for all processes of a user; and what
#: Ray's dashboard leaves when its head is killed.
THEIRS = ("torchinductor_", "pymp-")


class Lost(Exception):  # noqa: N818 - a finding, not a fault of the suite
    """What the run promises is not kept."""


class Over(Lost):
    """The run was all but done before a fault could come."""


class Run:
    """A run of its own name.

    Args:
        site: where it takes place.
        name: of the run.
        where: it is stored, one of the site's places.
        rng: for what is left to chance.
        steps: that it takes.
    """

    def __init__(
        self, site: Site, name: str, where: str, rng: random.Random, steps: int = STEPS
    ) -> None:
        self.site, self.name, self.where, self.rng, self.steps = site, name, where, rng, steps
        self.place = site.places[where]
        self.folder = site.folder / name
        self.patience = max(PATIENCE, 0.5 * steps)  # for a command to end
        self.stretch = range(steps)  # at the beginning of which the next fault is to come
        self.step = 0  # that was durable when it came
        self.commands = 0
        self.ended = self.may_end = 0  # how often the command ended before all was done, and might
        self.drivers: list[subprocess.Popen[bytes]] = []
        self._struck = 0.0  # when it came
        self._heard = 0  # of the log, before it came
        self._began = 0.0
        self._behind = 0  # how often MLflow was, when all else was done
        (self.folder / "tmp").mkdir(parents=True)
        self.temporary_before = self.temporary
        document = {
            **DOCUMENT,
            "train": {**DOCUMENT["train"], "steps": steps},
            "name": name,
            "storage": self.place.told.model_dump(),
            "tracking": {"uri": site.to_mlflow.uri},
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(document))

    # ---------------------------------------------------------------------- its commands

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        """Give the command that trains."""
        self._began = self._began or time.monotonic()
        if not self.commands:
            self.strike()
        self.commands += 1
        self.drivers.append(self.give("train", "run.yaml", *overrides))
        return self.drivers[-1]

    def give(self, *words: str) -> subprocess.Popen[bytes]:
        """Give any command; what it prints goes to the folder's log."""
        env = {**self.site.cluster.env, "TMPDIR": str(self.folder / "tmp")}
        command = [sys.executable, "-m", "t2i_ray", *words]
        with (self.folder / "log").open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            return subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=self.folder)

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """The one that was started first of those that live, or else the last; none refused."""
        taken = [d for d in self.drivers if d.poll() != 2] or self.drivers
        return next((d for d in taken if d.poll() is None), taken[-1])

    def wait(self, driver: subprocess.Popen[bytes] | None = None) -> int:
        """Until it ends; its exit code. Raises Lost if it does not."""
        driver = driver or self.driver
        try:
            return driver.wait(timeout=self.patience)
        except subprocess.TimeoutExpired:
            raise Lost(f"the command still runs after {self.patience:.0f} s") from None

    def attend(self) -> bool:
        """Give the command again if it has ended before all was done; whether all is."""
        if (code := self.driver.poll()) is None:
            return False
        self.site.mend()
        record = self.record
        if code == 0 and record and record.status == "FINISHED":
            if record.published:
                return True
            self._behind += 1
        else:
            self.ended += 1
        # MLflow may be behind at the end, once: it is there again now.
        if self._behind > 1 or self.ended > self.may_end:
            raise Lost(f"the command ended, which was not to end it: exit code {code}, {record}")
        self.start()
        return False

    def finish(self) -> float:
        """Wait, mend what is broken, give the command again until all is done; the seconds."""
        while not self.attend():
            self.wait()
        return time.monotonic() - self._began

    def end(self) -> None:
        """Let no command of it live on."""
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()

    # ------------------------------------------------------------------- where it stands

    @property
    def store(self) -> Store:
        """Its part of the storage, not by way of a proxy."""
        return run_store(self.place.store, self.name)

    @property
    def record(self) -> RunRecord | None:
        return read_run(self.place.store, self.name)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.store.within("checkpoints"), keep=1)

    @property
    def rank_0(self) -> int:
        """The process of the newest rank 0; 0: there was none yet."""
        claim = newest(self.store)
        return int(self.store.read_json(claim.key)["pid"]) if claim.term else 0

    @property
    def workers(self) -> list[int]:
        """Processes of the others that train."""
        return [pid for pid in self.site.processes(WORKER) if pid != self.rank_0]

    @property
    def anyone(self) -> int:
        """Some process that trains."""
        return self.rng.choice([self.rank_0, *self.workers])

    @property
    def temporary(self) -> set[Path]:
        """Temporary files of the command and of the nodes' processes."""
        places = (self.folder / "tmp", self.site.tmp)
        found = {path for place in places for path in place.iterdir()}
        return {path for path in found if not path.name.startswith(THEIRS)}

    @property
    def durable(self) -> int:
        """The newest step of which there is a checkpoint."""
        return max(self.checkpoints.steps(), default=0)

    def reach(self, step: int | None = None, after: float = 0.5) -> None:
        """Until so many steps are durable (none: some of its stretch), and a moment longer.

        Raises Over if too few are left for something to go wrong.
        """
        of = self.stretch
        # One at least: whoever struck at step 0 has struck before the run was at work.
        wanted = max(1, of.start + self.rng.randrange(len(of) // 2)) if step is None else step

        def there() -> bool:
            if self.attend() or self.durable >= self.steps - EVERY:
                raise Over(f"{self.durable} of {self.steps} steps were done before step {wanted}")
            # What a fault is to befall must be there: no group that is only just starting.
            return self.durable >= wanted and {self.rank_0} < self.site.processes(WORKER).keys()

        until(there, f"step {wanted}")
        time.sleep(self.rng.uniform(0, after))
        self.strike()

    def strike(self) -> None:
        """A fault comes now."""
        self.step, self._struck = self.durable, time.monotonic()
        self._heard = len(read(self.folder / "log"))

    @property
    def said(self) -> str:
        """What its commands have printed since the fault came."""
        return read(self.folder / "log")[self._heard :]

    def recover(self) -> float:
        """Until two more checkpoints are durable; the seconds since the fault came.

        Two, since one may have been on its way.
        """
        wanted = min(self.step + 2 * EVERY, self.steps)
        until(lambda: self.attend() or self.durable >= wanted, f"step {wanted}")
        return time.monotonic() - self._struck

    # ------------------------------------------------------------------------ violence

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send it a signal. Raises Lost if it is not there."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            raise Lost(f"process {pid} ended before the fault could come") from None

    def until_workers_are_gone(self) -> None:
        """Of a driver that died: Ray ends them."""
        until(lambda: not self.site.processes(WORKER), "the end of the workers")


def until(ready: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Raises Lost if it is not in this time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise Lost(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.3)  # what is looked at may be on S3, whose server the runs need, too


def read(path: Path) -> str:
    """A file's text, or nothing."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
