"""``ray up``, ``ray exec`` and ``ray down`` of cluster/on_prem.yaml, against real sshd hosts.

    python tests/ray_up.py [FOLDER]

Three machines are made of Linux namespaces: a client, a head and a worker, joined by a bridge that
nothing else sees. Each has its own processes (without that, ``ray stop`` would end every Ray of
this machine), network, /tmp, /run, /dev/shm and home. All of them end with the client's first
process. Needs root or the like, sshd, ssh, rsync and iproute2. What was seen is printed as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from machines import MACHINE, UNSHARE, lacking, on, shell, ssh, start_host, until

REPOSITORY = Path(__file__).resolve().parent.parent
HEAD, WORKER, CLIENT = "10.213.77.2", "10.213.77.3", "10.213.77.1"
SECRET = "planted-secret-5d2f70"  # looked for where it must not be

#: In the shell in which Ray's cluster launcher runs; PID 1 of the client's namespace.
INSIDE = MACHINE + 'exec "$PYTHON" "$REPOSITORY/tests/ray_up.py" --inside "$LAB"\n'

#: Until the worker has joined the head.
WAIT = """
import ray, time
ray.init(logging_level="error")
for _ in range(240):
    if sum(node["Alive"] for node in ray.nodes()) == 2:
        raise SystemExit
    time.sleep(0.5)
raise SystemExit("no worker came")
"""
#: What a driver sees and finds, as a Ray job on the head.
JOB = """
import json, os, socket, ray
ray.init()
where = ray.remote(num_cpus=1)(lambda: (socket.gethostname(), os.environ.get("RAY_AUTH_MODE")))
print("JOB " + json.dumps({
    "driver": socket.gethostname(),
    "task": ray.get(where.remote()),
    "stop_wait": os.environ.get("RAY_JOB_STOP_WAIT_TIME_S"),
    "secret": len(os.environ.get("MLFLOW_TRACKING_PASSWORD", "")),
    "cpus_of_head": sum(n["Resources"].get("CPU", 0) for n in ray.nodes()
                        if "node:__internal_head__" in n["Resources"]),
}))
"""
#: Asks the Jobs API on this machine, without a token and with it.
ASK = """
import json, os, urllib.error, urllib.request
def ask(**headers):
    request = urllib.request.Request("http://127.0.0.1:8265/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
token = open(os.path.expanduser("~/.ray/auth_token")).read().strip()
print("ASK " + json.dumps([ask(), ask(Authorization="Bearer " + token)]))
"""


#: A spot machine's metadata, as AWS gives them once it is to go: a token, and what will be done.
CLOUD = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_PUT(self):
        self.answer(200, "token" if self.path == "/latest/api/token" else "")
    def do_GET(self):
        known = self.headers.get("X-aws-ec2-metadata-token") == "token"
        there = self.path == "/latest/meta-data/spot/instance-action"
        self.answer(200 if known and there else 404, '{"action": "terminate"}')
    def answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())
HTTPServer(("127.0.0.1", 8169), Answer).serve_forever()
"""
#: Which of this machine's ports speak TLS, and what an object of 64 MB takes from node to node.
TLS = """
import json, os, socket, ssl, subprocess, ray
import numpy as np
ray.init(address=os.environ["HEAD"] + ":6379", logging_level="error")
host, total = ray.get(ray.remote(num_cpus=1)(
    lambda a: (socket.gethostname(), int(a.sum()))).remote(np.ones(64 * 2**20, np.uint8)))
context = ssl.create_default_context(cafile=os.environ["RAY_TLS_CA_CERT"])
context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
def kind(port):
    try:
        with socket.create_connection((os.environ["HEAD"], port), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname=os.environ["HEAD"]) as secured:
                return secured.version()
    except ConnectionRefusedError:
        return "loopback only"
    except (ssl.SSLError, OSError) as error:
        return "plain"
names = {}
for line in subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout.splitlines():
    names[int(line.split()[3].rpartition(":")[2])] = (line.split('"') + ["?"])[1]
kinds = {f"{port} {name}": kind(port) for port, name in sorted(names.items()) if port != 22}
print("TLS " + json.dumps({"task": host, "total": total, "ports": kinds}))
"""


def run(lab: Path) -> dict[str, Any]:
    """Make the machines, run everything, and return what was seen; all is gone afterwards."""
    (lab / "dist").mkdir(parents=True)
    (lab / "dist" / "t2i_ray.whl").touch()  # copied, but not installed: hosts have our packages
    (lab / "cluster").symlink_to(REPOSITORY / "cluster")
    (lab / "constraints.txt").symlink_to(REPOSITORY / "constraints.txt")
    for name in ("key", "host"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab / name)]
        subprocess.run(command, check=True)
    (lab / "sshd_config").write_text(
        f"HostKey {lab}/host\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "PidFile none\nStrictModes no\n"
    )
    kept = [sys.prefix, sys.base_prefix, str(REPOSITORY), str(lab)]
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "LANG": "C.UTF-8",
        "KEPT": " ".join(k for k in kept if not k.startswith("/usr")),
        "LAB": str(lab),
        "PYTHON": sys.executable,
        "REPOSITORY": str(REPOSITORY),
    }
    command = [*UNSHARE, "--mount-proc", "bash", "-c", INSIDE, "client", "client"]
    with (lab / "lab.log").open("wb") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=1500)
    if done.returncode:
        raise RuntimeError((lab / "lab.log").read_text(errors="replace")[-6000:])
    seen: dict[str, Any] = json.loads((lab / "seen.json").read_text())
    return seen


