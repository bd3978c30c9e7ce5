"""Whether a caption is such as an encoder, and the generator behind it, were trained on."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from t2i_ray.encoders.interface import Encoder

# Japanese is written in all of them, and a Chinese caption reads none of the others.
_TOGETHER = dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO"), "CJK")


def scripts_of(texts: Iterable[str]) -> list[str]:
    """Scripts of the letters in the texts as Unicode names them, such as LATIN, sorted."""
    characters = {character for text in texts for character in text}
    normal = unicodedata.normalize("NFKC", "".join(sorted(characters)))
    letters = {character for character in normal if unicodedata.category(character)[0] == "L"}
    names = {unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters}
    return sorted({_TOGETHER.get(name, name) for name in names})


def unknown_words(encoder: Encoder, caption: str) -> tuple[list[str], int]:
    """Words (or characters) of the caption that the encoder does not know, and how many it has.

    Punctuation does not count.
    """
    words, unknown = encoder.words(caption), encoder.unreadable(caption)
    return list(filter(_says, unknown)), sum(map(_says, words))


def refusal(encoder: Encoder, caption: str) -> str | None:
    """Why a picture of this caption would not be of this caption; None: it may well be.

    It is refused if its letters are of other scripts than all training captions', where those are
    known, or if the encoder knows none of its words. One without letters or words is not.
    """
    scripts = scripts_of([caption])
    if encoder.scripts and scripts and not {*scripts} & {*encoder.scripts}:
        return (
            f"it is written in {', '.join(scripts)} letters, and the training captions in "
            f"{', '.join(encoder.scripts)}"
        )
    unknown, count = unknown_words(encoder, caption)
    if count and len(unknown) == count:
        return f"the encoder knows none of its {count} words"
    return None


def _says(word: str) -> bool:
    return any(character.isalnum() for character in word)
