"""The one place where samples of every source are cleaned and checked."""

from __future__ import annotations

import re

from t2i_ray.data.captions import clean
from t2i_ray.data.images import load_square
from t2i_ray.data.record import Record, Rejected, Sample


def accept(sample: Sample, size: int) -> Record:
    """The sample as it is kept, at size x size pixels. Raises Rejected with the reason."""
    captions, named, cut = [], [], 0
    for place, text in enumerate(sample.captions):
        caption, was_cut = clean(text)
        if caption:
            captions.append(caption)
            cut += was_cut
            given = sample.named
            named.append(given[place] if given else _named(caption, sample.attributes))
    if not captions:
        raise Rejected("no caption")
    pixels = sample.picture
    return Record(
        image=load_square(pixels, size) if isinstance(pixels, bytes) else pixels,
        captions=captions,
        split=sample.split,
        class_name=sample.class_name,
        attributes=sample.attributes,
        named=named,
        cut=cut,
        empty=len(sample.captions) - len(captions),
    )


def _named(caption: str, attributes: dict[str, str]) -> frozenset[str]:
    """The attributes whose value stands in the caption as whole words."""
    return frozenset(
        name
        for name, value in attributes.items()
        if value and re.search(rf"\b{re.escape(value)}\b", caption, re.I)
    )
