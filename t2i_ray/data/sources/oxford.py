"""Oxford-102 flowers, with the captions of Reed et al. (2016)."""

from __future__ import annotations

import io
import warnings
from functools import partial

import numpy as np

from t2i_ray.config import Oxford102, Storage, UserError
from t2i_ray.data.sources.base import Catalogue, Entry
from t2i_ray.data.sources.place import PATH, open_place, read_picture, require
from t2i_ray.data.sources.reed import ReedCaptions, part_of_train
from t2i_ray.storage import Store

_SETS = {"trnid": "train", "valid": "val", "tstid": "test"}


class OxfordSource(Catalogue):
    """``jpg/image_00001.jpg`` and so on; a class is named as its folder of captions, class_00001.

    Raises:
        UserError: the layout is not that of the data set, or a list of classes is missing.
    """

    def __init__(self, config: Oxford102, reach: Storage) -> None:
        self._place = place = open_place(config.path, reach)
        needed = ["jpg/", "imagelabels.mat", *(["setid.mat"] if config.split == "official" else [])]
        require(place, needed, config.kind)
        labels = _matrix(place, "imagelabels.mat", "labels")
        sets = _sets(place) if config.split == "official" else {}
        captions = ReedCaptions(config, reach, place)
        super().__init__(
            [labels, sets, captions.stamps()],
            config.licence,
            partial(_find, config.split, labels, sets, captions),
        )

    def picture(self, where: str) -> bytes:
        """See Catalogue."""
        return read_picture(self._place, where)


def _find(
    split_by: str, labels: list[int], sets: dict[int, str], captions: ReedCaptions
) -> dict[str, Entry]:
    """Every picture that has a label. Raises UserError."""
    pictures = {
        number: f"class_{label:05d}/image_{number:05d}"
        for number, label in enumerate(labels, start=1)
    }
    captions.check(pictures.values())
    texts = captions.read()
    classes = {picture.partition("/")[0] for picture in pictures.values()}
    official = split_by == "official"
    by_class = {} if official else captions.splits(split_by, classes)
    entries = {}
    for number, picture in pictures.items():
        class_name, _, name = picture.partition("/")
        key = f"jpg/{name}.jpg"
        split = sets.get(number) if official else by_class.get(class_name)
        if split == "train" and split_by == "trainval":
            split = part_of_train(key)
        lists = "setid.mat" if official else f"the lists of classes ({class_name})"
        entries[key] = Entry(
            where=key,
            captions=texts.get(picture, []),
            split=split or "train",
            class_name=class_name,
            reason="" if split else f"in none of the sets of {lists}",
        )
    return entries


def _sets(place: Store) -> dict[int, str]:
    """Number of a picture -> its split."""
    splits: dict[int, str] = {}
    for name, split in _SETS.items():
        for number in _matrix(place, "setid.mat", name):
            if splits.setdefault(number, split) != split:
                raise UserError(
                    f"{PATH}: setid.mat has picture {number} in two sets; fetch it anew"
                )
    return splits


def _matrix(place: Store, file: str, name: str) -> list[int]:
    """A row of whole numbers in a MATLAB v5 file."""
    from scipy.io import loadmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Numbers and text are all that is taken from it; the format holds no pickles.
            matrix = np.asarray(loadmat(io.BytesIO(place.read(file)), variable_names=[name])[name])
        if matrix.dtype.kind not in "iuf" or not (matrix >= 1).all():
            raise ValueError(f"{name} is no row of numbers from 1 on")
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{PATH}: {place.uri}/{file}: no matrix {name} of MATLAB v5 can be read from it "
            f"({reason}); fetch it anew"
        ) from None
    return [int(number) for number in matrix.ravel()]
