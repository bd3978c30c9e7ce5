"""A store that waits while it is away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from t2i_ray.storage.base import Stamp, Store, T, patiently


class PatientStore(Store):
    """Another store, asked again and again while it is away.

    Args:
        store: the other one; ``hurried()`` gives it back.
        seconds: until its last error is raised.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        self.uri = store.uri

    def read(self, key: str) -> bytes:
        """See Store."""
        return self._ask(lambda: self._store.read(key))

    def read_part(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        return self._ask(lambda: self._store.read_part(key, start, length))

    def stamp(self, key: str) -> Stamp:
        """See Store."""
        return self._ask(lambda: self._store.stamp(key))

    def write(self, key: str, data: bytes) -> None:
        """See Store."""
        self._ask(lambda: self._store.write(key, data))

    def create(self, key: str, data: bytes) -> bool:
        """See Store."""
        return self._ask(lambda: self._store.create(key, data))

    def upload(self, path: Path, key: str) -> None:
        """See Store."""
        self._ask(lambda: self._store.upload(path, key))

    def fetch(self, key: str, sha256: str | None = None) -> Path:
        """See Store."""
        return self._ask(lambda: self._store.fetch(key, sha256))

    def list(self, prefix: str = "") -> list[str]:
        """See Store."""
        return self._ask(lambda: self._store.list(prefix))

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """See Store."""
        return self._ask(lambda: self._store.stamps(prefix))

    def exists(self, key: str) -> bool:
        """See Store."""
        return self._ask(lambda: self._store.exists(key))

    def delete(self, prefix: str) -> None:
        """See Store."""
        self._ask(lambda: self._store.delete(prefix))

    def abort_uploads(self, prefix: str = "") -> None:
        """See Store."""
        self._ask(lambda: self._store.abort_uploads(prefix))

    def within(self, prefix: str) -> PatientStore:
        """See Store."""
        return PatientStore(self._store.within(prefix), self._seconds)

    def hurried(self) -> Store:
        """See Store."""
        return self._store.hurried()

    def _ask(self, action: Callable[[], T]) -> T:
        return patiently(action, self._seconds)
