"""What a source gives for one key, and what every source looks like."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

SPLITS = ("train", "val", "test")


class Rejected(Exception):  # noqa: N818 - an answer, not a fault
    """The sample cannot be used; the message is the reason that is reported."""


@dataclass(frozen=True)
class Record:
    """One sample as a source gives it."""

    image: np.ndarray  # uint8 [size, size, 3]
    captions: list[str]  # at least one
    split: str  # one of SPLITS
    class_name: str | None = None  # None: unknown
    attributes: dict[str, str] = field(default_factory=dict)  # ground truth, name -> value
    named: list[frozenset[str]] = field(default_factory=list)  # per caption: attributes it names


class Source(Protocol):
    """Pictures with captions, each under a key. Every task opens its own."""

    keys: list[str]  # sorted
    fingerprint: str  # of what the keys and captions are read from, beyond the config
    licence: str
    classes: list[str]  # sorted; a class id is the rank of its name; empty if unknown
    attribute_values: dict[str, list[str]]  # empty if the source has no ground truth

    def read(self, key: str) -> Record:
        """The sample of a key. Raises Rejected with the reason if it cannot be used."""


def split_by_hash(key: str) -> str:
    """80 % train, 10 % val, 10 % test, by nothing but the key."""
    tenth = hashlib.sha256(key.encode()).digest()[0] % 10
    return {0: "test", 1: "val"}.get(tenth, "train")
