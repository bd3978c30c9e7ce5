"""The section ``data``: where pictures and captions come from, and how they are fed."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from t2i_ray.config.fields import Section, identity, operational
from t2i_ray.config.sources import Source, SyntheticFlowers


class Data(Section):
    """Where pictures and captions come from, and how they are fed."""

    source: Source = operational(SyntheticFlowers(), doc="What to prepare and train on.")
    image_size: int = identity(64, doc="Height and width that is trained, pixels.", ge=16)
    load_size: int = identity(
        76,
        doc="Height and width that is stored, pixels; a random crop of image_size is fed.",
        ge=16,
    )
    flip: bool = identity(True, doc="Mirror every other picture, at random.")
    wrong: Literal["other_class", "same_class", "hard", "one_word"] = identity(
        "other_class",
        doc="Whose caption is the wrong one of a picture: any other class's; same_class: another "
        "picture's of its own class; hard: that of the class whose captions are the most similar; "
        "one_word: its own caption with one word replaced. All but other_class's are one more "
        "alternative for their picture in train.matching.",
    )
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
