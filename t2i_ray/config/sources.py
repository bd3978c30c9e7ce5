"""The section ``data.source``: one kind for each layout in which pictures and captions lie.

Their fields are operational because the digest of what is prepared from them stands for them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from t2i_ray.config.fields import Section, operational

_PLACE = "a local folder that every node sees, or s3://bucket/prefix"


class SyntheticFlowers(Section):
    """Flowers drawn by this program, with captions and their attributes as ground truth."""

    kind: Literal["synthetic-flowers"] = "synthetic-flowers"
    images: int = operational(6000, doc="How many pictures to draw, all splits together.", ge=64)
    seed: int = operational(0, doc="Seed of the drawings and their captions.", ge=0)


class Emoji(Section):
    """Colour emoji drawn from a font, captioned by their names."""

    kind: Literal["emoji"] = "emoji"
    font: str | None = operational(
        None, doc="Path of a colour-emoji font (.ttf); none: the usual places are searched."
    )
    language: str = operational("en", doc="Language of the names, as the emoji package has it.")


class Folder(Section):
    """A folder of images with captions in a JSONL, CSV or TSV file."""

    kind: Literal["folder"] = "folder"
    path: str = operational(doc=f"The folder that holds the images: {_PLACE}.")
    captions: str = operational(
        "captions.jsonl",
        doc="JSONL, CSV or TSV file, relative to the folder: image, caption or captions, and "
        "optionally class, split and any further columns (kept as attributes).",
    )
    licence: str = operational("unknown", doc="Licence of the pictures, kept in the manifest.")


class _Reed(Section):
    """What the two data sets have in common to which Reed et al. (2016) gave captions."""

    captions: str = operational(
        "text_c10",
        doc="The folder of captions, relative to path or absolute; lists of classes are looked "
        "for in path and beside it.",
    )
    split: Literal["classes", "trainval", "official"] = operational(
        "classes",
        doc="classes: by trainclasses.txt, valclasses.txt and testclasses.txt; trainval: by "
        "trainvalclasses.txt and testclasses.txt; official: picture by picture, by setid.mat or "
        "train_test_split.txt. Where there is no val, it is a tenth of the training pictures.",
    )


class Oxford102(_Reed):
    """102 kinds of flowers (Nilsback and Zisserman 2008), with the captions of Reed et al.

    Reed's lists of classes have 62, 20 and 20 of them, or 82 and 20.
    """

    kind: Literal["oxford-102"] = "oxford-102"
    path: str = operational(doc=f"The folder with jpg/, imagelabels.mat and setid.mat: {_PLACE}.")
    licence: str = operational(
        "not stated; photographs from the web", doc="Licence of the pictures, for the manifest."
    )


class Cub200(_Reed):
    """200 kinds of birds (Wah et al. 2011, CUB-200-2011), with the captions of Reed et al.

    Reed's lists of classes have 100, 50 and 50 of them, or 150 and 50.
    """

    kind: Literal["cub-200"] = "cub-200"
    path: str = operational(doc=f"The folder CUB_200_2011, with images/ and images.txt: {_PLACE}.")
    licence: str = operational(
        "not stated; photographs from Flickr", doc="Licence of the pictures, for the manifest."
    )


class Hdf5(Section):
    """The HDF5 file of the best-known PyTorch implementation of GAN-CLS."""

    kind: Literal["hdf5"] = "hdf5"
    path: str = operational(doc=f"The file, such as flowers.hdf5, in {_PLACE}.")
    licence: str = operational("unknown", doc="Licence of the pictures, kept in the manifest.")


class Coco(Section):
    """Pictures with captions in COCO's JSON (Chen et al. 2015)."""

    kind: Literal["coco"] = "coco"
    path: str = operational(doc=f"The folder that holds all below: {_PLACE}.")
    train: str | None = operational(
        None, doc="File of train's captions; none: the only annotations/captions_train*.json."
    )
    val: str | None = operational(
        None, doc="File of val's captions; none: the only annotations/captions_val*.json."
    )
    test: str | None = operational(
        None,
        doc="File of test's captions; none: annotations/captions_test*.json if it is there, else "
        "test is half of val, by a hash of the file name.",
    )
    images: str | None = operational(
        None,
        doc="Folder of all pictures; none: each file's own, train2017 for captions_train2017.json.",
    )
    licence: str = operational(
        "captions CC-BY-4.0; each photograph its own, from Flickr",
        doc="Licence of the pictures and captions, kept in the manifest.",
    )


class Parquet(Section):
    """Parquet files that hold pictures and captions, as Hugging Face's data sets have them."""

    kind: Literal["parquet"] = "parquet"
    path: str = operational(
        doc=f"A file, a folder, or a pattern such as data/train-*.parquet: {_PLACE}."
    )
    image_column: str | None = operational(
        None, doc="Column of pictures; none: image, img, jpg or picture."
    )
    caption_column: str | None = operational(
        None, doc="Column of captions, text or lists of it; none: caption, captions or text."
    )
    class_column: str | None = operational(None, doc="Column of classes; none: no classes.")
    split_column: str | None = operational(
        None, doc="Column of splits; none: from the files' names, else by a hash."
    )
    licence: str = operational("unknown", doc="Licence of the pictures, kept in the manifest.")


class WebDataset(Section):
    """Tar files of pictures and captions, as the webdataset library and img2dataset write them."""

    kind: Literal["webdataset"] = "webdataset"
    path: str = operational(
        doc=f"A tar file, a folder, or a pattern such as shards/train-*.tar: {_PLACE}."
    )
    caption_key: str = operational(
        "caption", doc="Key of the caption, or of a list of them, in a sample's .json."
    )
    class_key: str | None = operational(
        None, doc="Key of the class in a sample's .json; none: the sample's .cls, if it has one."
    )
    licence: str = operational("unknown", doc="Licence of the pictures, kept in the manifest.")


Source = Annotated[
    SyntheticFlowers | Emoji | Folder | Oxford102 | Cub200 | Hdf5 | Coco | Parquet | WebDataset,
    Field(discriminator="kind"),
]
