"""A folder of images, with captions in a JSONL or CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from t2i_ray.config import Folder, UserError
from t2i_ray.data.images import load_square
from t2i_ray.data.record import SPLITS, Record, Rejected, split_by_hash

_SPLIT_NAMES = {**{split: split for split in SPLITS}, "validation": "val"}
_OWN = ("image", "caption", "captions", "class", "split")


class FolderSource:
    """Images below a folder; a key is an image's path relative to it.

    An image may stand in several rows: its captions are joined. Columns other than image, caption,
    captions, class and split are attributes; a caption names an attribute where the value stands
    in it as whole words.

    Raises:
        UserError: the folder or the captions file is missing, or it has the wrong columns or
            values of the wrong kind.
    """

    def __init__(self, config: Folder, size: int) -> None:
        self._folder, self._size = Path(config.path).expanduser(), size
        self.licence = config.licence
        if not self._folder.is_dir():
            raise UserError(
                f"data.source.path={config.path}: no such folder; give the one with the images"
            )
        path = self._folder / config.captions
        try:
            content = path.read_bytes()
            text = content.decode("utf-8-sig")
        except OSError as error:
            raise UserError(
                f"data.source.captions={config.captions}: {path}: {error.strerror}; give a .jsonl "
                "or .csv file relative to data.source.path"
            ) from None
        except UnicodeDecodeError:
            raise UserError(
                f"data.source.captions={config.captions}: is not UTF-8; save it so"
            ) from None
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self._where = f"data.source.captions={config.captions}"
        self._rows: dict[str, list[dict[str, Any]]] = {}
        reader = self._csv if path.suffix.lower() == ".csv" else self._jsonl
        for number, row in reader(text):
            self._add(number, row)
        self.keys = sorted(self._rows)
        rows = [row for several in self._rows.values() for row in several]
        self.classes = sorted({row["class"] for row in rows if row.get("class")})
        names = sorted({name for row in rows for name in row if name not in _OWN})
        self.attribute_values = {
            name: sorted({row.get(name, "") for row in rows}) for name in names
        }

    def read(self, key: str) -> Record:
        """The sample of an image. Raises Rejected."""
        rows = self._rows[key]
        captions = [caption for row in rows for caption in row["captions"]]
        if not captions:
            raise Rejected("no caption")
        one: dict[str, str] = {}
        for name in ("class", "split", *self.attribute_values):
            values = {row.get(name, "") for row in rows}
            if len(values) > 1:
                raise Rejected(f"its rows disagree on {name}: {', '.join(sorted(values))}")
            one[name] = values.pop()
        path = PurePosixPath(key)
        if path.is_absolute() or ".." in path.parts:
            raise Rejected("path leads out of the folder")
        return Record(
            image=load_square(self._folder / path, self._size),
            captions=captions,
            split=one["split"] or split_by_hash(key),
            class_name=one["class"] or None,
            attributes={name: one[name] for name in self.attribute_values},
            named=[
                frozenset(name for name in self.attribute_values if _says(caption, one[name]))
                for caption in captions
            ],
        )

    def _csv(self, text: str) -> list[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = reader.fieldnames or []
        for needed in (("image",), ("caption", "captions")):
            if not set(needed) & set(columns):
                raise UserError(
                    f"{self._where}: no column {' or '.join(needed)} (there are: "
                    f"{', '.join(columns)}); name the columns image and caption"
                )
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{self._where}: line {reader.line_num} has not {len(columns)} fields; quote "
                    "captions that hold commas"
                )
            row.pop("", None)  # the nameless column of row numbers that some programs write
            rows.append((reader.line_num, dict(row)))
        return rows

    def _jsonl(self, text: str) -> list[tuple[int, dict[str, Any]]]:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{self._where}: line {number} is not a JSON object; write one such as "
                    '{"image": "a.jpg", "caption": "a red flower"}'
                )
            for needed in (("image",), ("caption", "captions")):
                if not set(needed) & set(row):
                    raise UserError(
                        f"{self._where}: line {number} has no {' or '.join(needed)} (it has: "
                        f"{', '.join(row)}); name the keys image and caption"
                    )
            rows.append((number, row))
        return rows

    def _add(self, number: int, row: dict[str, Any]) -> None:
        """Check one row and keep it, every value as text and captions as a list."""
        captions: list[Any] = []
        for name in ("caption", "captions"):
            value = row.pop(name, [])
            captions += value if isinstance(value, list) else [value]
        if not all(isinstance(caption, str) for caption in captions if caption is not None):
            raise UserError(f"{self._where}: line {number}: captions must be text")
        plain = {name: "" if value is None else value for name, value in row.items()}
        for name, value in plain.items():
            if isinstance(value, dict | list):
                raise UserError(
                    f"{self._where}: line {number}: {name} must be one word or number, or be "
                    "left out"
                )
        plain = {name: str(value).strip() for name, value in plain.items()}
        if plain.get("split"):
            try:
                plain["split"] = _SPLIT_NAMES[plain["split"].lower()]
            except KeyError:
                raise UserError(
                    f"{self._where}: line {number}: split={plain['split']}; it must be one of "
                    f"{', '.join(SPLITS)}, or empty"
                ) from None
        words = [" ".join(caption.split()) for caption in captions if caption]
        key = plain["image"].replace("\\", "/")
        if not key:
            raise UserError(f"{self._where}: line {number}: image is empty; give its file name")
        self._rows.setdefault(key, []).append(
            {**plain, "captions": [caption for caption in words if caption]}
        )


def _says(caption: str, value: str) -> bool:
    return bool(value) and re.search(rf"\b{re.escape(value)}\b", caption, re.I) is not None
