"""A real Ray cluster of one node for the tests, on loopback, ended by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from servers import Radosgw, free_port

BIN = Path(sys.executable).parent
#: What every process of the cluster knows besides its token and the S3 key, and must not tell.
PLANTED = {
    "HF_TOKEN": "planted-hf-5d0c7e",
    "MLFLOW_TRACKING_USERNAME": "planted-user-81ac0f",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-2e9b64",
}


class RayCluster:
    """``ray start --head`` with token authentication and a home of its own."""

    def __init__(self, folder: Path, cpus: int = 4) -> None:
        self.folder = folder
        self.cpus = cpus
        self.port, self.dashboard_port, self.metrics_port = free_port(), free_port(), free_port()
        self.token = secrets.token_hex(16)
        (folder / "home").mkdir(parents=True)
        (folder / "token").write_text(self.token)
        (folder / "token").chmod(0o600)

    @property
    def env(self) -> dict[str, str]:
        """What a driver needs to join."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return {
            **inherited,
            "HOME": str(self.folder / "home"),
            "RAY_ADDRESS": f"127.0.0.1:{self.port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAY_metrics_report_interval_ms": "1000",
            # It would look for training's controllers in any cluster of this machine.
            "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
            **PLANTED,
            **Radosgw.env,
            "PYTHONWARNINGS": "default",
        }

    @property
    def job_env(self) -> dict[str, str]:
        """What ``ray job`` needs."""
        return {**self.env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard_port}"}

    @property
    def session(self) -> Path:
        """Where Ray keeps the logs of this cluster."""
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                arguments = file.read_bytes().decode().split("\0")
                if f"--gcs_server_port={self.port}" in arguments:
                    (found,) = (a for a in arguments if a.startswith("--session-dir="))
                    return Path(found.removeprefix("--session-dir="))
        raise RuntimeError("the cluster does not run")

    def start(self) -> None:
        command = [
            # The kernel ends it, should this process be killed before it can.
            "setpriv", "--pdeathsig", "TERM",
            str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={self.port}", f"--num-cpus={self.cpus}", "--num-gpus=0",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--metrics-export-port={self.metrics_port}",
            "--min-worker-port=0", "--max-worker-port=0",  # any: other clusters may run here
            f"--object-store-memory={256 * 2**20}",
        ]  # fmt: skip
        env = {k: v for k, v in self.env.items() if k not in ("RAY_ADDRESS",)}
        with (self.folder / "ray.out").open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=env, start_new_session=True
            )
        self._until_jobs_api_answers()

    def _until_jobs_api_answers(self, seconds: float = 90) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard_port}/api/jobs/",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    json.load(answer)
                return
            except (OSError, ValueError):
                if time.monotonic() > deadline or self.process.poll() is not None:
                    log = (self.folder / "ray.out").read_text()[-2000:]
                    raise RuntimeError(f"Ray did not start: {log}") from None
                time.sleep(0.3)

    def stop(self) -> None:
        """End the head process; it ends what it started. What stays behind goes by its group."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=4)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
