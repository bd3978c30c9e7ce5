"""Machines made of Linux namespaces: own processes, network, /tmp, /run, /dev/shm and home.

They end with the first process of whoever made them. Needs root or the like, and openssh-server.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = (
    "unshare", "mount", "ip", "ss", "ssh", "ssh-keygen", "sshd", "openssl", "rsync", "curl",
)  # fmt: skip
UNSHARE = ("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child")

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


def lacking() -> str | None:
    """Why the three machines can't be made here; None if they can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [program for program in PROGRAMS if not shutil.which(program, path=path)]:
        packages = "openssh-server rsync iproute2 util-linux curl openssl"
        return f"no {', '.join(missing)}: apt-get install {packages}"
    script = "ip link add name lab type bridge && mount -t tmpfs tmpfs /run && test $$ = 1"
    tried = subprocess.run(
        [*UNSHARE, "--mount-proc", "sh", "-c", script], capture_output=True, text=True
    )
    return f"no right to make namespaces: {tried.stderr.strip()}" if tried.returncode else None


def start_host(name: str, ip: str, router: str) -> None:
    """A machine that can be logged in to, on the bridge ``lab``."""
    command = [*UNSHARE, "--mount-proc", "bash", "-c", HOST, name, name, ip, router]
    process = subprocess.Popen(command)
    ours = Path("/proc/self/ns/net").readlink()
    until(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != ours, 10)
    shell(f"ip link add name {name} type veth peer name eth0 netns {process.pid}")
    shell(f"ip link set {name} master lab up")


def ssh(lab: Path) -> str:
    """The command, with its options."""
    checks = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return f"ssh -i {lab}/key {checks} -o ConnectTimeout=5"


def on(lab: Path, ip: str, command: str) -> str:
    """A command's output on a host, past Ray."""
    return shell(f"{ssh(lab)} root@{ip} {shlex.quote(command)}")[1]


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
