"""The HDF5 file of the best-known PyTorch implementation of GAN-CLS (aelnouby, 2017).

    /{train,valid,test}/<picture>_<k>/     one record for each pair of picture and caption
        name, class, txt                   strings
        img                                the JPEG's bytes, opaque or uint8
        embeddings                         not read: they are of another encoder

Its five captions a picture are drawn with replacement; equal ones count once here.
"""

from __future__ import annotations

import importlib
import re
from functools import lru_cache, partial
from typing import Any

import numpy as np

from t2i_ray.config import Hdf5, Storage, UserError
from t2i_ray.data.captions import decode
from t2i_ray.data.record import SPLIT_NAMES, Rejected
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import LARGEST, PATH, File, check_unchanged, find_file

_LONGEST = 1 << 20  # bytes of a string
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises, as it happens


class Hdf5Source(Catalogue):
    """A key is ``<group>/<picture>``; its captions are those of all its records.

    Raises:
        UserError: h5py or the file is missing, or the file has another layout.
    """

    def __init__(self, config: Hdf5, reach: Storage) -> None:
        _h5py()
        self._file = find_file(config.path, reach)
        super().__init__(self._file.stamp, config.licence, partial(_find, self._file))

    def picture(self, where: str) -> bytes:
        """See Catalogue."""
        h5py = _h5py()
        try:
            return _bytes(_dataset(h5py, _open(self._file)[where], "img"), LARGEST)
        except _DAMAGE as error:
            raise Rejected(f"damaged record: {error}") from None


def _find(file: File) -> dict[str, Entry]:
    """Every picture that has records. Raises UserError."""
    try:
        return _look_through(_h5py(), _open(file), file.key)
    except _DAMAGE as error:
        raise UserError(f"{PATH}: {file.key}: damaged ({error}); fetch it anew") from None


def _look_through(h5py: Any, opened: Any, name: str) -> dict[str, Entry]:
    groups = [
        group for group in SPLIT_NAMES if isinstance(_linked(h5py, opened, group), h5py.Group)
    ]
    if not groups:
        raise UserError(
            f"{PATH}: {name} has none of the groups train, valid and test (there "
            f"are: {', '.join(map(str, opened)) or 'none'}); give a file of that layout"
        )
    return {
        f"{group}/{picture}": _entry(h5py, opened[group], group, several)
        for group in groups
        for picture, several in _records(opened[group]).items()
    }


def _records(group: Any) -> dict[str, list[str]]:
    """Picture -> the names of its records."""
    records: dict[str, list[str]] = {}
    for record in group:
        records.setdefault(re.sub(r"_\d+$", "", record), []).append(record)
    return records


def _entry(h5py: Any, opened: Any, group: str, records: list[str]) -> Entry:
    """The records of one picture."""
    where, captions, class_name, reason = f"{group}/{records[0]}", [], None, ""
    try:
        for name in records:
            record = _linked(h5py, opened, name)
            if not isinstance(record, h5py.Group):
                raise Rejected("its record is a link or a data set, not a group")
            captions.append(decode(_bytes(_dataset(h5py, record, "txt"), _LONGEST)))
            if class_name is None and "class" in record:
                class_name = decode(_bytes(_dataset(h5py, record, "class"), _LONGEST))
    except Rejected as error:
        reason = str(error)
    except _DAMAGE as error:
        reason = f"damaged record: {error}"
    return Entry(where, list(dict.fromkeys(captions)), SPLIT_NAMES[group], class_name, {}, reason)


def _linked(h5py: Any, group: Any, name: str) -> Any:
    """What a group itself holds under a name; None if nothing, or if it only points elsewhere."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    return group[name]


def _dataset(h5py: Any, record: Any, name: str) -> Any:
    data = _linked(h5py, record, name)
    if not isinstance(data, h5py.Dataset):
        raise Rejected(f"no {name} in its record")
    if data.external or data.is_virtual:  # it would read other files of this machine
        raise Rejected(f"{name} is kept in another file")
    return data


def _bytes(data: Any, most: int) -> bytes:
    """A data set's bytes: a string, opaque, or numbers of one byte."""
    if data.nbytes > most:
        raise Rejected(f"more than {most >> 20} MiB")
    value = data[()]
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, bytes):
        return value
    array = np.asarray(value)
    if array.dtype.kind == "V" or array.dtype.itemsize == 1:
        return array.tobytes()
    raise Rejected(f"{data.name} holds {array.dtype}, not bytes")


@lru_cache(maxsize=1)
def _open(file: File) -> Any:
    """The file, opened once per process. One on S3 is fetched into the node's cache.

    HDF5 reads a little here and a little there: by requests to a server that takes hours.

    Raises:
        UserError: it can't be read, or is another one by now.
    """
    check_unchanged(file)
    path = file.store.fetch(file.key)
    try:
        return _h5py().File(path, "r", locking="best-effort")
    except OSError as error:
        raise UserError(
            f"{PATH}={file.store.uri}/{file.key}: no HDF5 file that can be read ({error}); "
            "fetch it anew"
        ) from None


def _h5py() -> Any:
    """Optional, and of no use to any other source."""
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise UserError(
            "data.source.kind=hdf5: needs the h5py package; pip install t2i-ray[hdf5]"
        ) from None
