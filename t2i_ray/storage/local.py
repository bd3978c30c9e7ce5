"""A store in a folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from t2i_ray.storage.base import MissingKey, Stamp, StorageError, Store, check_key


class LocalStore(Store):
    """A folder. Files are written beside their place, synced to disk, then renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def read(self, key: str) -> bytes:
        """See Store."""
        with self._errors("read", key):
            return self._path(key).read_bytes()

    def read_part(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        with self._errors("read", key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def stamp(self, key: str) -> Stamp:
        """See Store."""
        with self._errors("read", key):
            status = self._path(key).stat()
        if not stat.S_ISREG(status.st_mode):
            raise MissingKey(f"{self.uri}/{key}")
        return Stamp(status.st_size, str(status.st_mtime_ns))

    def write(self, key: str, data: bytes) -> None:
        """See Store."""
        self._place(key, lambda file: file.write(data))

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._place(key, lambda file: file.write(data), only_if_absent=True)

    def upload(self, path: Path, key: str) -> None:
        """See Store."""
        with path.open("rb") as source:
            self._place(key, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def fetch(self, key: str, sha256: str | None = None) -> Path:  # noqa: ARG002 - for S3
        """See Store."""
        if not self.exists(key):
            raise MissingKey(f"{self.uri}/{key}")
        return self._path(key)

    def list(self, prefix: str = "") -> list[str]:
        """See Store."""
        top = self._path(prefix.rstrip("/")) if prefix else self.root
        keys = []
        with self._errors("list", prefix):
            for folder, _, files in os.walk(top, onerror=_raise_unless_missing, followlinks=True):
                # As exists() has it: a link that leads nowhere is no key.
                found = [Path(folder, file) for file in files if not _PART.fullmatch(file)]
                keys += [path.relative_to(self.root).as_posix() for path in found if path.is_file()]
        return sorted(keys)

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """See Store."""
        return {key: self.stamp(key) for key in self.list(prefix)}

    def exists(self, key: str) -> bool:
        """See Store."""
        with self._errors("look for", key):
            return self._path(key).is_file()

    def delete(self, prefix: str) -> None:
        """See Store."""
        path = self._path(prefix.rstrip("/"))
        with self._errors("delete", prefix):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def within(self, prefix: str) -> LocalStore:
        """See Store."""
        return LocalStore(self._path(prefix.rstrip("/")))

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _place(
        self, key: str, fill: Callable[[BinaryIO], object], *, only_if_absent: bool = False
    ) -> bool:
        target = self._path(key)
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        with self._errors("write", key):
            _make_folder(target.parent)
            try:
                with temporary.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                if only_if_absent:
                    os.link(temporary, target)
                else:
                    temporary.replace(target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync(target.parent)
        return True

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if action == "read":
                raise MissingKey(f"{self.uri}/{key}") from None
            raise _local_error(f"{self.uri}: could not {action} {key}", error) from error
        except OSError as error:
            raise _local_error(f"{self.uri}: could not {action} {key}", error) from error


_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # a file not yet renamed, or left by a killed process


def _local_error(what: str, error: OSError) -> StorageError:
    return StorageError(f"{what}: {error.strerror}", errno.errorcode.get(error.errno or 0, ""))


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each entry synced: a file in it must survive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
