"""Pictures with captions in COCO's JSON.

A folder holds

    annotations/captions_train2017.json     {"images": [...], "annotations": [...]}
    train2017/000000000009.jpg
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import replace
from functools import partial
from typing import Any

from t2i_ray.config import Coco, Storage, UserError
from t2i_ray.data.record import SPLITS, tenth
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import PATH, open_place, read_picture, read_text
from t2i_ray.storage import Store


class CocoSource(Catalogue):
    """A key is ``train2017/<file name>``; there are no classes.

    Raises:
        UserError: a file is missing, there are several to choose from, or it has another form.
    """

    def __init__(self, config: Coco, reach: Storage) -> None:
        self._place = place = open_place(config.path, reach)
        texts: dict[str, tuple[str, str]] = {}  # split -> file, content
        for split in SPLITS:
            file = getattr(config, split) or _only(place, split)
            if file:
                field, hint = f"data.source.{split}", "give a file relative to data.source.path"
                texts[split] = (file, read_text(config.path, file, reach, field, hint))
            elif split != "test":
                raise UserError(
                    f"{PATH}: {place.uri} has not the layout of coco: no annotations/captions_"
                    f"{split}*.json in it; name the file in data.source.{split}"
                )
        super().__init__(texts, config.licence, partial(_find, texts, config.images))

    def picture(self, where: str) -> bytes:
        """See Catalogue."""
        return read_picture(self._place, where)


def _only(place: Store, split: str) -> str | None:
    """The only file of captions that is named as the split."""
    pattern = f"annotations/captions_{split}[0-9_.]*json"
    found = [key for key in place.list("annotations") if fnmatch.fnmatchcase(key, pattern)]
    if len(found) > 1:
        raise UserError(
            f"{PATH}: {place.uri} has {' and '.join(found)}; name one in data.source.{split}"
        )
    return found[0] if found else None


def _find(texts: dict[str, tuple[str, str]], images: str | None) -> dict[str, Entry]:
    """Every picture of every split. Raises UserError."""
    entries: dict[str, Entry] = {}
    for split, (file, text) in texts.items():
        where = f"data.source.{split}={file}"
        folder = _folder(file) if images is None else images
        found = _entries(where, text, split, folder.strip("/"))
        if split == "val" and "test" not in texts:
            found = {key: _halved(key, entry) for key, entry in found.items()}
        for key in sorted(found.keys() & entries.keys()):
            raise UserError(
                f"{where}: {key} is also in {entries[key].split}; give each picture to one split"
            )
        entries |= found
    return entries


def _folder(file: str) -> str:
    """Where the pictures of a file of captions lie: captions_train2017.json -> train2017."""
    return file.rpartition("/")[2].rpartition(".")[0].removeprefix("captions_")


def _entries(where: str, text: str, split: str, folder: str) -> dict[str, Entry]:
    """Every picture of a file of captions."""
    try:
        document = json.loads(text)
        keys = {
            image["id"]: "/".join(filter(None, (folder, _text(image["file_name"]))))
            for image in document["images"]
        }
        captions: dict[str, list[str]] = {key: [] for key in keys.values()}
        for annotation in document["annotations"]:
            captions[keys[annotation["image_id"]]].append(_text(annotation["caption"]))
    except KeyError as error:
        raise UserError(
            f"{where}: not COCO's JSON, or it names an image that is not in it (no {error}); give "
            "a file captions_*.json"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{where}: not COCO's JSON ({' '.join(str(error).split())}); give a file "
            "captions_*.json"
        ) from None
    return {key: Entry(where=key, captions=mine, split=split) for key, mine in captions.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _halved(key: str, entry: Entry) -> Entry:
    """Val, or test for every other picture, by nothing but the key."""
    return replace(entry, split="test" if tenth(key) % 2 else "val")
