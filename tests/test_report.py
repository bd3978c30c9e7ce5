"""What the pictures of a run look like, pixel by pixel where that can be said."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from t2i_ray.report import GAP, MARGIN, loss_figure, running_mean, sample_grid, strip


def plain(*colours: tuple[int, int, int], size: int = 32) -> np.ndarray:
    """One picture of each colour."""
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


def decode(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7), (250, 200, 0), (0, 99, 99)]


def find(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a colour, which must fill that box."""
    rows, columns = np.nonzero((pixels == colour).all(2))
    box = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    assert len(rows) == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize(("size", "shown"), [(16, 96), (32, 96), (64, 128), (128, 128)])
def test_a_grid_has_a_row_for_each_caption(size: int, shown: int) -> None:
    pixels = decode(sample_grid(plain(*COLOURS, size=size), ["one", "two"]))
    assert pixels.shape[0] == 2 * shown + GAP + 2 * MARGIN
    boxes = [find(pixels, colour) for colour in COLOURS]
    for i, (top, left, bottom, right) in enumerate(boxes):
        row, column = divmod(i, 3)
        assert (bottom - top, right - left) == (shown, shown)
        assert top == MARGIN + row * (shown + GAP)
        assert left == boxes[0][1] + column * (shown + GAP)
    assert (pixels[:, -MARGIN:] == 255).all()


def test_pictures_are_enlarged_square_by_square() -> None:
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
    pixels = decode(sample_grid(image, ["noise"]))
    right = pixels[MARGIN : MARGIN + 96, -MARGIN - 96 : -MARGIN]
    assert (right[1::3, 1::3] == image[0]).all()
    assert (right[::3, 2::3] == image[0]).all()


def test_captions_stay_beside_their_row() -> None:
    pixels = decode(sample_grid(plain(*COLOURS[:2]), ["", "a flower " * 80]))
    left = find(pixels, COLOURS[0])[1]
    beside = pixels[:, :left]
    assert (beside[: MARGIN + 96] == 255).all()  # no caption, and none of its neighbour's
    assert (beside[MARGIN + 96 + GAP : -MARGIN] < 128).any()
    assert (beside[:, -4:] == 255).all()  # wrapped before the pictures
    assert (beside[-MARGIN + 3 :] == 255).all()


@pytest.mark.parametrize(
    "caption",
    ["", " ", "日本語" * 100, "שלום العربية", "🌻", "\ud800", "a\x00b\nc\t", "x" * 500, "é ﷽ ‮"],
)
def test_any_script_can_be_drawn(caption: str) -> None:
    assert decode(sample_grid(plain(COLOURS[0]), [caption])).size
    assert decode(strip(plain(COLOURS[0]), [caption])).size


def test_words_are_kept_whole() -> None:
    words = "a flower with several pointed petals"
    short = decode(sample_grid(plain(COLOURS[0]), [words]))
    again = decode(sample_grid(plain(COLOURS[0]), [words.replace(" ", "\n ")]))
    assert (short == again).all()


@pytest.mark.parametrize(("count", "captions"), [(3, ["a", "b"]), (0, ["a"]), (2, [])])
def test_a_ragged_grid_is_refused(count: int, captions: list[str]) -> None:
    with pytest.raises(ValueError, match="rows"):
        sample_grid(plain(*COLOURS)[:count], captions)


def test_a_strip_is_in_order() -> None:
    pixels = decode(strip(plain(*COLOURS)))
    assert pixels.shape == (96 + 2 * MARGIN, 6 * 96 + 5 * GAP + 2 * MARGIN, 3)
    lefts = [find(pixels, colour)[1] for colour in COLOURS]
    assert lefts == [MARGIN + i * (96 + GAP) for i in range(6)]
    labelled = decode(strip(plain(*COLOURS), ["from", "", "", "", "", "to"]))
    assert labelled.shape[0] > pixels.shape[0]
    under = labelled[MARGIN + 96 :]
    assert (under[:, lefts[1] : lefts[5]] == 255).all()
    assert (under[:, : lefts[1]] < 128).any()
    ends = decode(strip(plain(*COLOURS), ["from here", "to there"]))
    assert ends.shape == (labelled.shape[0], *pixels.shape[1:])
    under = ends[MARGIN + 96 :]
    assert (under[:, lefts[1] : lefts[5]] == 255).all()
    assert (under[:, : lefts[1]] < 128).any()
    assert (under[:, lefts[5] :] < 128).any()
    with pytest.raises(ValueError, match="6 images with 1 labels"):
        strip(plain(*COLOURS), ["one"])


def history(steps: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    names = ["d_loss", "g_loss", "d_real", "d_acc_real", "d_acc_wrong", "d_acc_fake"]
    return {"step": list(range(1, steps + 1))} | {n: rng.random(steps).tolist() for n in names}


def test_equal_histories_give_equal_bytes() -> None:
    assert loss_figure(history(300)) == loss_figure(history(300))
    assert loss_figure(history(300)) != loss_figure(history(301))


def test_the_figure_shows_what_there_is() -> None:
    whole = decode(loss_figure(history(50)))
    blue = (0x00, 0x72, 0xB2)
    assert (whole == blue).all(2).any()
    part = decode(loss_figure({k: v for k, v in history(50).items() if k in ("step", "d_loss")}))
    assert not (part == blue).all(2).any()
    assert (part == (0xD5, 0x5E, 0x00)).all(2).any()
    falls = {"step": [*range(50)], "g_loss": [1 - i / 5 for i in range(50)]}
    drawn = (decode(loss_figure(falls)) == blue).all(2).any(0)
    assert drawn.mean() > 0.3  # of a picture of two figures: also what is below zero


@pytest.mark.parametrize(
    "odd",
    [{}, {"step": [1], "d_loss": [float("nan")]}, {"step": [5], "g_loss": [1.0]}, history(9000)],
)
def test_odd_histories_can_be_drawn(odd: dict[str, list[float]]) -> None:
    assert decode(loss_figure(odd)).size


def test_running_mean() -> None:
    assert running_mean(np.array([1.0, 5.0])).tolist() == [1, 5]
    values = np.arange(300.0)
    values[150] = np.nan
    smooth = running_mean(values)  # seven wide
    assert smooth[0] == 1.5
    assert smooth[100] == 100
    assert smooth[150] == 150
    assert smooth[299] == 297.5
    assert np.isnan(running_mean(np.array([np.nan]))).all()


def test_matplotlib_is_loaded_late() -> None:
    code = "import t2i_ray.report, sys; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
