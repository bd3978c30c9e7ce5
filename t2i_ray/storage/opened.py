"""A key of a store as a file to read from, for libraries that want one."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast

from t2i_ray.storage.base import Store

_AHEAD = 1 << 20  # bytes that one request brings, at least


def open_key(store: Store, key: str) -> BinaryIO:
    """A seekable file that reads a key in pieces, as they are asked for.

    Raises:
        MissingKey: there is nothing under the key.
    """
    return cast(BinaryIO, io.BufferedReader(_Pieces(store, key), _AHEAD))


class _Pieces(io.RawIOBase):
    """The unbuffered file below it: one read, one request. Nothing is held open."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._place, self._size = 0, store.stamp(key).size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a place before the start of the file")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._store.read_part(self._key, self._place, len(buffer))
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)
