"""The section ``data``: where pictures and captions come from, and how they are fed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i_ray.config.fields import Section, identity, operational


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
    """A folder of images with captions in a JSONL or CSV file."""

    kind: Literal["folder"] = "folder"
    path: str = operational(doc="The folder that holds the images.")
    captions: str = operational(
        "captions.jsonl",
        doc="JSONL or CSV file, relative to the folder: image, caption or captions, and "
        "optionally class, split and any further columns (kept as attributes).",
    )
    licence: str = operational("unknown", doc="Licence of the pictures, kept in the manifest.")


Source = Annotated[SyntheticFlowers | Emoji | Folder, Field(discriminator="kind")]


class Data(Section):
    """Where pictures and captions come from, and how they are fed.

    The source's fields are operational because the prepared data's digest stands for them.
    """

    source: Source = operational(SyntheticFlowers(), doc="What to prepare and train on.")
    image_size: int = identity(64, doc="Height and width that is trained, pixels.", ge=16)
    load_size: int = identity(
        76,
        doc="Height and width that is stored, pixels; a random crop of image_size is fed.",
        ge=16,
    )
    flip: bool = identity(True, doc="Mirror every other picture, at random.")
    shard_size: int = operational(1024, doc="Pictures in one stored shard.", ge=1)
    max_rejected: float = operational(
        0.05, doc="Largest share of unusable pictures before prepare gives up.", ge=0, le=1
    )

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.load_size < self.image_size:
            raise ValueError(
                f"data.load_size={self.load_size} is smaller than data.image_size="
                f"{self.image_size}; set data.load_size to {self.image_size} or more"
            )
        return self
