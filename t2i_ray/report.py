"""Pictures of a run: sample grids, interpolation strips and the loss figure, all as PNG bytes.

Equal input gives equal bytes (with the same libraries). Nothing here touches files or any global
state of matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 96  # pictures are enlarged by a whole factor to at least so many pixels
GAP, MARGIN = 4, 12
FONT_SIZE, LINE, CAPTION_WIDTH = 13, 18, 250
INK = (40, 40, 40)

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"


def sample_grid(images: np.ndarray, captions: Sequence[str]) -> bytes:
    """One row a caption, the caption beside it; PNG.

    Args:
        images: uint8 [n, S, S, 3], the first n / len(captions) of them for the first caption.
        captions: any script; what the font lacks is shown as a box.

    Raises:
        ValueError: the images cannot be shared out among the captions.
    """
    if not captions or not len(images) or len(images) % len(captions):
        raise ValueError(f"{len(images)} images do not make rows for {len(captions)} captions")
    tiles = _enlarge(images)
    columns, edge = len(tiles) // len(captions), tiles.shape[1]
    left = MARGIN + CAPTION_WIDTH + MARGIN
    width = left + columns * (edge + GAP) - GAP + MARGIN
    height = len(captions) * (edge + GAP) - GAP + 2 * MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(canvas), _font()
    for row, caption in enumerate(captions):
        top = MARGIN + row * (edge + GAP)
        lines = _wrap(caption, font, CAPTION_WIDTH, edge // LINE)
        y = top + (edge - LINE * len(lines)) // 2
        for i, line in enumerate(lines):
            pen.text((MARGIN, y + i * LINE), line, INK, font)
        for column in range(columns):
            tile = Image.fromarray(tiles[row * columns + column])
            canvas.paste(tile, (left + column * (edge + GAP), top))
    return _png(canvas)


def strip(images: np.ndarray, labels: Sequence[str] | None = None) -> bytes:
    """Pictures side by side, such as an interpolation, with labels below; PNG.

    Args:
        images: uint8 [n, S, S, 3].
        labels: one a picture, or two for the two ends.

    Raises:
        ValueError: there is no image, or the labels are neither n nor two.
    """
    labels = [""] * len(images) if labels is None else labels
    if not len(images) or len(labels) not in (2, len(images)):
        raise ValueError(f"{len(images)} images with {len(labels)} labels")
    tiles, font = _enlarge(images), _font()
    edge = tiles.shape[1]
    span = len(tiles) * (edge + GAP) - GAP
    room = (span + GAP) // len(labels) - GAP  # for a label
    wrapped = [_wrap(label, font, room) for label in labels]
    below = max(len(lines) for lines in wrapped) * LINE
    canvas = Image.new("RGB", (span + 2 * MARGIN, edge + below + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    for i, tile in enumerate(tiles):
        canvas.paste(Image.fromarray(tile), (MARGIN + i * (edge + GAP), MARGIN))
    for i, lines in enumerate(wrapped):
        # Labels of pictures are centred; those of the ends are flush with them.
        flush = 0.5 if len(labels) == len(tiles) else float(i)
        for j, line in enumerate(lines):
            x = MARGIN + i * (room + GAP) + flush * (room - font.getlength(line))
            pen.text((x, MARGIN + edge + 2 + j * LINE), line, INK, font)
    return _png(canvas)


def side_by_side(grids: Mapping[str, bytes], image_size: int, columns: int) -> bytes:
    """Sample grids of the same captions next to one another, the captions once; PNG.

    Args:
        grids: title -> a PNG of `sample_grid`.
        image_size: of the pictures in them before they were enlarged.
        columns: how many pictures to show of each row, at most.

    Raises:
        ValueError: the grids differ in their captions or their size.
    """
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in grids.values()]
    left, edge = MARGIN + CAPTION_WIDTH + MARGIN, image_size * _factor(image_size)
    captions = [np.asarray(picture)[:, :left] for picture in pictures]
    if any(not np.array_equal(captions[0], other) for other in captions):
        raise ValueError("the grids do not show the same captions")
    columns = min(columns, *((p.width - left - MARGIN + GAP) // (edge + GAP) for p in pictures), 99)
    span, height = columns * (edge + GAP) - GAP, pictures[0].height
    canvas = Image.new("RGB", (left + len(pictures) * (span + MARGIN), height + LINE), "white")
    pen, font = ImageDraw.Draw(canvas), _font()
    canvas.paste(pictures[0].crop((0, 0, left, height)), (0, LINE))
    for i, (title, picture) in enumerate(zip(grids, pictures, strict=True)):
        x = left + i * (span + MARGIN)
        canvas.paste(picture.crop((left, 0, left + span, height)), (x, LINE))
        pen.text((x, MARGIN - 4), "".join(_wrap(title, font, span, 1)), INK, font)
    return _png(canvas)


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Each pixel as a square: uint8 [n, S, S, 3] to [n, kS, kS, 3]."""
    factor = _factor(images.shape[1])
    return np.asarray(images, np.uint8).repeat(factor, 1).repeat(factor, 2)


