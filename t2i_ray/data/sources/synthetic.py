"""Synthetic flowers: pictures drawn by this program, so what a caption promises can be measured.

Every picture, its attributes and its captions are a pure function of (seed, index). Attribute
values are well separated at 32x32 pixels; petal and centre colours share no value, and colours of
backgrounds stay away from both. Nothing depends on left and right, so mirroring keeps captions
true.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from t2i_ray.config import SyntheticFlowers
from t2i_ray.data.record import Sample
from t2i_ray.data.rng import counter_rng
from t2i_ray.data.sources.base import Source
from t2i_ray.data.sources.flower_captions import write_caption

PETAL_COLOURS = {
    "red": (222, 28, 36),
    "orange": (250, 128, 16),
    "yellow": (253, 222, 50),
    "white": (250, 250, 248),
    "pink": (252, 148, 196),
    "purple": (132, 46, 178),
    "blue": (38, 72, 222),
    "turquoise": (16, 192, 184),
}
CENTRE_COLOURS = {
    "black": (22, 18, 24),
    "brown": (120, 68, 26),
    "green": (128, 200, 40),
    "silver": (158, 162, 168),
}
BACKGROUNDS = {
    "grass": (104, 162, 66),
    "sky": (184, 220, 248),
    "soil": (66, 46, 38),
    "sand": (222, 200, 158),
}
PETAL_COUNTS = {  # group -> the exact numbers and how often; 6 is seldom, for 5 looks much like it
    "few": ((4, 5), (0.5, 0.5)),
    "several": ((6, 7, 8), (0.2, 0.4, 0.4)),
    "many": ((9, 10, 11, 12), (0.25, 0.25, 0.25, 0.25)),
}
ATTRIBUTE_VALUES = {
    "petal_colour": list(PETAL_COLOURS),
    "petal_shape": ["round", "pointed", "narrow", "heart"],
    "petal_count": list(PETAL_COUNTS),
    "centre_colour": list(CENTRE_COLOURS),
    "background": list(BACKGROUNDS),
    "leaves": ["leafy", "bare"],
    "lighting": ["bright", "dim"],
}
CAPTIONS = 5  # a picture
SCALE = 4  # drawn so many times larger than stored, then averaged
LEAF, LEAF_EDGE = (24, 104, 46), (176, 224, 128)

Colour = tuple[int, int, int]


class SyntheticSource(Source):
    """The flowers as a source of data; keys are zero-padded indices."""

    licence = "CC0-1.0"
    fingerprint = "drawing 1"  # to be counted up whenever drawings or captions change
    attribute_values = ATTRIBUTE_VALUES

    def __init__(self, config: SyntheticFlowers, size: int) -> None:
        self.seed, self.size = config.seed, size
        self.entries = {f"{index:07d}": index for index in range(config.images)}
        self.classes = sorted(
            f"{colour} {shape}"
            for colour in ATTRIBUTE_VALUES["petal_colour"]
            for shape in ATTRIBUTE_VALUES["petal_shape"]
        )

    def read(self, key: str) -> Sample:
        """The flower of a key; never rejected."""
        return draw_sample(self.seed, self.entries[key], self.size)


def draw_sample(seed: int, index: int, size: int) -> Sample:
    """Picture ``index`` of the endless series ``seed``, at size x size pixels."""
    rng = counter_rng(seed, "flower", index)
    values = {
        name: options[int(rng.integers(len(options)))] for name, options in ATTRIBUTE_VALUES.items()
    }
    counts, weights = PETAL_COUNTS[values["petal_count"]]
    petals = int(rng.choice(counts, p=weights))
    image = draw_flower(values, petals, size, rng)
    rng = counter_rng(seed, "flower captions", index)
    captions, named = zip(
        *(write_caption(values, petals, rng) for _ in range(CAPTIONS)), strict=True
    )
    return Sample(
        picture=image,
        captions=list(captions),
        split=split_of(values),
        class_name=f"{values['petal_colour']} {values['petal_shape']}",
        attributes=values,
        named=list(named),
    )


def split_of(values: dict[str, str]) -> str:
    """Train, val or test, by the combination of petal colour, centre colour and background.

    Of the 128 combinations 16 are only in test and 16 only in val, every value equally often; so
    val and test ask for flowers of which train has each part but never the whole.
    """
    petal, centre, background = (
        ATTRIBUTE_VALUES[name].index(values[name])
        for name in ("petal_colour", "centre_colour", "background")
    )
    return {0: "test", 4: "val"}.get((petal + 2 * centre + 3 * background) % 8, "train")


def draw_flower(
    values: dict[str, str], petals: int, size: int, rng: np.random.Generator
) -> np.ndarray:
    """A flower with these attributes; place, scale, turn and tint vary. uint8 [size, size, 3]."""
    edge = size * SCALE
    canvas = _background(values["background"], edge, rng)
    pen = ImageDraw.Draw(canvas)
    middle = edge * (0.5 + rng.uniform(-0.02, 0.02, 2))
    radius = edge * rng.uniform(0.30, 0.36)
    if values["leaves"] == "leafy":
        _leaves(pen, middle, edge, rng)
    colour = _tint(PETAL_COLOURS[values["petal_colour"]], rng)
    _petals(pen, middle, radius, colour, values["petal_shape"], petals, rng)
    _centre(pen, middle, radius, _tint(CENTRE_COLOURS[values["centre_colour"]], rng), rng)
    return _lit(np.asarray(canvas.reduce(SCALE)), values["lighting"], rng)


def _background(kind: str, edge: int, rng: np.random.Generator) -> Image.Image:
    """A plain colour with soft blotches, and blades, clouds or grains on it."""
    base = np.array(_tint(BACKGROUNDS[kind], rng), np.float32)
    blotches = rng.normal(0, 7, (5, 5, 1)).astype(np.float32)
    small = np.clip(base + blotches, 0, 255).astype(np.uint8)
    canvas = Image.fromarray(small).resize((edge, edge), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    unit = edge / 32
    places = rng.uniform(0, edge, (40, 2)).tolist()
    if kind == "grass":
        for (x, y), lean in zip(places, rng.uniform(-1, 1, 40).tolist(), strict=True):
            tone = _shade(tuple(base), 0.8 if lean < 0 else 1.2)
            pen.line((x, y, x + lean * unit, y - 3 * unit), tone, max(1, int(unit / 2)))
    elif kind == "sky":
        for x, y in places[:3]:
            for dx in (-2, 0, 2):
                box = (x + dx * unit - 2 * unit, y - unit, x + dx * unit + 2 * unit, y + unit)
                pen.ellipse(box, (226, 240, 252))
    else:
        for i, (x, y) in enumerate(places):
            r = unit * (0.3 + 0.02 * (i % 10))
            tone = _shade(tuple(base), 0.75 if i % 2 else 1.2)
            pen.ellipse((x - r, y - r, x + r, y + r), tone)
    return canvas


def _leaves(
    pen: ImageDraw.ImageDraw, middle: np.ndarray, edge: int, rng: np.random.Generator
) -> None:
    """Two leaves towards the lower corners, with a light edge that shows on every background."""
    outline = _outline("pointed", 0.2)
    for side in (np.pi / 4, 3 * np.pi / 4):
        turn = side + rng.uniform(-0.15, 0.15)
        length = edge * rng.uniform(0.56, 0.62)
        _polygon(pen, outline, middle, turn, length, LEAF_EDGE)
        _polygon(pen, outline * (0.96, 0.8), middle, turn, length, LEAF)
        tip = middle + 0.9 * length * np.array([np.cos(turn), np.sin(turn)])
        pen.line((*middle.tolist(), *tip.tolist()), LEAF_EDGE, max(1, edge // 100))


def _petals(
    pen: ImageDraw.ImageDraw,
    middle: np.ndarray,
    radius: float,
    colour: Colour,
    shape: str,
    petals: int,
    rng: np.random.Generator,
) -> None:
    """One ring of petals; from nine on two rings, the inner one shorter and darker."""
    inner = petals // 2 if petals >= 9 else 0
    turn = rng.uniform(0, 2 * np.pi)
    streak = (0.9, 0.2) if shape == "heart" else (0.6, 0.22)
    plump = rng.uniform(0.9, 1.05)
    for count, length, tone in ((petals - inner, 1.0, 1.0), (inner, 0.68, 0.8)):
        if not count:
            continue
        outline = _outline(shape, plump * _half_width(shape, count))
        for i in range(count):
            angle = turn + 2 * np.pi * (i + rng.uniform(-0.05, 0.05)) / count
            reach = radius * length * rng.uniform(0.96, 1.0)
            shade = tone * (1.0 if i % 2 else 0.94)
            _polygon(pen, outline, middle, angle, reach, _shade(colour, 0.62 * shade))
            body = outline * (0.95, 0.88)
            _polygon(pen, body, middle, angle, reach, _shade(colour, shade))
            _polygon(pen, outline * streak, middle, angle, reach, _shade(colour, 0.75 * shade))
        turn += np.pi / count


def _centre(
    pen: ImageDraw.ImageDraw,
    middle: np.ndarray,
    radius: float,
    colour: Colour,
    rng: np.random.Generator,
) -> None:
    """A disc with a darker rim and a ring of dots."""
    x, y = middle.tolist()
    r = radius * rng.uniform(0.29, 0.35)
    pen.ellipse((x - r, y - r, x + r, y + r), _shade(colour, 0.7))
    r *= 0.9
    pen.ellipse((x - r, y - r, x + r, y + r), colour)
    dot = 0.11 * r
    for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False).tolist():
        dx, dy = 0.6 * r * np.cos(angle), 0.6 * r * np.sin(angle)
        box = (x + dx - dot, y + dy - dot, x + dx + dot, y + dy + dot)
        pen.ellipse(box, _shade(colour, 1.25))


def _lit(pixels: np.ndarray, lighting: str, rng: np.random.Generator) -> np.ndarray:
    """Bright: as drawn, a little glare from above. Dim: darkening towards the corners, bluish."""
    y, x = np.mgrid[-1 : 1 : pixels.shape[0] * 1j, -1 : 1 : pixels.shape[1] * 1j]
    if lighting == "bright":
        light = (1.06 - 0.05 * y)[..., None] * np.ones(3)
    else:
        fall = 0.88 - rng.uniform(0.24, 0.28) * (x * x + y * y)
        light = fall[..., None] * (0.96, 0.98, 1.06)
    lit: np.ndarray = np.clip(pixels * light, 0, 255).astype(np.uint8)
    return lit


def _half_width(shape: str, count: int) -> float:
    """Half a petal's width, of its length: a few petals touch, more leave gaps between them."""
    room = (0.62 if count < 6 else 0.52) * np.tan(np.pi / count)
    if shape == "narrow":
        return float(min(0.15, 0.5 * room))
    return float(min(0.42, room))


