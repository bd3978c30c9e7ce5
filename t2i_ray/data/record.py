"""A sample as a source has it, and as it is kept."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import numpy as np

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}


class Rejected(Exception):  # noqa: N818 - an answer, not a fault
    """The sample cannot be used; the message is the reason that is reported."""


@dataclass(frozen=True)
class Sample:
    """One sample as its source has it: nothing is cleaned, scaled or checked yet."""

    picture: bytes | np.ndarray  # an image file, or finished pixels uint8 [size, size, 3]
    captions: list[str]
    split: str  # one of SPLITS
    class_name: str | None = None  # None: unknown
    attributes: dict[str, str] = field(default_factory=dict)  # ground truth, name -> value
    # Per caption the attributes that it names; None: those whose value stands in it.
    named: list[frozenset[str]] | None = None


@dataclass(frozen=True)
class Record:
    """One sample as it is kept."""

    image: np.ndarray  # uint8 [size, size, 3]
    captions: list[str]  # at least one, all clean
    split: str  # one of SPLITS
    class_name: str | None
    attributes: dict[str, str]
    named: list[frozenset[str]]  # per caption
    cut: int  # captions that were too long
    empty: int  # captions that were dropped


def split_by_hash(key: str) -> str:
    """80 % train, 10 % val, 10 % test, by nothing but the key."""
    return {0: "test", 1: "val"}.get(tenth(key), "train")


def tenth(key: str) -> int:
    """One of 0 to 9, equally likely, by nothing but the key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()[0] % 10


def split_in_name(path: str) -> str | None:
    """The split that a file's path names, as in ``train-00000-of-00002``; the last one counts."""
    found = re.findall(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])", path.lower())
    return SPLIT_NAMES[found[-1]] if found else None
