"""What Reed et al. (2016) gave with Oxford-102 and CUB: ten captions a picture, lists of classes.

They are

    text_c10/<class>/<picture>.txt      one caption a line
    trainclasses.txt, valclasses.txt, testclasses.txt, trainvalclasses.txt     one class a line
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from t2i_ray.config import Cub200, Oxford102, Storage, UserError
from t2i_ray.data.captions import decode
from t2i_ray.data.record import tenth
from t2i_ray.data.sources.place import PATH, open_place, read_all
from t2i_ray.storage import Store

_NAMES = ("train", "val", "test", "trainval")
# The lists that make up each split; the first choice of which all are there is taken.
_LISTS = {
    "classes": [{"train": ["train"], "val": ["val"], "test": ["test"]}],
    "trainval": [
        {"train": ["trainval"], "test": ["test"]},
        {"train": ["train", "val"], "test": ["test"]},
    ],
}


class ReedCaptions:
    """Captions and lists of classes, wherever the config says they are.

    Raises:
        UserError: the folder of captions is missing or holds none.
    """

    def __init__(self, config: Oxford102 | Cub200, reach: Storage, place: Store) -> None:
        name = config.captions.rstrip("/")
        elsewhere = name.startswith(("/", "~")) or "://" in name
        whole = name if elsewhere else f"{config.path.rstrip('/')}/{name}"
        field = "data.source.captions"
        self._store = open_place(whole, reach, field=field)
        self._files = {
            key: stamp
            for key, stamp in self._store.stamps().items()
            if key.endswith(".txt") and "/" in key
        }
        if not self._files:
            raise UserError(
                f"{field}={config.captions}: no file <class>/<picture>.txt in {self._store.uri}; "
                "give the folder text_c10 of the captions of Reed et al."
            )
        beside = open_place(whole.rpartition("/")[0] or "/", reach, field=field)
        self._places = {place.uri: place, beside.uri: beside}

    def stamps(self) -> list[Any]:
        """What changes whenever captions or lists do."""
        return [self._files, [self._find(f"{name}classes.txt") for name in _NAMES]]

    def read(self) -> dict[str, list[str]]:
        """The captions of each picture, by "<class>/<picture>"."""
        texts = zip(self._files, read_all(self._store, self._files), strict=True)
        return {
            file.removesuffix(".txt"): [line for line in decode(text).split("\n") if line.strip()]
            for file, text in texts
        }

    def check(self, pictures: Collection[str]) -> None:
        """Raises UserError if no caption is for any of these pictures."""
        names = {file.removesuffix(".txt") for file in self._files}
        if not set(pictures) & names:
            raise UserError(
                f"data.source.captions: its files are named such as {min(names)}.txt, the pictures "
                f"such as {min(pictures)}; give the captions of these pictures"
            )

    def splits(self, kind: str, classes: Collection[str]) -> dict[str, str]:
        """Class -> split, by the lists; a class that is in none of them is left out.

        Raises:
            UserError: a list is missing, names an unknown class, or one that another list has.
        """
        found = {
            name: text for name in _NAMES if (text := self._find(f"{name}classes.txt")) is not None
        }
        for lists in _LISTS[kind]:
            if all(name in found for part in lists.values() for name in part):
                return _splits(lists, found, set(classes))
        missing = [name for part in _LISTS[kind][0].values() for name in part if name not in found]
        raise UserError(
            f"{PATH}: no {', '.join(f'{name}classes.txt' for name in missing)} in "
            f"{' or '.join(self._places)}; put the lists of Reed et al. there, or choose another "
            "data.source.split"
        )

    def _find(self, name: str) -> list[str] | None:
        for store in self._places.values():
            if store.exists(name):
                return decode(store.read(name)).split()
        return None


def _splits(
    lists: dict[str, list[str]], found: dict[str, list[str]], classes: set[str]
) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, names in lists.items():
        for name in names:
            for listed in found[name]:
                if listed not in classes:
                    raise UserError(
                        f"{PATH}: {name}classes.txt lists {listed}, of which there is no picture "
                        f"(there are classes such as {min(classes)}); use this data set's lists"
                    )
                if splits.setdefault(listed, split) != split:
                    raise UserError(
                        f"{PATH}: {listed} is listed for {splits[listed]} and, in "
                        f"{name}classes.txt, for {split}; leave it in one"
                    )
    return splits


def part_of_train(key: str) -> str:
    """Train, or val for a tenth of the pictures, by nothing but the key."""
    return "val" if tenth(key) == 1 else "train"
