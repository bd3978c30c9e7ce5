"""Captions of a synthetic flower, in the manner in which people describe photographs of flowers.

A caption names the petals' colour and, each with its own probability, the other attributes; which
ones it names is returned with it. It never says what is not there, and no word stands for two
values of the same attribute.
"""

from __future__ import annotations

import numpy as np

# How often a caption names an attribute, and how it words each value.
NAMED = {
    "petal_colour": 1.0,
    "petal_shape": 0.7,
    "petal_count": 0.6,
    "centre_colour": 0.85,
    "background": 0.8,
    "leaves": 0.55,
    "lighting": 0.55,
}
WORDS: dict[str, dict[str, list[str]]] = {
    "petal_colour": {
        "red": ["red", "bright red", "scarlet"],
        "orange": ["orange", "vivid orange", "tangerine"],
        "yellow": ["yellow", "bright yellow", "lemon yellow"],
        "white": ["white", "pure white", "snowy white"],
        "pink": ["pink", "soft pink", "rose pink"],
        "purple": ["purple", "deep purple", "violet"],
        "blue": ["blue", "deep blue", "royal blue"],
        "turquoise": ["turquoise", "aqua", "teal"],
    },
    "petal_shape": {
        "round": ["rounded", "round"],
        "pointed": ["pointed", "sharply pointed"],
        "narrow": ["narrow", "slender"],
        "heart": ["heart shaped", "notched"],
    },
    "petal_count": {
        "few": ["a few", "just a few"],
        "several": ["several"],
        "many": ["many", "a great many"],
    },
    "centre_colour": {
        "black": ["black", "jet black"],
        "brown": ["brown", "chocolate brown"],
        "green": ["lime green", "fresh green"],
        "silver": ["silver", "silvery grey"],
    },
    "background": {
        "grass": ["over green grass", "on a grassy lawn", "in a green meadow"],
        "sky": ["against a pale sky", "in front of a clear sky"],
        "soil": ["over dark soil", "on bare dark earth"],
        "sand": ["on pale sand", "on a sandy beach"],
    },
    "leaves": {
        "leafy": ["two green leaves", "a pair of green leaves"],
        "bare": ["only the blossom in view", "just the blossom in view"],
    },
    "lighting": {
        "bright": ["in bright sunlight", "in full sun", "on a sunny day"],
        "dim": ["in dim light", "at dusk", "in the dark of the evening"],
    },
}
NUMBERS = dict(
    enumerate(["four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], start=4)
)


def write_caption(
    values: dict[str, str], petals: int, rng: np.random.Generator
) -> tuple[str, frozenset[str]]:
    """One caption of a flower, and the names of the attributes it names.

    Args:
        values: the flower's attributes, name -> value.
        petals: the exact number of petals, 4 to 12.
        rng: where wording and choice come from.
    """

    def pick(options: list[str]) -> str:
        return options[int(rng.integers(len(options)))]

    named = frozenset(name for name, often in NAMED.items() if rng.random() < often)
    word = {name: pick(WORDS[name][values[name]]) if name in named else "" for name in NAMED}
    if word["petal_count"] and rng.random() < 0.5:
        word["petal_count"] = NUMBERS[petals]
    centre = word["centre_colour"]
    if centre:
        article = pick(["a large", "a big", "a"])
        centre = f"{article} {centre} {pick(['centre', 'middle', 'disc'])}"
    pattern = int(rng.integers(5))
    if pattern == 0:
        text = _and(f"this flower has {_petals(word, relative=True)}", centre)
    elif pattern == 1:
        text = f"a flower with {_petals(word)}" + (f" around {centre}" if centre else "")
    elif pattern == 2 and centre:
        text = f"{centre} surrounded by {_petals(word)}"
    elif pattern == 3 and (word["petal_shape"] or not word["petal_count"]):
        text = f"the petals of this flower are {_list(word['petal_colour'], word['petal_shape'])}"
        if word["petal_count"]:  # "the few red petals", never "the a few"
            count = word["petal_count"].split()[-1]
            text = f"the {count} {word['petal_colour']} petals of this flower are "
            text += word["petal_shape"]
        text += f", and it has {centre}" if centre else ""
    else:
        text = f"{pick(['a blossom', 'the bloom', 'a pretty flower'])} of {_petals(word)}"
        text += f" with {centre}" if centre else ""
    return _with_rest(text, word, rng), named


def _petals(word: dict[str, str], *, relative: bool = False) -> str:
    """The petals as a noun phrase, e.g. ``five rounded pink petals``."""
    if relative and word["petal_shape"]:
        return _words(
            word["petal_count"], word["petal_colour"], "petals that are", word["petal_shape"]
        )
    return _words(word["petal_count"], word["petal_shape"], word["petal_colour"], "petals")


def _with_rest(text: str, word: dict[str, str], rng: np.random.Generator) -> str:
    """Leaves, background and lighting, before or behind, in any order."""
    leaves = f"with {word['leaves']}" if word["leaves"] else ""
    clauses = [clause for clause in (leaves, word["background"], word["lighting"]) if clause]
    clauses = [clauses[i] for i in rng.permutation(len(clauses))]
    if clauses and rng.random() < 0.3:
        return f"{clauses[0]}, {text}" + "".join(f", {clause}" for clause in clauses[1:])
    return text + "".join(f", {clause}" for clause in clauses)


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _list(*parts: str) -> str:
    return " and ".join(part for part in parts if part)


def _and(text: str, more: str) -> str:
    return f"{text} and {more}" if more else text
