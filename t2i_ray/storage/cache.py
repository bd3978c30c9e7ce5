"""A node's copies of what lies on S3: files named by their content, of a bounded size.

All processes of a user on the node share them. Who asks for a file first downloads it, others wait.
When there is more than the limit, the files that were not used for the longest time go, but none
that a living process has asked for: it may have mapped it, or be about to.

Below the folder:

    <name>           a copy, complete and verified; its time is that of its last use
    <name>.part      a download, locked by who makes it
    users/<id>       the names that one process has asked for, locked as long as it lives
    lock             held shared to say what is in use, and alone to remove files
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t2i_ray.config import UserError

FOLDER, LIMIT = "T2I_RAY_CACHE", "T2I_RAY_CACHE_GB"  # environment variables
DEFAULT_LIMIT = 50.0  # GB
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(_SHA256.pattern + r"(\.part)?")

# What this process has asked for, by folder: the descriptor of its list, and what is in that.
_noted: dict[Path, tuple[int, set[str]]] = {}
_guard = threading.Lock()


class Cache:
    """A folder of copies.

    Args:
        folder: where they are.
        limit: bytes above which copies that nobody uses are removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    @classmethod
    def of_node(cls) -> Cache:
        """The one that the environment names. Raises UserError: the limit is no number."""
        folder = Path(os.environ.get(FOLDER) or "~/.cache/t2i_ray").expanduser()
        text = os.environ.get(LIMIT) or str(DEFAULT_LIMIT)
        try:
            limit = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            limit = -1
        if limit < 0:
            raise UserError(f"{LIMIT}={text}: give the cache's size in GB, such as 50")
        return cls(folder, limit)

    def get(self, name: str, download: Callable[[Path], object]) -> Path:
        """The copy of this name, which stays as long as this process lives.

        Args:
            name: 64 hex digits.
            download: fills the file that it is given, if there is no copy yet; what it raises is
                passed on.

        Raises:
            OSError: there is no room, or the folder can't be written to.
            ValueError: the name is none.
        """
        if not _SHA256.fullmatch(name):  # a manifest's word: it might lead out of the folder
            raise ValueError(f"{name!r} is no sha256 in hex")
        kept = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._use(kept):
            with _locked_part(kept) as part:
                # Another process may have made it while this one waited.
                if part is None or self._use(kept):
                    continue
                download(part)
                with self._lock(fcntl.LOCK_SH):
                    self._note(name)  # before it is there: nobody is to remove it
                    part.replace(kept)
            self.trim()
        return kept

    def trim(self) -> None:
        """Remove what nobody uses, the least recently used first, until the limit is kept."""
        if sum(size for _, size, _ in self._files()) <= self.limit:
            return
        with self._lock(fcntl.LOCK_EX):
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            used = self._in_use()
            for _, size, path in files:
                if total <= self.limit:
                    break
                if path.suffix == ".part":
                    total -= size if _removed_unlocked(path) else 0
                elif path.name not in used:
                    path.unlink(missing_ok=True)
                    total -= size

    def _use(self, kept: Path) -> bool:
        """Whether there is a copy; if so it stays."""
        if not kept.exists():  # without the lock, which whoever removes files may hold for long
            return False
        with self._lock(fcntl.LOCK_SH):
            if not kept.exists():
                return False
            self._note(kept.name)
        os.utime(kept, ns=(now := time.time_ns(), now))
        return True

    def _note(self, name: str) -> None:
        """Write down that this process uses it. The lock must be held."""
        with _guard:
            if self.folder not in _noted:
                users = self.folder / "users"
                users.mkdir(exist_ok=True)
                # Open until the process ends; its lock goes with it, however it ends.
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                descriptor = os.open(users / uuid.uuid4().hex, flags, 0o644)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _noted[self.folder] = (descriptor, set())
            descriptor, names = _noted[self.folder]
            if name not in names:
                os.write(descriptor, f"{name}\n".encode())
                names.add(name)

    def _in_use(self) -> set[str]:
        """What living processes have asked for. The lock must be held alone."""
        names: set[str] = set()
        for path in (self.folder / "users").glob("*"):
            if not _removed_unlocked(path):
                names |= set(path.read_text(encoding="ascii").split())
        return names

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time of last use in ns, size in bytes and path of all copies and downloads."""
        found = []
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        return found

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, kind)
            yield


@contextmanager
def _locked_part(kept: Path) -> Iterator[Path | None]:
    """The file to download into, this process's alone; None if another has dealt with it."""
    part = kept.with_name(f"{kept.name}.part")
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is(file.fileno(), part):  # its maker has renamed it, or it was removed
            yield None
            return
        try:
            yield part
        finally:
            if _is(file.fileno(), part):
                part.unlink()


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _removed_unlocked(path: Path) -> bool:
    """Remove a file unless a living process holds its lock; whether it is gone."""
    try:
        with path.open("r+b") as file:  # NFS locks alone what is open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
