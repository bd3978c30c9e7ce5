"""The node's cache: what goes when it is full, what stays, and many processes at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from t2i_ray.config import UserError
from t2i_ray.storage.cache import Cache, _noted  # noqa: F401 - for CROWD

SIZE = 1000
#: A process that asks for copies, says so, and lives until its input ends.
USER = """
import sys, test_cache
for number in map(int, sys.argv[2:]):
    test_cache.get(test_cache.Path(sys.argv[1]), number, 10**9)
print("ready", flush=True)
sys.stdin.read()
"""
#: One that asks for many while others do, with room for three.
CROWD = """
import os, random, sys, test_cache
random.seed(int(sys.argv[2]))
for _ in range(60):
    number = random.randrange(12)
    path = test_cache.get(test_cache.Path(sys.argv[1]), number, 3 * test_cache.SIZE)
    assert path.read_bytes() == test_cache.content(number)
    if random.random() < 0.5:  # as a process that has ended and another that begins
        descriptor, _ = test_cache._noted.pop(test_cache.Path(sys.argv[1]))
        os.close(descriptor)
"""


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def name(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def get(folder: Path, number: int, limit: int) -> Path:
    def download(path: Path) -> None:
        path.write_bytes(content(number))

    return Cache(folder, limit).get(name(number), download)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


def used_by_a_process_that_has_ended(folder: Path, *numbers: int) -> None:
    assert start(USER, folder, *numbers).communicate()[0] == "ready\n"


def kept(folder: Path) -> list[int]:
    return [number for number in range(12) if (folder / name(number)).exists()]


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    used_by_a_process_that_has_ended(tmp_path, 0, 1, 2, 3, 0)
    assert kept(tmp_path) == [0, 1, 2, 3]
    get(tmp_path, 4, 3 * SIZE)
    assert kept(tmp_path) == [0, 3, 4]
    assert get(tmp_path, 1, 3 * SIZE).read_bytes() == content(1)  # downloaded again
    assert kept(tmp_path) == [0, 1, 4]


def test_what_a_living_process_uses_stays(tmp_path: Path) -> None:
    user = start(USER, tmp_path, 0, 1)
    assert user.stdout
    assert user.stdout.readline() == "ready\n"
    used_by_a_process_that_has_ended(tmp_path, 2, 3)
    get(tmp_path, 4, SIZE)  # more than the limit is in use
    assert kept(tmp_path) == [0, 1, 4]
    user.kill()
    user.communicate()
    Cache(tmp_path, SIZE).trim()
    assert kept(tmp_path) == [4]


def test_larger_than_the_limit(tmp_path: Path) -> None:
    assert get(tmp_path, 0, 0).read_bytes() == content(0)
    assert get(tmp_path, 0, 0).read_bytes() == content(0)


def test_what_a_killed_download_left_goes_and_a_live_one_stays(tmp_path: Path) -> None:
    (tmp_path / f"{name(1)}.part").write_bytes(content(1))
    (tmp_path / "something else").write_bytes(content(1))

    def download(path: Path) -> None:
        path.write_bytes(content(2))
        get(tmp_path, 3, SIZE)  # another one ends meanwhile, and makes room
        assert path.read_bytes() == content(2)

    Cache(tmp_path, SIZE).get(name(2), download)
    assert kept(tmp_path) == [2, 3]
    assert not list(tmp_path.glob("*.part"))
    assert (tmp_path / "something else").exists()


def test_a_download_that_failed_leaves_nothing(tmp_path: Path) -> None:
    def download(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("broken off")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken off"):
            Cache(tmp_path, SIZE).get(name(1), download)
    assert not list(tmp_path.glob(f"{name(1)}*"))


def test_many_processes_at_once(tmp_path: Path) -> None:
    crowd = [start(CROWD, tmp_path, seed) for seed in range(4)]
    for process in crowd:
        process.communicate(timeout=120)
        assert process.returncode == 0
    Cache(tmp_path, 3 * SIZE).trim()
    assert len(kept(tmp_path)) == 3
    assert not list(tmp_path.glob("*.part"))


def test_the_limit_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_RAY_CACHE", str(tmp_path))
    assert Cache.of_node().folder == tmp_path
    assert Cache.of_node().limit == 50e9
    monkeypatch.setenv("T2I_RAY_CACHE_GB", "1.5")
    assert Cache.of_node().limit == 1.5e9
    for bad in ("much", "-1", "inf", "nan"):
        monkeypatch.setenv("T2I_RAY_CACHE_GB", bad)
        with pytest.raises(UserError, match=f"T2I_RAY_CACHE_GB={bad}: .*such as 50"):
            Cache.of_node()