def _outline(shape: str, half_width: float) -> np.ndarray:
    """A petal from its base (0, 0) to its tip at x = 1, as a closed polygon [points, 2]."""
    if shape in ("round", "heart"):
        side = np.linspace(0, 1, 7)
        rise = np.stack([0.6 * side, np.sin(side * np.pi / 2) ** 1.2], 1)
        across = np.linspace(1, -1, 17)
        if shape == "round":
            x = 0.6 + 0.4 * np.sqrt(1 - across**2)
        else:
            x = (
                0.76
                + 0.24 * np.sqrt(1 - (2 * np.abs(across) - 1) ** 2)
                - 0.14 * np.abs(across) ** 4
            )
        tip = np.stack([x, across], 1)
        points = np.concatenate([rise[:-1], tip, rise[-2::-1] * (1, -1)])
    else:
        x = np.linspace(0, 1, 13)
        if shape == "pointed":
            y = np.where(x < 0.45, (x / 0.45) ** 0.8, ((1 - x) / 0.55) ** 0.9)
        else:
            y = np.sqrt(np.minimum(1, (1 - x) / 0.15))
        points = np.concatenate([np.stack([x, y], 1), np.stack([x, -y], 1)[::-1]])
    return points * (1, half_width)


def _polygon(
    pen: ImageDraw.ImageDraw,
    outline: np.ndarray,
    middle: np.ndarray,
    turn: float,
    length: float,
    colour: Colour,
) -> None:
    c, s = length * np.cos(turn), length * np.sin(turn)
    pen.polygon((outline @ np.array([[c, s], [-s, c]]) + middle).ravel().tolist(), colour)


def _tint(colour: Colour, rng: np.random.Generator) -> Colour:
    """A colour a little off."""
    return _shade(tuple(np.array(colour) + rng.uniform(-9, 9, 3)), rng.uniform(0.96, 1.04))


def _shade(colour: tuple[float, ...], factor: float) -> Colour:
    red, green, blue = (min(255, max(0, int(part * factor))) for part in colour)
    return red, green, blue
