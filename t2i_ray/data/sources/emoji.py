"""Colour emoji drawn from a font, captioned by their names in any language of the emoji package."""

from __future__ import annotations

import hashlib
import importlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t2i_ray.config import Emoji, UserError
from t2i_ray.data.images import square
from t2i_ray.data.record import Rejected, Sample, split_by_hash
from t2i_ray.data.sources.base import Source

_USUAL_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "/System/Library/Fonts/Apple Color Emoji.ttc",
    "C:/Windows/Fonts/seguiemj.ttf",
)
_BITMAP_SIZES = (109, 128, 136, 160, 96, 64)  # a bitmap font has one size only; Noto's is 109
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_NO_CHARACTER = "\U0010ffff"  # no font has it: its glyph is the font's "missing"
_TEMPLATES = ("{}", "an emoji of {}", "a picture of {}")


class EmojiSource(Source):
    """Emoji that the font has, on white; a key is its code points in hexadecimal.

    Skin-tone variants are of the class of their base, and in its split.

    Raises:
        UserError: the emoji package or a colour-emoji font is missing, or the language unknown.
    """

    licence = "that of the font"
    attribute_values: dict[str, list[str]] = {}  # noqa: RUF012 - never changed

    def __init__(self, config: Emoji, size: int) -> None:
        self._size, self._language = size, config.language
        names = _names(config.language)
        self._path = _find(config.font)
        self._digest = hashlib.sha256(self._path.read_bytes()).hexdigest()
        font = _open(self._path, self._digest)
        told = self._digest + json.dumps(names, sort_keys=True)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        # A sequence that the font does not know falls apart into several glyphs.
        wide = 1.5 * font.getlength("\U0001f600")
        self.entries = {
            "-".join(f"{ord(character):05x}" for character in text): (text, name)
            for text, name in names.items()
            if font.getlength(text) < wide and not _lacks(font, text)
        }
        self.classes = sorted({_base(text) for text, _ in self.entries.values()})

    def read(self, key: str) -> Sample:
        """The emoji of a key. Raises Rejected if its drawing is empty."""
        text, names = self.entries[key]
        font = _open(self._path, self._digest)
        left, top, right, bottom = font.getbbox(text)
        edge = int(1.1 * max(right - left, bottom - top))
        canvas = Image.new("RGB", (edge, edge), "white")
        place = ((edge - right - left) / 2, (edge - bottom - top) / 2)
        ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True)
        pixels = square(canvas, self._size)
        if pixels.min() == 255:
            raise Rejected("the font draws nothing")
        templates = _TEMPLATES if self._language == "en" else _TEMPLATES[:1]
        captions = [template.format(name) for name in names for template in templates]
        base = _base(text)
        return Sample(pixels, captions, split=split_by_hash(base), class_name=base)


def _lacks(font: ImageFont.FreeTypeFont, text: str) -> bool:
    if font.getbbox(text) != font.getbbox(_NO_CHARACTER):
        return False
    return bytes(font.getmask(text)) == bytes(font.getmask(_NO_CHARACTER))


def _names(language: str) -> dict[str, list[str]]:
    """Emoji -> its names in words, fully qualified ones only."""
    try:
        package: Any = importlib.import_module("emoji")
    except ImportError:
        raise UserError(
            "data.source.kind=emoji: needs the emoji package; pip install t2i-ray[emoji]"
        ) from None
    if language not in package.LANGUAGES:
        raise UserError(
            f"data.source.language={language}: not known; use one of "
            f"{', '.join(sorted(package.LANGUAGES))}"
        )
    package.config.load_language(language)
    found = {}
    for text, data in package.EMOJI_DATA.items():
        if data["status"] == package.STATUS["fully_qualified"] and language in data:
            aliases = data.get("alias", []) if language == "en" else []
            words = [name.strip(":").replace("_", " ") for name in (data[language], *aliases)]
            found[text] = list(dict.fromkeys(words))
    return found


def _find(font: str | None) -> Path:
    for place in (font,) if font else _USUAL_PLACES:
        path = Path(place).expanduser()
        if path.is_file():
            return path
    if font:
        raise UserError(f"data.source.font={font}: no such file; give a colour-emoji font (.ttf)")
    raise UserError(
        "data.source.font: no colour-emoji font in the usual places; install one (Debian: "
        "fonts-noto-color-emoji) or give its path"
    )


@lru_cache(maxsize=1)
def _open(path: Path, digest: str) -> ImageFont.FreeTypeFont:
    """The font, opened once per process. Raises UserError if it is another than the driver's."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise UserError(
            f"data.source.font={path}: differs between machines or is not on all of them; put the "
            "same font there on every node"
        )
    reason = ""
    for size in _BITMAP_SIZES:
        try:
            font = ImageFont.truetype(str(path), size)
            canvas = Image.new("RGB", (2 * size, 2 * size), "white")
            ImageDraw.Draw(canvas).text((0, 0), "\U0001f600", font=font, embedded_color=True)
        except OSError as error:
            reason = str(error)
            continue
        pixels = np.asarray(canvas).astype(int)
        if np.ptp(pixels, axis=-1).max() > 30:
            return font
        reason = "draws no colours that Pillow can see"
        break
    raise UserError(
        f"data.source.font={path}: {reason}; give a colour-emoji font with bitmaps, such as "
        "NotoColorEmoji.ttf"
    )


def _base(text: str) -> str:
    """The key of an emoji without its skin tones, and without the mark that asks for colour."""
    kept = [c for c in text if c not in _SKIN_TONES and c != "\ufe0f"]
    return "-".join(f"{ord(character):05x}" for character in kept or text)
