"""Parquet files that hold pictures and captions, as Hugging Face's data sets have them.

A picture is a struct {bytes, path}, of which only the bytes are used, or bytes.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data.captions import decode
from t2i_ray.data.record import SPLIT_NAMES, SPLITS, Rejected, split_by_hash, split_in_name
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import (
    PATH,
    File,
    check_size,
    check_unchanged,
    find_files,
    look_into,
)
from t2i_ray.storage import open_key

_IMAGES = ("image", "img", "jpg", "picture")
_CAPTIONS = ("caption", "captions", "text")
_ROWS, _AT_ONCE = 4096, 16  # rows without, and with, their pictures in memory
_BUFFER = 1 << 20  # bytes read ahead of a column; else a whole row group would be


class ParquetSource(Catalogue):
    """A key is ``<file>/<row>``. Captions and classes are read once, pictures where they are used.

    Raises:
        UserError: there is no file, one is damaged, or lacks a column.
    """

    def __init__(self, source: config.Parquet, reach: config.Storage) -> None:
        self._files = find_files(source.path, reach, ".parquet")
        super().__init__(
            [(file.key, file.stamp) for file in self._files],
            source.licence,
            partial(_find, source, self._files),
        )

    def picture(self, where: tuple[int, str, int]) -> bytes:
        """See Catalogue."""
        number, column, row = where
        try:
            value = _pictures(self._files[number], column).at(row)
        except (pa.ArrowException, OSError) as error:
            raise Rejected(f"damaged Parquet: {error}") from None
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                raise Rejected("only a path of a picture, and paths are not followed")
            value = value["bytes"]
        if value is None:
            raise Rejected("no picture")
        return check_size(value)


def _find(source: config.Parquet, files: list[File]) -> dict[str, Entry]:
    """Every row of every file. Raises UserError."""

    def look(number: int, file: File) -> dict[str, Entry]:
        try:
            opened = _open(file)
            columns = _Columns(source, file, opened.schema_arrow)
            return _entries(columns, opened, number, file.key)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{PATH}: {file.store.uri}/{file.key}: no Parquet that can be read "
                f"({' '.join(str(error).split())}); fetch it anew"
            ) from None

    return look_into(files, look)


class _Columns:
    """Which column is what in one file. Raises UserError if one is missing or of another type."""

    def __init__(self, source: config.Parquet, file: File, schema: pa.Schema) -> None:
        self._where, self._schema = f"{PATH}: {file.store.uri}/{file.key}", schema
        self.image = self._choose("image_column", source.image_column, _IMAGES)
        self.caption = self._choose("caption_column", source.caption_column, _CAPTIONS)
        self.classes = source.class_column and self._choose("class_column", source.class_column)
        self.split = source.split_column and self._choose("split_column", source.split_column)
        kind = schema.field(self.image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(
                f"{self._where}: column {self.image} holds {kind}, not the bytes of pictures; "
                "name another in data.source.image_column"
            )
        kind = _item(schema.field(self.caption).type)
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                f"{self._where}: column {self.caption} holds {kind}, neither text nor lists of "
                "text; name another in data.source.caption_column"
            )
        self.labels = _labels(schema, self.classes) if self.classes else None

    def _choose(self, field: str, name: str | None, usual: tuple[str, ...] = ()) -> str:
        for column in (name,) if name else usual:
            if column in self._schema.names:
                return column
        raise UserError(
            f"{self._where}: no column {name or ' or '.join(usual)} (there are: "
            f"{', '.join(self._schema.names)}); name one in data.source.{field}"
        )


def _item(kind: pa.DataType) -> pa.DataType:
    """The type of a value, of a dictionary's values, or of a list's items."""
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind.value_type if listed or pa.types.is_dictionary(kind) else kind


def _labels(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes 0, 1, ..., as the datasets library keeps them beside the schema."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _entries(columns: _Columns, opened: pq.ParquetFile, number: int, name: str) -> dict[str, Entry]:
    """Every row of a file, all but its picture."""
    wanted = [name for name in (columns.caption, columns.classes, columns.split) if name]
    named = split_in_name(name)
    entries: dict[str, Entry] = {}
    for batch in opened.iter_batches(_ROWS, columns=list(dict.fromkeys(wanted))):
        captions = _texts(batch[columns.caption])
        empty = [None] * len(captions)
        classes = batch[columns.classes].to_pylist() if columns.classes else empty
        splits = batch[columns.split].to_pylist() if columns.split else empty
        for caption, label, split in zip(captions, classes, splits, strict=True):
            row = len(entries)
            key = f"{name}/{row:08d}"
            told = SPLIT_NAMES.get(str(split).strip().lower())
            reason = ""
            if columns.split and not told:
                reason = f"{columns.split}={split}; it must be one of {', '.join(SPLITS)}"
            entries[key] = Entry(
                where=(number, columns.image, row),
                captions=caption,
                split=told or named or split_by_hash(key),
                class_name=_class(label, columns.labels),
                reason=reason,
            )
    return entries


def _class(label: Any, labels: list[str] | None) -> str | None:
    if label is None or label == -1:  # -1: the datasets library's "not known"
        return None
    if labels and isinstance(label, int):
        return labels[label] if 0 <= label < len(labels) else None
    return str(label)


def _texts(column: pa.Array) -> list[list[str]]:
    """The captions of each row; bytes that are no UTF-8 do not stop it."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = pa.large_binary()
    kind = pa.large_list(text) if column.type.num_fields else text
    values = column.cast(kind).to_pylist()
    rows = [value if isinstance(value, list) else [value] for value in values]
    return [[decode(text) for text in row if text is not None] for row in rows]


class _Pictures:
    """The pictures of a file, read forwards a few at a time; going back starts a group anew."""

    def __init__(self, file: File, column: str) -> None:
        check_unchanged(file)
        self._file, self._column = _open(file), column
        groups = self._file.metadata
        counts = (groups.row_group(i).num_rows for i in range(groups.num_row_groups))
        self._starts = list(accumulate(counts, initial=0))
        self._group = -1
        self._first, self._values = 0, pa.array([])

    def at(self, row: int) -> Any:
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._first:
            self._group = group
            self._batches = self._file.iter_batches(
                batch_size=_AT_ONCE, row_groups=[group], columns=[self._column]
            )
            self._first, self._values = self._starts[group], pa.array([])
        while row >= self._first + len(self._values):
            self._first += len(self._values)
            batch = next(self._batches, None)
            if batch is None:  # StopIteration would end a loop over tasks, and say nothing
                raise Rejected("damaged Parquet: it has fewer rows than it says")
            self._values = batch[self._column]
        return self._values[row - self._first].as_py()


@lru_cache(maxsize=1)
def _pictures(file: File, column: str) -> _Pictures:
    return _Pictures(file, column)


def _open(file: File) -> pq.ParquetFile:
    opened = open_key(file.store, file.key)
    return pq.ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False)
