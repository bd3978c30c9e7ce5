"""Real servers for the tests, on loopback, ended by their process ids."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import boto3

NEEDED = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "monmaptool", "ceph-authtool", "setpriv")


def missing_programs() -> list[str]:
    return [name for name in NEEDED if shutil.which(name) is None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server listens, a bucket in it, and the environment to reach it."""

    endpoint: str
    bucket: str
    env: dict[str, str]
    server: Radosgw  # for outages: stop_gateway, start_gateway


class Redis:
    """A Redis server that asks for a password, in which Ray's head keeps its state."""

    def __init__(self) -> None:
        self.port = free_port()
        self.password = f"planted-{secrets.token_hex(8)}"  # tests look where it must not be

    def start(self) -> None:
        self._process = subprocess.Popen(
            # The kernel ends it, should this process be killed before it can.
            ["setpriv", "--pdeathsig", "KILL", "redis-server", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdin
        with self._process.stdin as settings:
            settings.write(
                f"port {self.port}\nbind 127.0.0.1\nrequirepass {self.password}\n"
                'save ""\ndir /tmp\n'
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("redis-server did not start") from None
                time.sleep(0.1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Radosgw:
    """Ceph in its smallest form: one monitor, one OSD in a sparse file, one S3 gateway.

    The daemons run in the foreground as our children, so that stopping them is sure.
    """

    access_key = "test-access-key"
    secret_key = "planted-secret-b7c1e9"  # tests look for it where it must not be
    env: ClassVar = {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.children: list[subprocess.Popen[bytes]] = []
        for name in ("mon", "osd", "rgw", "run"):
            (folder / name).mkdir(parents=True)

    def start(self) -> None:
        self._configure()
        self._spawn("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._call("ceph", "osd", "new", osd, "0")
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-i", "0")
        self._until(lambda: "1 up" in self._call("ceph", "osd", "stat"))
        self.start_gateway()
        self._call(
            "radosgw-admin", "-n", "client.rgw.a", "user", "create", "--uid", "test",
            "--display-name", "test", "--access-key", self.access_key,
            "--secret-key", self.secret_key,
        )  # fmt: skip

    def start_gateway(self) -> None:
        self._spawn("radosgw", "-n", "client.rgw.a")
        self._until(self.answers)

    def stop_gateway(self) -> None:
        """Connections are refused from here on; what is stored stays."""
        gateway = self.children.pop()
        gateway.kill()
        gateway.wait()

    def stop(self) -> None:
        for child in reversed(self.children):
            child.kill()
            child.wait()
        self.children.clear()

    def _configure(self) -> None:
        at, cluster, mon_port = self.folder, str(uuid.uuid4()), free_port()
        (at / "ceph.conf").write_text(
            f"""
            [global]
            fsid = {cluster}
            mon host = v2:127.0.0.1:{mon_port}/0
            mon initial members = a
            public addr = 127.0.0.1
            cluster addr = 127.0.0.1
            keyring = {at}/keyring
            run dir = {at}/run
            admin socket = {at}/run/$name.asok
            log file = {at}/$name.log
            osd pool default size = 1
            osd pool default min size = 1
            mon allow pool size one = true
            osd pool default pg num = 4
            osd pool default pgp num = 4
            osd crush chooseleaf type = 0
            mon max pg per osd = 1000
            auth allow insecure global id reclaim = false
            [mon.a]
            mon data = {at}/mon
            [osd.0]
            osd data = {at}/osd
            osd objectstore = bluestore
            bluestore block size = 2147483648
            bluestore block create = true
            osd memory target = 939524096
            osd class load list = *
            osd class default list = *
            [client.rgw.a]
            rgw data = {at}/rgw
            rgw frontends = beast endpoint=127.0.0.1:{self.port}
            rgw thread pool size = 16
            """.replace("\n            ", "\n")
        )
        keyring = str(at / "keyring")
        for name, *capabilities in (
            ("mon.", "mon=allow *"),
            ("client.admin", "mon=allow *", "osd=allow *", "mgr=allow *"),
            ("client.rgw.a", "mon=allow rw", "osd=allow rwx", "mgr=allow rw"),
            ("osd.0", "mon=allow profile osd", "osd=allow *"),
        ):
            caps = [word for cap in capabilities for word in ("--cap", *cap.split("="))]
            create = [] if (at / "keyring").exists() else ["-C"]
            self._run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *caps)
        monmap, address = str(at / "monmap"), f"[v2:127.0.0.1:{mon_port}]"
        self._run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, monmap)
        self._call("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr[-1000:]}")
        return done.stdout

    def _call(self, program: str, *arguments: str) -> str:
        return self._run(program, "-c", str(self.folder / "ceph.conf"), *arguments)

    def _spawn(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.out").open("wb") as out:
            # The kernel ends them, should this process be killed before it can.
            tied = ["setpriv", "--pdeathsig", "KILL", program, "-f"]
            command = [*tied, "-c", str(self.folder / "ceph.conf"), *arguments]
            self.children.append(subprocess.Popen(command, stdout=out, stderr=out))

    def _until(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [child.args for child in self.children if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"radosgw did not start: ended {ended}, see {self.folder}")
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()  # an answer, too
        except OSError:
            return False
        return True


def start_s3(folder: Path) -> S3Server:
    """A real S3 server with a bucket."""
    server = Radosgw(folder)
    try:
        server.start()
        boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        ).create_bucket(Bucket="t2i-ray-tests")
    except BaseException:
        server.stop()
        raise
    return S3Server(server.endpoint, "t2i-ray-tests", server.env, server)