def inside(lab: Path) -> None:
    """The client's part: start the hosts, then do as cluster/README.md says."""
    if os.getpid() != 1:  # else a `ray stop` would end what is not ours
        raise RuntimeError("not the first process of a namespace of its own")
    address = f"ip link add name lab type bridge; ip addr add {CLIENT}/24 dev lab"
    shell(f"{address}; ip link set lab up")
    for name, ip in (("head", HEAD), ("worker", WORKER)):
        start_host(name, ip, CLIENT)
    token = write_secrets(Path.home())
    config = lab / "on_prem.yaml"
    config.write_text(yaml.safe_dump(with_our_hosts(lab)))
    os.chdir(lab)
    os.environ["RAY_UP_enable_autoscaler_v2"] = "0"  # noqa: SIM112 - Ray's own spelling
    until(lambda: not shell(f"{ssh(lab)} root@{WORKER} true", check=False)[0], 30)
    seen: dict[str, Any] = {"seconds": {}}
    with timed(seen, "up"):
        up = shell(f"ray up -y {config}")[1]
    with timed(seen, "worker"):
        (lab / "wait.py").write_text(WAIT)
        shell(f"ray exec {config} 'python {lab}/wait.py'")
    look(lab, config, seen)
    found = {"ray up": up, "bootstrap": on(lab, HEAD, "cat ~/ray_bootstrap_config.yaml")}
    found["logs"] = on(lab, HEAD, "cat /tmp/ray/session_latest/logs/*.* /tmp/ray/*.json || true")
    found["processes"] = on(lab, HEAD, "ps -eo args") + on(lab, WORKER, "ps -eo args")
    found["jobs"] = on(lab, HEAD, ". ~/node.env; ray job list --log-style=record")
    seen["leaks"] = [
        f"{what} in {where}"
        for where, text in found.items()
        for what, secret in (("token", token), ("password", SECRET))
        if secret in text
    ]
    with timed(seen, "down"):
        shell(f"ray down -y {config}")
    with timed(seen, "worker ends"):  # by itself: `ray down` stops the head alone
        until(lambda: not running(lab, WORKER), 180)
    seen["left"] = [ip for ip in (HEAD, WORKER) if running(lab, ip)]
    seen["tls"] = tls(lab)
    (lab / "seen.json").write_text(json.dumps(seen))


