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
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = ("unshare", "mount", "ip", "ssh", "ssh-keygen", "rsync", "sshd")
UNSHARE = ("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child")
HEAD, WORKER, CLIENT = "10.213.77.2", "10.213.77.3", "10.213.77.1"
SECRET = "planted-secret-5d2f70"  # looked for where it must not be

#: A machine of its own out of what this process has: only these folders are seen from it.
MACHINE = """
set -eu
hostname "$1"
mount -t tmpfs tmpfs /run
for folder in $KEPT; do
  mkdir -p "/run/kept$folder"
  mount --rbind "$folder" "/run/kept$folder"
done
for folder in /tmp /root /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
chmod 700 /root
for folder in $KEPT; do
  mkdir -p "$folder"
  mount --rbind "/run/kept$folder" "$folder"
done
ip link set lo up
export HOME=/root
"""
#: One that can be logged in to. Its first process reaps what Ray leaves behind.
HOST = (
    MACHINE
    + """
until ip link set eth0 up 2>/dev/null; do sleep 0.05; done
ip addr add "$2/24" dev eth0
ip route add default via "$3"  # Ray finds its address by asking for a route to somewhere
mkdir -p -m 700 /root/.ssh /run/sshd
cp "$LAB/key.pub" /root/.ssh/authorized_keys
"$(command -v sshd)" -D -e -f "$LAB/sshd_config" 2>"$LAB/$1.log" &
wait
"""
)
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
    "secret": os.environ.get("MLFLOW_TRACKING_PASSWORD"),
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


def lacking() -> str | None:
    """Why the three machines can't be made here; None if they can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [program for program in PROGRAMS if not shutil.which(program, path=path)]:
        return f"no {', '.join(missing)}: apt-get install openssh-server rsync iproute2 util-linux"
    script = "ip link add name lab type bridge && mount -t tmpfs tmpfs /run && test $$ = 1"
    tried = subprocess.run(
        [*UNSHARE, "--mount-proc", "sh", "-c", script], capture_output=True, text=True
    )
    return f"no right to make namespaces: {tried.stderr.strip()}" if tried.returncode else None


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
        done = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=540)
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
        start_host(name, ip)
    token = write_secrets(Path.home())
    config = lab / "on_prem.yaml"
    config.write_text(yaml.safe_dump(with_our_hosts(lab)))
    os.chdir(lab)
    os.environ["RAY_UP_enable_autoscaler_v2"] = "0"  # noqa: SIM112 - Ray's own spelling
    until(lambda: not shell(f"ssh {SSH(lab)} root@{WORKER} true", check=False)[0], 30)
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
    seen["left"] = [ip for ip in (HEAD, WORKER) if "raylet" in on(lab, ip, "ps -eo args")]
    (lab / "seen.json").write_text(json.dumps(seen))


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


def start_host(name: str, ip: str) -> None:
    command = [*UNSHARE, "--mount-proc", "bash", "-c", HOST, name, name, ip, CLIENT]
    process = subprocess.Popen(command)
    ours = Path("/proc/self/ns/net").readlink()
    until(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != ours, 10)
    shell(f"ip link add name {name} type veth peer name eth0 netns {process.pid}")
    shell(f"ip link set {name} master lab up")


def SSH(lab: Path) -> str:  # noqa: N802 - options, in capitals as a constant would be
    checks = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return f"-i {lab}/key {checks} -o ConnectTimeout=5"


def on(lab: Path, ip: str, command: str) -> str:
    """A command's output on a host, past Ray."""
    return shell(f"ssh {SSH(lab)} root@{ip} {shlex.quote(command)}")[1]


def marked(word: str, text: str) -> Any:
    lines = [line for line in text.splitlines() if f"{word} " in line and line.endswith(("}", "]"))]
    return json.loads(lines[-1].partition(f"{word} ")[2])


def shell(command: str, check: bool = True) -> tuple[int, str]:
    """Exit code and output (also shown), both streams in one."""
    print(f"$ {command}", flush=True)
    done = subprocess.run(
        command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    text = done.stdout.decode(errors="replace")
    print(text, flush=True)
    if check and done.returncode:
        raise RuntimeError(f"{command}: exit code {done.returncode}")
    return done.returncode, text


def until(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)


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
