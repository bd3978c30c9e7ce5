"""A real PostgreSQL server on loopback, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from servers import free_port

INSTALLED = Path("/usr/lib/postgresql")  # where Debian has it, by version


def binaries() -> Path | None:
    """The folder of initdb and postgres; None: there is none."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    found_here = sorted(INSTALLED.glob("*/bin/postgres"))
    return found_here[-1].parent if found_here else None


class Postgres:
    """A database cluster of its own, asking for a password.

    PostgreSQL refuses to run as root: then it is run by Debian's user for it, or by nobody.
    """

    user = "t2i"

    def __init__(self) -> None:
        self.port = free_port()
        self.password = f"planted-{secrets.token_hex(8)}"  # tests look where it must not be
        self.uri = f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def start(self) -> None:
        where = binaries()
        assert where is not None
        # Not below pytest's folder, which only its owner may enter.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="t2i-postgres-"))
        (folder / "password").write_text(self.password)
        become: list[str] = []
        if os.geteuid() == 0:
            account = _account()
            for path in (folder, folder / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
            become = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        subprocess.run(
            [
                "setpriv", *become,
                where / "initdb", f"--pgdata={folder}/data", f"--username={self.user}",
                "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync",
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # The kernel ends it, should this process be killed before it can.
                    "setpriv", *become, "--pdeathsig", "INT",
                    where / "postgres", "-D", folder / "data", "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-k", folder, "-c", "fsync=off",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        self._until_ready(folder)

    def _until_ready(self, folder: Path, seconds: float = 60) -> None:
        """Until the last line of its pid file says so."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, IndexError):
                if (folder / "data/postmaster.pid").read_text().split()[-1] == "ready":
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # at once, but in order
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
