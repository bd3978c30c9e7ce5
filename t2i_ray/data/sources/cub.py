"""CUB-200-2011 birds, with the captions of Reed et al. (2016)."""

from __future__ import annotations

from functools import partial

from t2i_ray.config import Cub200, Storage, UserError
from t2i_ray.data.captions import decode
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import PATH, open_place, read_picture, require
from t2i_ray.data.sources.reed import ReedCaptions, part_of_train
from t2i_ray.storage import Store


class CubSource(Catalogue):
    """``images/001.Black_footed_Albatross/*.jpg``, as images.txt lists them.

    Raises:
        UserError: the layout is not that of the data set, or a list of classes is missing.
    """

    def __init__(self, config: Cub200, reach: Storage) -> None:
        self._place = place = open_place(config.path, reach)
        files = ["images.txt", "image_class_labels.txt", "classes.txt"]
        files += ["train_test_split.txt"] if config.split == "official" else []
        require(place, ["images/", *files], config.kind)
        tables = {file: _table(place, file) for file in files}
        captions = ReedCaptions(config, reach, place)
        super().__init__(
            [tables, captions.stamps()],
            config.licence,
            partial(_find, config.split, tables, captions),
        )

    def picture(self, where: str) -> bytes:
        """See Catalogue."""
        return read_picture(self._place, where)


def _find(
    split_by: str, tables: dict[str, dict[str, str]], captions: ReedCaptions
) -> dict[str, Entry]:
    """Every picture of images.txt. Raises UserError."""
    pictures = tables["images.txt"]
    classes = {
        number: _value(tables, "classes.txt", _value(tables, "image_class_labels.txt", number))
        for number in pictures
    }
    captions.check([path.rpartition(".")[0] for path in pictures.values()])
    texts = captions.read()
    official = split_by == "official"
    names = tables["classes.txt"].values()
    by_class = {} if official else captions.splits(split_by, names)
    entries = {}
    for number, path in pictures.items():
        key = f"images/{path}"
        if official:
            told = _value(tables, "train_test_split.txt", number)
            split = {"1": "train", "0": "test"}.get(told)
        else:
            split = by_class.get(classes[number])
        if split == "train" and split_by != "classes":
            split = part_of_train(key)
        lists = "train_test_split.txt" if official else f"the lists of classes ({classes[number]})"
        entries[key] = Entry(
            where=key,
            captions=texts.get(path.rpartition(".")[0], []),
            split=split or "train",
            class_name=classes[number],
            reason="" if split else f"in none of the sets of {lists}",
        )
    return entries


def _table(place: Store, file: str) -> dict[str, str]:
    """The lines "<number> <value>" of a file."""
    table = {}
    for number, line in enumerate(decode(place.read(file)).split("\n"), start=1):
        words = line.split()
        if words:
            if len(words) != 2:
                raise UserError(
                    f"{PATH}: {place.uri}/{file}: line {number} is not a number and a value; fetch "
                    "it anew"
                )
            table[words[0]] = words[1]
    return table


def _value(tables: dict[str, dict[str, str]], file: str, number: str) -> str:
    try:
        return tables[file][number]
    except KeyError:
        raise UserError(f"{PATH}: {file} has no line for {number}; fetch it anew") from None
