"""Two prepared pictures of every kind of source with their captions, as one PNG.

    python tests/show_sources.py docs/sources.png

Data sets that lie on disk are stood in for by generated copies of their layouts, whose pictures
show the number that their captions name.
"""

from __future__ import annotations

import io
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import layouts
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t2i_ray import config
from t2i_ray.data import open_prepared, prepare
from t2i_ray.report import figure_png, new_figure
from t2i_ray.storage import LocalStore, Store

SIZE = 64
Shown = tuple[str, np.ndarray, list[str]]  # kind, pictures, a caption of each


def numbered(number: int, kind: str = "JPEG", **more: Any) -> bytes:
    """As layouts.image, with its number on it: whoever looks sees whose caption it is."""
    picture = Image.new("RGB", (150, 120), layouts.shade(number))
    font = ImageFont.load_default(84)
    ImageDraw.Draw(picture).text((75, 60), str(number), "white", font, anchor="mm")
    content = io.BytesIO()
    picture.save(content, kind, **more)
    return content.getvalue()


def sources(place: Path) -> Iterator[config.Source]:
    """One of each kind; those that lie on disk are made at the place."""
    yield config.SyntheticFlowers(images=64)
    yield config.Emoji()
    with mock.patch.object(layouts, "image", numbered):
        for name, make in layouts.LAYOUTS.items():
            yield make(place / name).source


def shown(source: config.Source, store: Store) -> Shown:
    """What was prepared of a source, read back."""
    data = config.Data(source=source, image_size=SIZE, load_size=SIZE)
    prepared = open_prepared(store, prepare(data, store))
    count = len(prepared.first_caption) - 1
    ids = np.array([count // 5, 4 * count // 5])
    captions = [prepared.captions[prepared.first_caption[sample]] for sample in ids]
    return source.kind, prepared.images(ids), captions


def drawn(all_shown: Sequence[Shown], columns: int = 3) -> bytes:
    """Their pictures with captions below and the kind above; PNG."""
    rows = -(-len(all_shown) // columns)
    figure = new_figure(3.2 * columns, 2.5 * rows)
    parts = np.asarray(figure.subfigures(rows, columns), object).ravel()
    for part, (kind, pictures, captions) in zip(parts, all_shown, strict=False):
        part.suptitle(kind, fontsize=11, fontweight="bold")
        for axes, picture, caption in zip(part.subplots(1, 2), pictures, captions, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[], anchor="N")
            axes.spines[:].set_visible(False)
            axes.set_xlabel(textwrap.fill(caption, 26), fontsize=8)
    return figure_png(figure, dpi=90)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        store = LocalStore(Path(scratch) / "prepared")
        found = [shown(source, store) for source in sources(Path(scratch))]
    Path(sys.argv[1]).write_bytes(drawn(found))


if __name__ == "__main__":
    main()
