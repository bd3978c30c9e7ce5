"""A real MLflow server on loopback, which can be stopped and started again."""

from __future__ import annotations

import base64
import contextlib
import json
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
from typing import Any

from postgres import Postgres
from ray_cluster import BIN
from servers import free_port
from werkzeug.security import generate_password_hash

SERVE = Path(__file__).parent.parent / "cluster/mlflow/serve.sh"


class MlflowServer:
    """A database and a place for artifacts behind one port; the same ones after a restart.

    Args:
        folder: for what it prints, and whatever is not said to be elsewhere.
        artifacts: a folder or an s3:// URI, which clients reach through the server; None: a folder.
        env: more variables for it, such as credentials.
        password: of its user ``admin``; None: it asks for none.
    """

    user = "admin"  # as whom clients come, if it asks

    def __init__(
        self,
        folder: Path,
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
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        self._command += ["--port", str(self.port), "--workers", "1"]
        self._command += ["--app-name", "basic-auth"] if password else []
        self._env = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes
            "OMP_NUM_THREADS": "1",
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
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
                "MLFLOW_TRACKING_USERNAME": self.user,
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
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                env={**environment, **self._env},
                start_new_session=True,
            )
        end = time.monotonic() + 180  # a busy machine
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                self._ready()
                return
        self.stop()
        raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])

    def rest(self, call: str, **document: Any) -> Any:
        """MLflow's REST API, as a client; without a body it is a GET."""
        return _ask(self.uri, self.user, self.password, call, document)

    def _ready(self) -> None:
        """It answers. What goes wrong here is the caller's to see, and no reason to ask again."""
        if self.password:
            with contextlib.closing(sqlite3.connect(self.folder / "auth.db")) as users, users:
                users.execute("UPDATE users SET password_hash = ?", (_cheap_hash(self.password),))

    def stop(self) -> None:
        """Kill it with its children: the group that it leads."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class ShippedMlflowServer(MlflowServer):
    """As cluster/mlflow/serve.sh starts it: on PostgreSQL, with passwords, which lie in files.

    It is started once: its user is made then.

    Args:
        folder: for what it prints, and the secrets.
        postgres: where runs and users are kept.
        artifacts: a folder or an s3:// URI.
        env: more variables for it, such as credentials.
    """

    user = "trainer"  # whom cluster/README.md makes for training: no admin

    def __init__(
        self, folder: Path, postgres: Postgres, artifacts: str, env: Mapping[str, str]
    ) -> None:
        super().__init__(folder, artifacts)
        # Tests look where they must not be.
        self.admin, self.password = (f"planted-{secrets.token_hex(12)}" for _ in range(2))
        self._postgres = postgres
        self._command = ["sh", str(SERVE)]
        self._env = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "POSTGRES_PORT": str(postgres.port),
            "POSTGRES_USER": postgres.user,
            "POSTGRES_DB": "postgres",
            "ARTIFACTS": artifacts,
            "MLFLOW_PORT": str(self.port),
            "MLFLOW_WORKERS": "1",
            "OMP_NUM_THREADS": "1",
            **env,
        }
        for name, secret in {
            "POSTGRES_PASSWORD_FILE": postgres.password,
            "ADMIN_PASSWORD_FILE": self.admin,
            "FLASK_SECRET_KEY_FILE": secrets.token_hex(24),
        }.items():
            (folder / name).write_text(f"{secret}\n")
            self._env[name] = str(folder / name)

    def _ready(self) -> None:
        document = {"username": self.user, "password": self.password}
        _ask(self.uri, "admin", self.admin, "users/create", document)
        import psycopg  # needs PostgreSQL's own library, which not every machine has

        with psycopg.connect(self._postgres.uri) as users:
            for name, secret in {"admin": self.admin, self.user: self.password}.items():
                change = "UPDATE users SET password_hash = %s WHERE username = %s"
                users.execute(change, (_cheap_hash(str(secret)), name))


def _ask(uri: str, user: str, password: str | None, call: str, document: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/{call}")
    if password:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
    request.add_header("Content-Type", "application/json")
    data = json.dumps(document).encode() if document else None
    with urllib.request.urlopen(request, data, timeout=30) as answer:
        return json.load(answer)


def _cheap_hash(password: str) -> str:
    """MLflow's own takes a third of a second for each request; of this there is one round."""
    return generate_password_hash(password, method="pbkdf2:sha256:1")
