"""What every store does, and how it fails."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class MissingKey(Exception):  # noqa: N818 - an answer as often as an error
    """There is nothing under this key."""


class StorageError(Exception):
    """The store could not be reached, or refused, after retries. One line without secrets.

    ``code`` is S3's error code, botocore's exception class or the errno's name.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Stamp(NamedTuple):
    """By what a key's content is known without reading it."""

    size: int  # bytes
    version: str  # S3's ETag; of a local file the time of its last change


class Store(ABC):
    """Flat keys below a root URI, separated by '/'. Any call may raise StorageError.

    A malformed key (absolute, with '..' or a backslash) is a ValueError.
    """

    uri: str  # absolute, without credentials

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes under a key. Raises MissingKey."""

    @abstractmethod
    def read_part(self, key: str, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start`` on: fewer at the end, none beyond it.

        Raises MissingKey.
        """

    @abstractmethod
    def stamp(self, key: str) -> Stamp:
        """Size and version of what is under a key. Raises MissingKey."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put bytes under a key, replacing what was there: whole, or not at all."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Put bytes under a key unless it exists; False if it does. One of many callers wins."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Put a file's content under a key: whole, or not at all."""

    @abstractmethod
    def fetch(self, key: str, sha256: str | None = None) -> Path:
        """A local file with this content, to be mapped and not changed. Raises MissingKey.

        A local store gives its own file; S3 a copy in this node's cache, verified by its sum.
        Without a sum it is whatever is there now, cached as long as the server says it is that.
        On S3 a sum that can be none is a ValueError.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys below ``prefix/`` (none: all there are), sorted, relative to the root."""

    @abstractmethod
    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """The same keys in the same order, each with its stamp."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether something is under this very key."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Remove the key and everything below ``prefix/``; it may be absent."""

    def abort_uploads(self, prefix: str = "") -> None:  # noqa: B027 - a local store has none
        """Remove what was begun to be uploaded below ``prefix/`` and is not complete.

        S3 keeps the parts of a large file whose writer was killed, unseen and billed. Those who
        still write there fail, so it is for whoever alone has the right to.
        """

    def read_json(self, key: str, default: Any = None) -> Any:
        """The JSON value under a key; the default if there is none. Raises ValueError: not JSON."""
        try:
            return json.loads(self.read(key))
        except MissingKey:
            return default
        except RecursionError:
            raise ValueError(f"{self.uri}/{key}: nested too deeply") from None

    def write_json(self, key: str, value: Any) -> None:
        """Replace the key by a JSON value."""
        self.write(key, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    @abstractmethod
    def within(self, prefix: str) -> Store:
        """The same store, rooted deeper."""

    def hurried(self) -> Store:
        """The same store, which gives up within seconds: to learn whether it can be used."""
        return self


def check_key(key: str) -> str:
    """The key itself. Raises ValueError if it is malformed."""
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"not a key: {key!r}; use names joined by '/', without '..'")
    return key


def patiently(action: Callable[[], T], seconds: float) -> T:
    """Do it again and again while the store is away; after so many seconds, its last error."""
    deadline, warned = time.monotonic() + seconds, False
    while True:
        try:
            return action()
        except StorageError as error:
            if time.monotonic() >= deadline:
                raise
            if not warned:
                print(f"warning: the storage is away, trying on: {error}", flush=True)
            warned = True
            time.sleep(1)