def tls(lab: Path) -> dict[str, Any]:
    """A head and a worker that speak TLS, with certificates as docs/security.md makes them."""
    ca = f"-CA {lab}/ca.crt -CAkey {lab}/ca.key -CAcreateserial -days 30"
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    shell(f"{new} -x509 -days 30 -subj /CN=t2i-ray -keyout {lab}/ca.key -out {lab}/ca.crt")
    for ip, start in (
        (HEAD, "--head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1"),
        (WORKER, f"--address={HEAD}:6379 --num-cpus=1"),
    ):
        names = f"subjectAltName=IP:{ip},IP:127.0.0.1,DNS:localhost"
        (lab / f"{ip}.ext").write_text(names)
        shell(f"{new} -subj /CN={ip} -keyout {lab}/{ip}.key -out {lab}/{ip}.csr")
        shell(
            f"openssl x509 -req -in {lab}/{ip}.csr {ca} -extfile {lab}/{ip}.ext -out {lab}/{ip}.crt"
        )
        settings = {"CERT": f"SERVER_CERT={lab}/{ip}.crt", "KEY": f"SERVER_KEY={lab}/{ip}.key"}
        settings["CA"] = f"CA_CERT={lab}/ca.crt"
        lines = [f"export RAY_TLS_{value}" for value in settings.values()]
        text = "\n".join([*lines, "export RAY_USE_TLS=1", f"export HEAD={HEAD}", ""])
        (lab / f"{ip}.env").write_text(text)
        on(lab, ip, f". ~/node.env; . {lab}/{ip}.env; ray start {start} --node-ip-address={ip}")
    (lab / "tls.py").write_text(TLS)
    environment = f". ~/node.env; . {lab}/{HEAD}.env"
    seen: dict[str, Any] = {"seconds": {}}
    seen |= marked("TLS", on(lab, HEAD, f"{environment}; python {lab}/tls.py"))
    plain = f". ~/node.env; timeout 10 ray status --address {HEAD}:6379"
    seen["without"] = shell(f"{ssh(lab)} root@{HEAD} {shlex.quote(plain)}", check=False)[0]
    with timed(seen, "notice"):
        seen["left"] = notice(lab)
    return seen


def look(lab: Path, config: Path, seen: dict[str, Any]) -> None:
    """What runs on the hosts, who may reach it, and whether a job does what it should."""
    for name, ip in (("head", HEAD), ("worker", WORKER)):
        listening = on(lab, ip, "ss -ltnpH")
        (lab / f"ports.{name}").write_text(listening)
        seen[f"{name}_ports"] = sorted({line.split()[3] for line in listening.splitlines()})
        seen[f"{name}_modes"] = on(
            lab, ip, "stat -c %a ~/.ray/auth_token ~/.t2i_ray/secrets.env"
        ).split()
    (lab / "job.py").write_text(JOB)
    (lab / "ask.py").write_text(ASK)
    seen["asked"] = marked("ASK", on(lab, HEAD, f"python3 {lab}/ask.py"))
    submit = f"ray job submit --address http://127.0.0.1:8265 -- python {lab}/job.py"
    with timed(seen, "job"):
        seen["job"] = marked("JOB", shell(f"ray exec {config} {shlex.quote(submit)}")[1])


def running(lab: Path, ip: str) -> bool:
    """Whether a raylet is left on a host."""
    return "raylet" in on(lab, ip, "ps -eo comm")


def notice(lab: Path) -> bool:
    """cluster/spot_notice.sh on the worker, with a cloud's answers; whether its raylet left."""
    (lab / "cloud.py").write_text(CLOUD)
    cloud = f"setsid python3 {lab}/cloud.py </dev/null >/dev/null 2>&1 &"
    on(lab, WORKER, f"{cloud} until curl -s 127.0.0.1:8169; do sleep 0.1; done")
    command = f"METADATA=http://127.0.0.1:8169 sh {REPOSITORY}/cluster/spot_notice.sh aws 60"
    on(lab, WORKER, f". ~/node.env; . {lab}/{WORKER}.env; {command}")
    until(lambda: not running(lab, WORKER), 90)
    return True


def with_our_hosts(lab: Path) -> dict[str, Any]:
    """The shipped file, with these hosts, their key, and no installation from the network."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster/on_prem.yaml").read_text())
    config["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(lab / "key")}
    path = f"export PYTHONPATH={REPOSITORY}"
    config["setup_commands"] = [
        f"ln -sfn {sys.prefix} ~/t2i-venv",
        f"echo '{path}; . ~/node.env' >> ~/.bashrc",
    ]
    return config


def write_secrets(home: Path) -> str:
    """Token and password, as cluster/README.md has them made; the token."""
    os.umask(0o077)
    token = secrets.token_hex(32)
    for name, text in (
        (".ray/auth_token", token),
        (".t2i_ray/secrets.env", f"export MLFLOW_TRACKING_PASSWORD={SECRET}\n"),
    ):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text)
    return token


def marked(word: str, text: str) -> Any:
    lines = [line for line in text.splitlines() if f"{word} " in line and line.endswith(("}", "]"))]
    return json.loads(lines[-1].partition(f"{word} ")[2])


@contextlib.contextmanager
def timed(seen: dict[str, Any], what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seen["seconds"][what] = round(time.monotonic() - start, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]))
    elif reason := lacking():
        sys.exit(reason)
    else:
        place = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()).resolve()
        print(json.dumps(run(place), indent=1))
