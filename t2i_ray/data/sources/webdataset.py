"""Tar files of pictures and captions, as the webdataset library and img2dataset write them.

    00000.tar
        000000000.jpg       the picture: jpg, jpeg, png or webp
        000000000.txt       the caption,
        000000000.json      or, without a .txt, the value of its caption_key: text or a list
        000000000.cls       the class, if any

Nothing is ever unpacked: a tar is looked through once, and a picture is then a range of its bytes.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.data.captions import decode
from t2i_ray.data.record import Rejected, split_by_hash, split_in_name
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import LARGEST, PATH, File, check_unchanged, find_files, look_into
from t2i_ray.storage import open_key

_PICTURES = ("jpg", "jpeg", "png", "webp")  # the first of these that a sample has
_TEXTS = ("txt", "json", "cls")
_LONGEST = 1 << 20  # bytes of a text


class WebDatasetSource(Catalogue):
    """A key is ``<tar>/<sample>``.

    Raises:
        UserError: there is no tar, or one is damaged or compressed.
    """

    def __init__(self, source: config.WebDataset, reach: config.Storage) -> None:
        self._files = find_files(source.path, reach, ".tar")
        self._checked: set[int] = set()
        super().__init__(
            [(file.key, file.stamp) for file in self._files],
            source.licence,
            partial(_find, source, self._files),
        )

    def picture(self, where: tuple[int, int, int]) -> bytes:
        """See Catalogue."""
        number, start, length = where
        file = self._files[number]
        if number not in self._checked:
            check_unchanged(file)
            self._checked.add(number)
        if length > LARGEST:
            raise Rejected(f"more than {LARGEST >> 20} MiB")
        return file.store.read_part(file.key, start, length)


def _find(source: config.WebDataset, files: list[File]) -> dict[str, Entry]:
    """Every sample of every tar. Raises UserError."""

    def look(number: int, file: File) -> dict[str, Entry]:
        named = split_in_name(file.key)
        entries = {}
        for name, sample in _look_through(file).items():
            key = f"{file.key}/{name}"
            entries[key] = _entry(source, number, sample, named or split_by_hash(key))
        return entries

    return look_into(files, look)


@dataclass
class _Sample:
    """The members of a tar that share a name up to its first dot."""

    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)  # ending -> start, length
    texts: dict[str, str] = field(default_factory=dict)
    reason: str = ""


def _look_through(file: File) -> dict[str, _Sample]:
    """The samples of a tar, by their common name. Raises UserError."""
    samples: dict[str, _Sample] = {}
    opened = open_key(file.store, file.key)
    try:
        for member in _members(opened):
            folder, slash, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            name, ending = f"{folder}{slash}{stem}", ending.lower()
            problem = _problem(member)
            if problem:
                samples.setdefault(name, _Sample()).reason = problem
            elif stem and ending in _PICTURES:
                place = (member.offset_data, member.size)
                samples.setdefault(name, _Sample()).pictures[ending] = place
            elif stem and ending in _TEXTS:
                if member.size > _LONGEST:
                    samples.setdefault(name, _Sample()).reason = f"a .{ending} of more than 1 MiB"
                    continue
                opened.seek(member.offset_data)
                samples.setdefault(name, _Sample()).texts[ending] = decode(opened.read(member.size))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(
            f"{PATH}: {file.store.uri}/{file.key}: no tar that can be read ({error}); fetch it "
            "anew, or unpack it if it is compressed"
        ) from None
    return samples


def _members(opened: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every member but folders."""
    with tarfile.open(fileobj=opened, mode="r:", errors="replace") as archive:
        while member := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            if not member.isdir():
                yield member
        # The library takes a damaged header for the end.
        opened.seek(archive.offset)
        if any(opened.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _problem(member: tarfile.TarInfo) -> str:
    """Why a member must not be used; empty if it may be."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "path leads out of the archive"
    if member.issym() or member.islnk():
        return "a link, not a file"
    if not member.isreg() or member.issparse():
        return "a device or the like, not a file"
    return ""


def _entry(source: config.WebDataset, number: int, sample: _Sample, split: str) -> Entry:
    told: Any = {}
    reason = sample.reason
    if "json" in sample.texts:
        try:
            told = json.loads(sample.texts["json"])
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            told, reason = {}, reason or "its .json is not a JSON object"
    captions = [sample.texts["txt"]] if "txt" in sample.texts else told.get(source.caption_key, [])
    captions = captions if isinstance(captions, list) else [captions]
    label = told.get(source.class_key) if source.class_key else sample.texts.get("cls")
    picture = next((sample.pictures[e] for e in _PICTURES if e in sample.pictures), None)
    return Entry(
        where=(number, *picture) if picture else None,
        captions=[caption for caption in captions if isinstance(caption, str)],
        split=split,
        class_name=None if label is None else str(label),
        reason=reason or ("" if picture else f"no .{', .'.join(_PICTURES)}"),
    )
