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

from chaos.site import DOCUMENT, STEPS, Site
from t2i_ray.checkpoint import Checkpoints
from t2i_ray.claims import newest
from t2i_ray.runs import RunRecord, read_run, run_store
from t2i_ray.storage import Store

WORKER, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"
PATIENCE = 240.0  # seconds for a short run's command to end, and for what a fault waits for
#: Temporary folders that are not ours: PyTorch's cache, one for all processes of a user; and what
#: Ray's dashboard leaves when its head is killed.
THEIRS = ("torchinductor_", "pymp-")
COMMANDS = 4  # how often the same command is given at most


class Lost(Exception):  # noqa: N818 - a finding, not a fault of the suite
    """What the run promises is not kept."""


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
        self.step = 0  # that was durable when the fault came
        self.commands = 0
        self.drivers: list[subprocess.Popen[bytes]] = []
        self._began = 0.0
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
        """Give the command; what it prints goes to the folder's log."""
        self._began = self._began or time.monotonic()
        self.commands += 1
        env = {**self.site.cluster.env, "TMPDIR": str(self.folder / "tmp")}
        command = [sys.executable, "-m", "t2i_ray", "train", "run.yaml", *overrides]
        with (self.folder / "log").open("ab") as log:
            log.write(f"\n$ train, for the {self.commands}. time\n".encode())
            log.flush()
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=self.folder)
        self.drivers.append(driver)
        return driver

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """The one that was started first of those that live, or else the last."""
        return next((d for d in self.drivers if d.poll() is None), self.drivers[-1])

    def wait(self, driver: subprocess.Popen[bytes] | None = None) -> int:
        """Until it ends; its exit code. Raises Lost if it does not."""
        driver = driver or self.driver
        try:
            return driver.wait(timeout=self.patience)
        except subprocess.TimeoutExpired:
            raise Lost(f"the command still runs after {self.patience:.0f} s") from None

    def ends_within(self, seconds: float) -> bool:
        """Whether no command of it lives on after so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.driver.poll() is None:
            time.sleep(0.1)
        return self.driver.poll() is not None

    def finish(self) -> float:
        """Wait, mend what is broken, give the command again until all is done; the seconds."""
        while True:
            code = self.wait()
            self.site.mend()
            record = self.record
            if code == 0 and record and record.status == "FINISHED" and record.published:
                return time.monotonic() - self._began
            if self.commands == COMMANDS:
                raise Lost(f"not done after {COMMANDS} commands: exit code {code}, {record}")
            self.start()

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

    def reach(self, step: int | None = None, after: float = 0.5) -> None:
        """Until so many steps are durable (none: some), and a moment longer."""
        wanted = self.rng.randrange(self.steps * 3 // 4) if step is None else step
        driver = self.driver

        def there() -> bool:
            if driver.poll() is not None:
                raise Lost(f"ended with exit code {driver.returncode} before the fault could come")
            self.step = max(self.checkpoints.steps(), default=0)
            return bool(self.rank_0) and self.step >= wanted

        until(there, f"step {wanted}")
        time.sleep(self.rng.uniform(0, after))

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
        time.sleep(0.1)


def read(path: Path) -> str:
    """A file's text, or nothing."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
