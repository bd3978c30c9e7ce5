"""Attribute agreement, and a Frechet distance in the reader's features.

Agreement: a caption names an attribute, a picture is generated from it, the reader reads the
attribute off the picture; the share of pictures on which both say the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from t2i_ray.config import UserError
from t2i_ray.data import Prepared, counter_rng
from t2i_ray.evaluate.reader import Reader, real_pictures

READABLE = 0.95  # of real test pictures must be read rightly, or an attribute is no measure
BATCH = 256


@dataclass(frozen=True)
class Agreement:
    """One attribute."""

    attribute: str
    count: int  # pictures whose caption names it
    share: float  # of these that show what the caption says
    low: float  # 95 % Wilson interval of the share
    high: float
    uniform: float  # chance: 1 / number of values
    commonest: float  # chance: always showing the value most often asked for
    reader: float  # share of real test pictures that the reader reads rightly

    @property
    def is_measure(self) -> bool:
        """Whether the reader is good enough at it, and any caption names it."""
        return self.reader >= READABLE and self.count > 0


@dataclass(frozen=True)
class Measures:
    """What was measured on the captions of one split."""

    split: str
    count: int  # generated pictures
    seed: int
    agreements: list[Agreement]
    frechet_reader: float  # generated against real pictures of the split
    frechet_real: float  # one half of these real pictures against the other
    real_count: int

    @property
    def mean(self) -> float | None:
        """Mean agreement over the attributes that are measures; None if none is."""
        shares = [one.share for one in self.agreements if one.is_measure]
        return sum(shares) / len(shares) if shares else None

    @property
    def metrics(self) -> dict[str, float]:
        """By the names under which they are logged; attributes that are no measure are left out."""
        metrics = {
            f"agreement/{one.attribute}": one.share for one in self.agreements if one.is_measure
        }
        if self.mean is not None:
            metrics["agreement/mean"] = self.mean
        metrics["frechet_reader"] = self.frechet_reader
        return {f"{self.split}/{name}": value for name, value in metrics.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        document = asdict(self)
        for row, one in zip(document["agreements"], self.agreements, strict=True):
            row["is_measure"] = one.is_measure
        return {**document, "mean": self.mean}

    def table(self) -> str:
        """For people, in plain text."""
        head = ("attribute", "agreement", "95 % interval", "n", "chance", "reader on real")
        rows = [head, *(_row(one) for one in self.agreements)]
        mean = "-" if self.mean is None else f"{self.mean:.1%}"
        rows.append(("mean", mean, "", "", "", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.insert(-1, lines[1])
        if any(not one.is_measure for one in self.agreements):
            lines.append(
                f"* not a measure, and not in the mean: the reader reads fewer than {READABLE:.0%} "
                "of real test pictures rightly, or no caption names it"
            )
        return "\n".join([
            f"{self.count} pictures from captions of the split {self.split}, seed {self.seed}",
            "",
            *lines,
            "",
            "Frechet distance in the reader's features (128 numbers; comparable only with the "
            "same data, reader and number of pictures):",
            f"  generated to {self.real_count} real ones  {self.frechet_reader:.3f}",
            f"  real to real, halves          {self.frechet_real:.3f}",
        ])  # fmt: skip


def _row(one: Agreement) -> tuple[str, ...]:
    return (
        one.attribute + ("" if one.is_measure else " *"),
        f"{one.share:.1%}" if one.count else "-",
        f"{one.low:.1%} - {one.high:.1%}" if one.count else "-",
        str(one.count),
        f"{one.uniform:.1%} / {one.commonest:.1%}" if one.count else "-",
        f"{one.reader:.1%}",
    )


def measure(
    reader: Reader,
    prepared: Prepared,
    generate: Callable[[np.ndarray], np.ndarray],
    *,
    split: str,
    count: int,
    seed: int = 0,
) -> Measures:
    """Generate from captions of a split and read what came out.

    The captions are a function of seed, split and count; no global random state is touched.

    Args:
        reader: of this data and picture size.
        prepared: the data.
        generate: caption ids int64 [n] to uint8 pictures [n, S, S, 3]; n is at most 256.
        split: whose captions, and whose real pictures, are used.
        count: pictures to generate.
        seed: of the choice of captions.

    Raises:
        UserError: the split has fewer than four pictures.
    """
    pictures = len(prepared.ids(split))
    if pictures < 4:
        raise UserError(
            f"data.source: the split {split} has {pictures} pictures, and measuring "
            "needs at least 4; add some, or take another split"
        )
    samples, captions = choose_captions(prepared, split, count, seed)
    parts = [generate(captions[at : at + BATCH]) for at in range(0, count, BATCH)]
    generated = reader.read(np.concatenate(parts))
    agreements = [
        _agreement(
            name,
            generated.values[name],
            prepared.attributes[name][samples],
            prepared.named[name][captions],
            len(prepared.attribute_values[name]),
            reader.accuracy[name],
        )
        for name in prepared.attributes
    ]
    real = reader.read(real_pictures(prepared, reader.data, split)[0]).features
    half = len(real) // 2
    return Measures(
        split=split,
        count=count,
        seed=seed,
        agreements=agreements,
        frechet_reader=frechet_distance(generated.features, real),
        frechet_real=frechet_distance(real[:half], real[half:]),
        real_count=len(real),
    )


def measured_by(reader: Reader) -> list[str]:
    """Names of what `measure` gives with this reader, without the split."""
    readable = [name for name, share in reader.accuracy.items() if share >= READABLE]
    mean = ["agreement/mean"] if readable else []
    return ["frechet_reader", *mean, *(f"agreement/{name}" for name in readable)]


def choose_captions(
    prepared: Prepared, split: str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples and one caption of each, int64 [count]: no sample twice before all had a turn."""
    rng = counter_rng(seed, "measured captions")
    samples = np.resize(rng.permutation(prepared.ids(split)), count)
    first, last = prepared.first_caption[samples], prepared.first_caption[samples + 1]
    return samples, rng.integers(first, last)


def _agreement(
    name: str,
    read: np.ndarray,
    said: np.ndarray,
    named: np.ndarray,
    values: int,
    accuracy: float,
) -> Agreement:
    read, said = read[named], said[named]
    right = int((read == said).sum())
    low, high = wilson(right, len(said))
    return Agreement(
        attribute=name,
        count=len(said),
        share=right / max(1, len(said)),
        low=low,
        high=high,
        uniform=1 / values,
        commonest=int(np.bincount(said, minlength=1).max()) / max(1, len(said)),
        reader=accuracy,
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    z = 1.959964
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    # 0 and 1 are reached exactly, but for rounding.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the normal distributions fitted to two sets of rows.

    |m - n|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with means m, n and covariances A, B (Dowson
    and Landau 1982). Biased upwards by small sets, so compare only equal numbers of rows.

    Args:
        a: float [rows, d], at least two rows.
        b: float [rows, d], likewise.
    """
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root = _square_root(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root).clip(0)
    apart = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    spread = float(np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(cross).sum())
    return max(0.0, apart + spread)


def _square_root(symmetric: np.ndarray) -> np.ndarray:
    """Of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(symmetric)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root
