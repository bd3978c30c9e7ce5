"""A store through which only whoever still has the right may write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from t2i_ray.storage.base import Stamp, Store


class FencedStore(Store):
    """Another store, with a check before whatever changes it.

    Between the check and the change there is a moment: it is no lock.

    Args:
        store: the other one.
        check: raises if nothing may be written any more.
    """

    def __init__(self, store: Store, check: Callable[[], None]) -> None:
        self._store, self._check = store, check
        self.uri = store.uri

    def write(self, key: str, data: bytes) -> None:
        """See Store."""
        self._check()
        self._store.write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        self._check()
        return self._store.create(key, data)

    def upload(self, path: Path, key: str) -> None:
        """See Store."""
        self._check()
        self._store.upload(path, key)

    def delete(self, prefix: str) -> None:
        """See Store."""
        self._check()
        self._store.delete(prefix)

    def abort_uploads(self, prefix: str = "") -> None:
        """See Store."""
        self._check()
        self._store.abort_uploads(prefix)

    def read(self, key: str) -> bytes:
        """See Store."""
        return self._store.read(key)

    def read_part(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        return self._store.read_part(key, start, length)

    def stamp(self, key: str) -> Stamp:
        """See Store."""
        return self._store.stamp(key)

    def fetch(self, key: str, sha256: str | None = None) -> Path:
        """See Store."""
        return self._store.fetch(key, sha256)

    def list(self, prefix: str = "") -> list[str]:
        """See Store."""
        return self._store.list(prefix)

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """See Store."""
        return self._store.stamps(prefix)

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._store.exists(key)

    def within(self, prefix: str) -> FencedStore:
        """See Store."""
        return FencedStore(self._store.within(prefix), self._check)

    def hurried(self) -> FencedStore:
        """See Store."""
        return FencedStore(self._store.hurried(), self._check)
