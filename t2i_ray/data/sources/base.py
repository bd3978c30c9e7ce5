"""What every source looks like."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from t2i_ray.data.captions import clean, visible
from t2i_ray.data.record import Rejected, Sample
from t2i_ray.data.sources.place import errors_of_place


class Source(ABC):
    """Pictures with captions, each under a key.

    Opened, it knows its fingerprint, by which its prepared form is found. It is looked through
    only if there is none, once, where prepare was called; a task is given the part that it reads.
    So a source must be picklable and hold no open file.
    """

    fingerprint: str  # of what the keys and captions are read from, beyond the config
    licence: str
    # Known when it was looked through:
    entries: Mapping[str, Any]  # by key: what read needs
    classes: list[str]  # sorted; a class id is the rank of its name; empty if unknown
    attribute_values: dict[str, list[str]]  # empty if the source has no ground truth

    def look_through(self) -> None:  # noqa: B027 - those that are drawn know all at once
        """Read all but the pictures. Raises UserError if it cannot be used."""

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

    where: Any  # how its source finds it: a path, a row, a range of bytes
    captions: list[str]
    split: str  # one of SPLITS
    class_name: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)  # the same names in all entries
    reason: str = ""  # why it cannot be used; empty if it can


class Catalogue(Source):
    """A source that lies in files."""

    def __init__(
        self, fingerprint: Any, licence: str, find: Callable[[], Mapping[str, Entry]]
    ) -> None:
        """What its keys and captions depend on, as JSON; its licence; how to find its entries."""
        told = json.dumps(fingerprint, sort_keys=True).encode()
        self.fingerprint = hashlib.sha256(told).hexdigest()
        self.licence = licence
        self._find: Callable[[], Mapping[str, Entry]] | None = find

    def look_through(self) -> None:
        """See Source."""
        assert self._find, "looked through already"
        with errors_of_place():
            entries = self._find()
        self._find = None  # with all that it has read: no task needs it
        names = {entry.class_name or "" for entry in entries.values()}
        clear = {name: clean(name)[0] or None for name in names}
        self.entries: dict[str, Entry] = {
            visible(key): replace(entry, class_name=clear[entry.class_name or ""])
            for key, entry in entries.items()
        }
        self.classes = sorted({name for name in clear.values() if name})
        named = sorted({name for entry in entries.values() for name in entry.attributes})
        self.attribute_values = {
            name: sorted({entry.attributes[name] for entry in entries.values()}) for name in named
        }

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
