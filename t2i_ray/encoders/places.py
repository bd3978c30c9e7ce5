"""Folders that hold an encoder: on this machine, or on S3 and then copied into its cache."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from t2i_ray.config import Storage, UserError
from t2i_ray.storage import MissingKey, StorageError, open_store


def is_remote(place: str) -> bool:
    """Whether it is an s3:// URI."""
    return place.startswith("s3://")


def local_folder(
    place: str, patterns: Sequence[str], field: str, storage: Storage | None = None
) -> Path:
    """Where the files of a place can be read: the folder itself, or a folder of links to copies.

    Args:
        place: a folder, which need not exist, or an s3:// URI.
        patterns: names of the files that are wanted, as fnmatch has them; none in folders within.
        field: of the config, for errors.
        storage: says at which endpoint and region S3 is; None: the environment does.

    Raises:
        UserError: the URI is malformed, or S3 can't be reached or refuses.
    """
    if not is_remote(place):
        return Path(place).expanduser()
    try:
        store = open_store((storage or Storage()).model_copy(update={"uri": place}))
        names = [name for name in store.list() if any(fnmatch(name, each) for each in patterns)]
        files = {name: store.fetch(name) for name in names if "/" not in name}
    except UserError as error:
        raise UserError(str(error).replace("storage.uri", field, 1)) from None
    except (StorageError, MissingKey) as error:
        raise UserError(
            f"{field}={place}: {str(error).removeprefix(f'{place}: ')}; mend the URI, "
            "storage.endpoint or the credentials"
        ) from None
    if not files:
        raise UserError(f"{field}={place}: there is nothing of {', '.join(patterns)}; mend it")
    return _linked(files)


def hash_files(files: Iterable[Path]) -> str:
    """Sha256 over names and contents of the files, whatever their order."""
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {digest}\n".encode())
    return total.hexdigest()


def _linked(files: dict[str, Path]) -> Path:
    """A folder beside the copies in which they have their names: always the same for the same."""
    cache = next(iter(files.values())).parent
    about = "".join(f"{name} {path.name}\n" for name, path in sorted(files.items()))
    folder = cache / "folders" / hashlib.sha256(about.encode()).hexdigest()
    if not folder.is_dir():
        making = folder.with_name(f"{uuid.uuid4().hex}.part")
        making.mkdir(parents=True)
        for name, path in files.items():
            (making / name).symlink_to(path.absolute())
        try:
            making.rename(folder)
        except OSError:  # another process was quicker
            for link in making.iterdir():
                link.unlink()
            making.rmdir()
    return folder.absolute()
