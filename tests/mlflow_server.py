"""A real MLflow server on loopback, which can be stopped and started again."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from servers import free_port
from werkzeug.security import generate_password_hash


class MlflowServer:
    """A database and a place for artifacts behind one port; the same ones after a restart.

    Args:
        folder: for what it prints, and whatever is not said to be elsewhere.
        database: None: sqlite.
        artifacts: a folder or an s3:// URI, which clients reach through the server; None: a folder.
        env: more variables for it, such as credentials.
        password: of its user ``admin``; None: it asks for none.
    """

    def __init__(
        self,
        folder: Path,
        database: str | None = None,
        artifacts: str | None = None,
        env: Mapping[str, str] | None = None,
        password: str | None = None,
    ):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.password = password
        self.artifacts = artifacts or f"{folder}/artifacts"
        self._process: subprocess.Popen[bytes] | None = None
        self._env = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes
            "OMP_NUM_THREADS": "1",
            # Not on the command line: they may hold passwords.
            "MLFLOW_BACKEND_STORE_URI": database or f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_ARTIFACTS_DESTINATION": self.artifacts,
            **(env or {}),
        }
        if password:
            (folder / "auth.ini").write_text(
                "[mlflow]\n"
                "default_permission = NO_PERMISSIONS\n"
                f"database_uri = sqlite:///{folder}/auth.db\n"
                "admin_username = admin\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            self._env |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            }

    @property
    def client_env(self) -> dict[str, str]:
        """What its clients need."""
        env = {"MLFLOW_TRACKING_URI": self.uri}
        if self.password:
            env |= {
                "MLFLOW_TRACKING_USERNAME": "admin",
                "MLFLOW_TRACKING_PASSWORD": self.password,
            }
        return env

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """The server's process, those below it left out; none while it is down."""
        return [self._process.pid] if self._process is not None else []

    def start(self) -> None:
        """Start, and wait until it answers (some 8 s at first, then 5)."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--app-name", "basic-auth"] if self.password else []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**environment, **self._env},
                start_new_session=True,
            )
        end = time.monotonic() + 180  # a busy machine
        while time.monotonic() < end and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.uri}/health", timeout=5),
            ):
                self._hash_quickly()
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])

    def _hash_quickly(self) -> None:
        """The password's hash takes a third of a second for each request; here, one round does."""
        if self.password:
            cheap = generate_password_hash(self.password, method="pbkdf2:sha256:1")
            with contextlib.closing(sqlite3.connect(self.folder / "auth.db")) as users, users:
                users.execute("UPDATE users SET password_hash = ?", (cheap,))

    def stop(self) -> None:
        """Kill it with its children: the group that it leads."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
