"""The one place where captions of every source are cleaned."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 512  # words of a caption that are kept, and at most 16 characters for each

# Control characters; lone surrogates, which no file can hold; marks that turn the direction of
# writing or have no width. Joiners stay: Persian and Hindi, and emoji, need them.
_NO_TEXT = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_GAP = re.compile(r"[\s\ufffd]+")  # U+FFFD stands for bytes that were no UTF-8


def clean(text: str) -> tuple[str, bool]:
    """A caption as it is kept, and whether it was cut; empty if nothing is left.

    Composed characters (NFC), no control characters, one space between words, at most LONGEST
    words. Whatever language it is in, its letters stay as they are.
    """
    words = _NO_TEXT.sub("", _GAP.sub(" ", unicodedata.normalize("NFC", text))).split()
    kept = " ".join(words[:LONGEST])[: 16 * LONGEST].rstrip()
    return kept, len(kept) < len(" ".join(words))


def visible(text: str) -> str:
    """A key or a name, with what no table or terminal should hold written as its number."""
    return _NO_TEXT.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def decode(content: bytes) -> str:
    """Text of a sample's own file: UTF-8; clean drops what is not."""
    return content.decode("utf-8-sig", errors="replace")
