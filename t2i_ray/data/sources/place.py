"""Where a source lies, a local folder or an s3:// URI, and how its files are read."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from t2i_ray.config import Source, Storage, UserError
from t2i_ray.data.record import Rejected
from t2i_ray.storage import (
    LocalStore,
    MissingKey,
    Stamp,
    StorageError,
    Store,
    absolute,
    open_store,
)

Found = TypeVar("Found")

PATH = "data.source.path"
LARGEST = 64 << 20  # bytes of an image file; what is larger is rejected unread
_READERS = 8  # files at a time
_WILD = set("*?[")
# What a store says of one file alone; anything else is about the store, and ends the task.
_OF_ONE_FILE = ("EACCES", "EPERM", "ENAMETOOLONG", "ELOOP", "AccessDenied", "KeyTooLongError")


class File(NamedTuple):
    """A large file of a source, which tasks read in pieces."""

    store: Store
    key: str
    stamp: Stamp


@contextmanager
def errors_of_place() -> Iterator[None]:
    """A store that cannot be read is a UserError: it happens before any task starts."""
    try:
        yield
    except StorageError as error:
        raise UserError(f"{PATH}: {error}; mend the path, or what may read it") from None
    except MissingKey as error:  # it was there a moment ago
        raise UserError(f"{PATH}: {error} is gone; put it back") from None


def open_place(path: str, reach: Storage, *, field: str = PATH) -> Store:
    """The folder of a source, to be read from.

    Args:
        path: a local folder, or s3://bucket/prefix.
        reach: endpoint and region of S3.
        field: the config's field that holds the path, for errors.

    Raises:
        UserError: the path is malformed, or there is no such folder here.
    """
    store = open_store(reach.model_copy(update={"uri": path}), field=field)
    _check_folder(store, field)
    return store


def resolved(source: Source) -> Source:
    """The source with its local paths made absolute: one place has one name.

    Raises:
        UserError: a relative path in a Ray job.
    """
    places = {name: getattr(source, name, None) for name in ("path", "font")}
    update = {name: absolute(at, f"data.source.{name}") for name, at in places.items() if at}
    return source.model_copy(update=update)


def find_files(path: str, reach: Storage, ending: str) -> list[File]:
    """The files that a path means: itself, all of this ending in a folder, or all that match it.

    In a pattern '*' stands for anything, '/' included.

    Raises:
        UserError: there is none.
    """
    parts = path.split("/")
    wild = next((i for i, part in enumerate(parts) if _WILD & set(part)), len(parts))
    pattern = f"*{ending}"
    if wild < len(parts):
        path, pattern = "/".join(parts[:wild]) or "/", "/".join(parts[wild:])
    elif path.endswith(ending):
        return [find_file(path, reach)]
    store = open_place(path, reach)
    files = [
        File(store, key, stamp)
        for key, stamp in store.stamps().items()
        if fnmatch.fnmatchcase(key, pattern)
    ]
    if not files:
        raise UserError(
            f"{PATH}: no file {pattern} in {store.uri}; give a file, a folder or a pattern such as "
            f"folder/*{ending}"
        )
    return files


def find_file(path: str, reach: Storage) -> File:
    """The one file that a path means. Raises UserError."""
    folder, slash, name = path.rpartition("/")
    store = open_place(folder or slash or ".", reach)
    try:
        return File(store, name, store.stamp(name))
    except MissingKey:
        raise UserError(f"{PATH}={path}: no such file in {store.uri}; mend the path") from None


def look_into(files: list[File], look: Callable[[int, File], dict[str, Found]]) -> dict[str, Found]:
    """By key what is found in all of them.

    Several are looked into at a time: of those on S3 most time is waiting.

    Args:
        files: that a source's path means.
        look: gives what is in the file of this number, by keys that no other file has.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(look, range(len(files)), files)
        return {key: value for each in found for key, value in each.items()}


def check_unchanged(file: File) -> None:
    """Raises UserError if a task sees another file than the one that was looked through."""
    try:
        size = file.store.stamp(file.key).size
    except MissingKey:
        size = -1
    if size != file.stamp.size:
        raise UserError(
            f"{PATH}: {file.store.uri}/{file.key} differs between machines or changed meanwhile; "
            "put it where every node sees the same, and prepare again"
        )


def read_picture(store: Store, key: str) -> bytes:
    """An image file. Raises Rejected if it is not there, too large, or out of the folder."""
    try:
        content = store.read_part(key, 0, LARGEST + 1)
    except UnicodeEncodeError:  # a ValueError, too
        raise Rejected("no such file") from None
    except ValueError:
        raise Rejected("path leads out of the folder") from None
    except MissingKey:
        _check_folder(store, PATH)
        raise Rejected("no such file") from None
    except StorageError as error:
        if error.code not in _OF_ONE_FILE:
            raise
        raise Rejected(str(error)) from None
    return check_size(content)


def check_size(content: bytes) -> bytes:
    """The same bytes. Raises Rejected if they are too many for a picture."""
    if len(content) > LARGEST:
        raise Rejected(f"more than {LARGEST >> 20} MiB")
    return content


def read_text(path: str, name: str, reach: Storage, field: str, hint: str) -> str:
    """A text file in a folder, or elsewhere by an absolute path or URI.

    Raises:
        UserError: it cannot be read, or is not UTF-8; names the field and gives the hint.
    """
    absolute = name.startswith(("/", "~")) or "://" in name
    folder, file = posixpath.split(name if absolute else f"{path.rstrip('/')}/{name}")
    store = open_store(reach.model_copy(update={"uri": folder or "/"}), field=field)
    try:
        return store.read(file).decode("utf-8-sig")
    except (MissingKey, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{field}={name}: is not UTF-8; save it so") from None
        raise UserError(f"{field}={name}: no such file in {store.uri}; {hint}") from None


def read_all(store: Store, keys: Iterable[str]) -> list[bytes]:
    """Many small files, several at a time. Raises MissingKey."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(store.read, keys))


def require(store: Store, names: Iterable[str], kind: str) -> None:
    """Raises UserError that names each of these files and folders that is missing."""
    missing = [name for name in names if not _is_there(store, name)]
    if missing:
        raise UserError(
            f"{PATH}: {store.uri} has not the layout of {kind}: no {', '.join(missing)} in it; "
            "see docs/data.md"
        )


def _is_there(store: Store, name: str) -> bool:
    return bool(store.list(name)) if name.endswith("/") else store.exists(name)


def _check_folder(store: Store, field: str) -> None:
    if isinstance(store, LocalStore) and not store.root.is_dir():
        if store.root.exists():
            raise UserError(f"{field}={store.uri}: is no folder; see docs/data.md")
        raise UserError(
            f"{field}={store.uri}: no such folder on this machine; give the one with the data, "
            "which every node must see"
        )
