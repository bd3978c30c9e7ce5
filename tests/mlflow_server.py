"""A real MLflow server on loopback, which can be stopped and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from servers import free_port


class MlflowServer:
    """sqlite and a folder behind one port; the same ones after a restart.

    With a password, it is MLflow's own basic-auth app, and that is the user admin's.
    """

    def __init__(self, folder: Path, password: str = ""):
        self.folder = folder
        self.password = password
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers (some 8 s at first, then 5)."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        environment = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        if self.password:
            command += ["--app-name", "basic-auth"]
            environment |= self._auth()
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        end = time.monotonic() + 180  # a busy machine
        while time.monotonic() < end and self._process.poll() is None:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{self.uri}/health", timeout=5),
            ):
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])

    def _auth(self) -> dict[str, str]:
        settings = {
            "default_permission": "READ",
            "database_uri": f"sqlite:///{self.folder}/users.db",
            "admin_username": "admin",
            "admin_password": self.password,
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        file = self.folder / "auth.ini"
        lines = [f"{name} = {value}" for name, value in settings.items()]
        file.write_text("\n".join(["[mlflow]", *lines]))
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(file),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs the forms of its pages",
        }

    def stop(self) -> None:
        """Kill it with its children: the group that it leads."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
