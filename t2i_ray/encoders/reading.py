"""Whether a caption is such as an encoder, and the generator behind it, were trained on."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from t2i_ray.encoders.interface import Encoder

# Japanese is written in all of them, and a Chinese caption reads none of the others.
_TOGETHER = dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "BOPOMOFO"), "CJK")
_FIRST_SYMBOL = "\u2190"  # before it are signs, such as those of degrees and of trademarks


def scripts_of(texts: Iterable[str], least: float = 0) -> list[str]:
    """Scripts of the letters in the texts as Unicode names them, such as LATIN, sorted.

    Emoji and the like are a script of their own, SYMBOLS. Only those that more than the share
    ``least`` of all letters and symbols are of.
    """
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        for letter in unicodedata.normalize("NFKC", character):
            category = unicodedata.category(letter)
            if category[0] == "L":
                name = unicodedata.name(letter, "UNKNOWN").split()[0]
                scripts[_TOGETHER.get(name, name)] += count
            elif category == "So" and letter >= _FIRST_SYMBOL:
                scripts["SYMBOLS"] += count
    return sorted(name for name, count in scripts.items() if count > least * scripts.total())


def unknown_words(encoder: Encoder, caption: str) -> tuple[list[str], int]:
    """Words (or characters) of the caption that the encoder does not know, and how many it has.

    Nor does it know those of other scripts than the training captions', where these are known: a
    tokenizer of bytes has a token for anything. Punctuation does not count.
    """
    unreadable = {*encoder.unreadable(caption)}
    words = [word for word in encoder.words(caption) if _says(word)]
    unknown = [word for word in words if word in unreadable or _is_foreign(encoder, word)]
    return unknown, len(words)


def refusal(encoder: Encoder, caption: str) -> str | None:
    """Why a picture of this caption would not be of this caption; None: it may well be.

    It is refused if its letters and symbols are of other scripts than all training captions',
    where those are known, or if it has no words, or none that the encoder knows.
    """
    if _is_foreign(encoder, caption):
        return (
            f"it is written in {', '.join(scripts_of([caption]))}, and the training captions "
            f"in {', '.join(encoder.scripts or ())}"
        )
    unknown, count = unknown_words(encoder, caption)
    if not count:
        return "it has no words"
    return f"the encoder knows none of its {count} words" if len(unknown) == count else None


def _is_foreign(encoder: Encoder, text: str) -> bool:
    scripts = scripts_of([text])
    return bool(encoder.scripts and scripts and not {*scripts} & {*encoder.scripts})


def _says(word: str) -> bool:
    """Whether it has a letter, a digit, or a symbol such as an emoji: punctuation has none."""
    return any(each.isalnum() or unicodedata.category(each) == "So" for each in word)