def _factor(size: int) -> int:
    """By how much pictures of this size are enlarged."""
    return max(1, -(-SHOWN // size))


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Hebrew, Arabic."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def _wrap(
    text: str, font: ImageFont.FreeTypeFont, width: int, most: int | None = None
) -> list[str]:
    """Lines no wider than width; after the last that there is room for, dots.

    Words are kept whole where they fit on a line; scripts without spaces are cut anywhere.
    """
    text = text.encode("utf8", "replace").decode()  # half a surrogate pair cannot be drawn
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    lines = []
    while text:
        end = len(text)
        while end > 1 and font.getlength(text[:end]) > width:
            end = text.rfind(" ", 0, end) if " " in text[:end].strip() else end - 1
        lines.append(text[:end])
        text = text[end:].strip()
    if most is not None and len(lines) > max(1, most):
        last = lines[max(1, most) - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: max(1, most) - 1], last + "..."]
    return lines


def _png(canvas: Image.Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")  # optimize=True takes ten times as long, for no smaller a file
    return buffer.getvalue()


# ------------------------------------------------------------------------------ loss figure


def loss_figure(history: Mapping[str, Sequence[float]]) -> bytes:
    """Losses of both networks, and how often the discriminator is right; PNG.

    Args:
        history: "step" and, of equal length, any of g_loss, d_loss, d_acc_real, d_acc_wrong and
            d_acc_fake; what is missing is left out.
    """
    step = np.asarray(history.get("step", []), float)
    figure = new_figure(10, 3.8)
    losses, accuracy = figure.subplots(1, 2)
    _curves(losses, step, history, [
        ("g_loss", "generator", BLUE, "-"),
        ("d_loss", "discriminator", ORANGE, "-"),
    ])  # fmt: skip
    losses.set(title="Losses", xlabel="step", ylabel="loss")
    accuracy.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    _curves(accuracy, step, history, [
        ("d_acc_real", "real, right caption", BLUE, "-"),
        ("d_acc_wrong", "real, wrong caption", ORANGE, "--"),
        ("d_acc_fake", "generated", GREEN, "-."),
    ])  # fmt: skip
    accuracy.set(
        title="How often the discriminator is right", xlabel="step", ylabel="share of pairs"
    )
    accuracy.set_ylim(0, 1.02)
    return figure_png(figure, dpi=120)


def new_figure(width: float, height: float, ground: str = "#ffffff") -> Figure:
    """An empty one, width and height in inches, on a ground of a colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=ground)
    FigureCanvasAgg(figure)
    return figure


def figure_png(figure: Figure, dpi: int) -> bytes:
    """The same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _curves(
    axes: object,
    step: np.ndarray,
    history: Mapping[str, Sequence[float]],
    curves: Sequence[tuple[str, str, str, str]],
) -> None:
    """Each curve faint as it was measured, and strong as its running mean."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    thin = 1 + len(step) // 4000  # as many points as there are pixels, and some
    low, top = 0.0, 0.0
    for name, label, colour, style in curves:
        values = np.asarray(history.get(name, []), float)
        if not len(values):
            continue
        smooth = running_mean(running_mean(values))
        low = min(low, float(np.nanmin(smooth, initial=0)))
        top = max(top, float(np.nanmax(smooth, initial=0)))
        axes.plot(step[::thin], values[::thin], color=colour, alpha=0.22, lw=0.7)
        axes.plot(step[::thin], smooth[::thin], style, color=colour, lw=1.8, label=label, zorder=3)
    if low < top:  # a cvae's bound, of a density, may lie below zero
        axes.set_ylim(1.15 * low, 1.15 * top)  # a spike of one step may leave the picture
    if axes.get_legend_handles_labels()[0]:
        below = (0.5, -0.16)
        axes.legend(loc="upper center", bbox_to_anchor=below, ncols=3, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def running_mean(values: np.ndarray) -> np.ndarray:
    """The centred mean over a fiftieth of the curve; windows shrink at both ends.

    What is not finite is left out; a window without anything finite gives nan.
    """
    half = len(values) // 100
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    finite = np.isfinite(values)

    def over_windows(column: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0.0], np.cumsum(column)])
        total: np.ndarray = sums[high] - sums[low]
        return total

    count = over_windows(finite)
    return over_windows(np.where(finite, values, 0.0)) / np.where(count > 0, count, np.nan)
