"""What every source looks like."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from t2i_ray.data.captions import clean, visible
from t2i_ray.data.record import Rejected, Sample


class Source(ABC):
    """Pictures with captions, each under a key.

    It is opened once, where prepare was called; a task is given the part that it reads, so a
    source must be picklable and hold no open file.
    """

    entries: Mapping[str, Any]  # by key: what read needs
    fingerprint: str  # of what the keys and captions are read from, beyond the config
    licence: str
    classes: list[str]  # sorted; a class id is the rank of its name; empty if unknown
    attribute_values: dict[str, list[str]]  # empty if the source has no ground truth

    @property
    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self.entries)

    def part(self, keys: list[str]) -> Self:
        """The same source, with these keys only."""
        part = copy.copy(self)
        part.entries = {key: self.entries[key] for key in keys}
        return part

    @abstractmethod
    def read(self, key: str) -> Sample:
        """The sample of a key. Raises Rejected with the reason if it cannot be used."""


@dataclass(frozen=True)
class Entry:
    """What is known of a picture before it is opened."""

    where: Any  # how its source finds it, as JSON has it: a path, a row, a range of bytes
    captions: list[str]
    split: str  # one of SPLITS
    class_name: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    reason: str = ""  # why it cannot be used; empty if it can


class Catalogue(Source):
    """A source that lies in files: all but the pictures is read when it is opened."""

    def __init__(self, entries: Mapping[str, Entry], licence: str) -> None:
        self.licence = licence
        names = {entry.class_name or "" for entry in entries.values()}
        clear = {name: clean(name)[0] or None for name in names}
        self.entries: dict[str, Entry] = {
            visible(key): replace(entry, class_name=clear[entry.class_name or ""])
            for key, entry in entries.items()
        }
        self.classes = sorted({name for name in clear.values() if name})
        self.attribute_values = {}
        told = hashlib.sha256()
        for key in self.keys:
            entry = self.entries[key]
            words = [key, entry.where, entry.captions, entry.split, entry.class_name]
            told.update(json.dumps([*words, entry.attributes, entry.reason]).encode())
        self.fingerprint = told.hexdigest()

    def read(self, key: str) -> Sample:
        """See Source."""
        entry = self.entries[key]
        if entry.reason:
            raise Rejected(entry.reason)
        return Sample(
            picture=self.picture(entry.where),
            captions=entry.captions,
            split=entry.split,
            class_name=entry.class_name,
            attributes=entry.attributes,
        )

    @abstractmethod
    def picture(self, where: Any) -> bytes:
        """The image file of an entry. Raises Rejected."""
