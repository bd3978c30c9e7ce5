"""A folder of images, with captions in a JSONL, CSV or TSV file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from t2i_ray.config import Folder, Storage, UserError
from t2i_ray.data.captions import clean
from t2i_ray.data.record import SPLIT_NAMES, SPLITS, split_by_hash
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import open_place, read_picture, read_text

Row = dict[str, Any]
_OWN = ("captions", "class", "split")
# As Hugging Face's image folders name them in their metadata.csv or metadata.jsonl.
_ALSO = {"file_name": "image", "text": "caption"}
_NEEDED = (("image",), ("caption", "captions"))
_LONGEST_FIELD = 1 << 26  # characters; csv's own limit, 131072, is less than a long caption


class FolderSource(Catalogue):
    """Images below a folder; a key is an image's path relative to it.

    An image may stand in several rows: its captions are joined. Columns other than image, caption,
    captions, class and split are attributes; a caption names an attribute where the value stands
    in it as whole words.

    Raises:
        UserError: the folder or the captions file is missing, or it has the wrong columns or
            values of the wrong kind.
    """

    def __init__(self, config: Folder, reach: Storage) -> None:
        self._place = open_place(config.path, reach)
        field = "data.source.captions"
        hint = "give a .jsonl, .csv or .tsv file relative to data.source.path"
        text = read_text(config.path, config.captions, reach, field, hint)
        super().__init__(text, config.licence, partial(_find, text, config.captions))

    def picture(self, where: str) -> bytes:
        """See Catalogue."""
        return read_picture(self._place, where)


def _find(text: str, name: str) -> dict[str, Entry]:
    """Every picture that a captions file names. Raises UserError."""
    rows = _Rows(f"data.source.captions={name}")
    rows.read(text, name.lower())
    names = {column for several in rows.by_key.values() for row in several for column in row}
    attributes = sorted(names - set(_OWN))
    return {key: _entry(key, several, attributes) for key, several in rows.by_key.items()}


def _entry(key: str, rows: list[Row], attributes: list[str]) -> Entry:
    """One picture's rows as one; with a reason if they disagree."""
    one, reason = {}, ""
    for name in ("class", "split", *attributes):
        values = sorted({row.get(name, "") for row in rows})
        one[name] = values[0]
        if len(values) > 1:
            reason = f"its rows disagree on {name}: {', '.join(values)}"
    return Entry(
        where=key,
        captions=[caption for row in rows for caption in row["captions"]],
        split=one["split"] or split_by_hash(key),
        class_name=one["class"] or None,
        attributes={name: one[name] for name in attributes},
        reason=reason,
    )


class _Rows:
    """The rows of a captions file, checked, by image. Raises UserError."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.by_key: dict[str, list[Row]] = {}

    def read(self, text: str, name: str) -> None:
        tables = {".csv": ",", ".tsv": "\t"}
        rows = self._table(text, tables[name[-4:]]) if name[-4:] in tables else self._jsonl(text)
        for number, row in rows:
            self._add(number, row)

    def _table(self, text: str, delimiter: str) -> Iterator[tuple[int, Row]]:
        limit = csv.field_size_limit(_LONGEST_FIELD)
        try:
            lines = io.StringIO(text, newline="")
            reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            self._check_header(reader.fieldnames)
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{self._where}: line {reader.line_num} has not {len(reader.fieldnames)} "
                        "fields; quote captions that hold commas"
                    )
                row.pop("", None)  # the nameless column of row numbers that some programs write
                yield reader.line_num, _as_ours(row)
        except csv.Error as error:
            raise UserError(
                f"{self._where}: line {reader.line_num + 1}: {error}; write it as RFC 4180 has it, "
                "a quote within quotes doubled"
            ) from None
        finally:
            csv.field_size_limit(limit)

    def _check_header(self, columns: list[str]) -> None:
        ours = _as_ours(dict.fromkeys(columns))
        for needed in _NEEDED:
            if not set(needed) & set(ours):
                raise UserError(
                    f"{self._where}: no column {' or '.join(needed)} (there are: "
                    f"{', '.join(columns)}); name the columns image and caption"
                )
        twice = {name for name in columns if name and columns.count(name) > 1}
        if twice:
            raise UserError(
                f"{self._where}: two columns are named {twice.pop()}; give each another name"
            )

    def _jsonl(self, text: str) -> Iterator[tuple[int, Row]]:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{self._where}: line {number} is not a JSON object; write one such as "
                    '{"image": "a.jpg", "caption": "a red flower"}'
                )
            ours = _as_ours(row)
            for needed in _NEEDED:
                if not set(needed) & set(ours):
                    raise UserError(
                        f"{self._where}: line {number} has no {' or '.join(needed)} (it has: "
                        f"{', '.join(row)}); name the keys image and caption"
                    )
            yield number, ours

    def _add(self, number: int, row: Row) -> None:
        """Check one row and keep it, every value as text and captions as a list."""
        captions: list[Any] = []
        for name in ("caption", "captions"):
            value = row.pop(name, [])
            captions += value if isinstance(value, list) else [value]
        if not all(isinstance(caption, str) for caption in captions if caption is not None):
            raise UserError(f"{self._where}: line {number}: captions must be text")
        for name, value in row.items():
            if isinstance(value, dict | list):
                raise UserError(
                    f"{self._where}: line {number}: {name} must be one word or number, or be "
                    "left out"
                )
        key = str(row.pop("image") or "").strip().replace("\\", "/")
        if not key:
            raise UserError(f"{self._where}: line {number}: image is empty; give its file name")
        plain = {
            clean(name)[0]: "" if value is None else clean(str(value))[0]
            for name, value in row.items()
        }
        if plain.get("split"):
            try:
                plain["split"] = SPLIT_NAMES[plain["split"].lower()]
            except KeyError:
                raise UserError(
                    f"{self._where}: line {number}: split={plain['split']}; it must be one of "
                    f"{', '.join(SPLITS)}, or empty"
                ) from None
        kept = [caption or "" for caption in captions]
        self.by_key.setdefault(str(PurePosixPath(key)), []).append({**plain, "captions": kept})


def _as_ours(row: Row) -> Row:
    """The row with the names that we use, where it has none of these."""
    alias = {
        theirs: ours
        for theirs, ours in _ALSO.items()
        if theirs in row and ours not in row and not (ours == "caption" and "captions" in row)
    }
    return {alias.get(name, name): value for name, value in row.items()}
