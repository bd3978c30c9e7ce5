"""What was measured, with all that must stand beside a number, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from t2i_ray.config import KINDS, larger_is_better
from t2i_ray.evaluate.agreement import READABLE, Agreement, mean_share
from t2i_ray.evaluate.bootstrap import Interval
from t2i_ray.evaluate.spread import Nearest

BETTER = {True: "larger", False: "smaller", None: "neither"}


@dataclass(frozen=True)
class Value:
    """One number."""

    name: str  # without its split
    value: float
    what: str  # in a line
    count: int  # pictures, or what else it is a mean over
    interval: Interval = None  # 95 %
    resamples: int = 0  # from which it comes
    reference: float | None = None  # what to hold the value against
    of: str = ""  # what the reference is

    @property
    def better(self) -> str:
        """Which way: larger, smaller or neither."""
        return BETTER[larger_is_better(self.name)]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        low, high = self.interval or (None, None)
        document = {key: value for key, value in asdict(self).items() if key != "interval"}
        return {**document, "low": low, "high": high, "better": self.better}


@dataclass(frozen=True)
class Measures:
    """What was measured on the captions of one split."""

    split: str
    count: int  # generated pictures
    seed: int  # of the choice of captions, and of all resamples
    agreements: list[Agreement]
    mean_interval: Interval  # of the mean agreement
    others: list[Value]
    resamples: int = 0
    real_count: int = 0
    nearest: Nearest | None = None  # training pictures, if they were looked for
    models: dict[str, str] = field(default_factory=dict)  # name -> what it is

    @property
    def mean(self) -> float | None:
        """Mean agreement over the attributes that are measures; None if none is."""
        return mean_share(self.agreements)

    @property
    def values(self) -> list[Value]:
        """Every number; attributes that are no measure are left out."""
        values = [
            Value(
                KINDS["agreement"].template.format(attribute=one.attribute),
                one.share,
                f"pictures that show the {one.attribute} that their caption names",
                one.count,
                (one.low, one.high),
                reference=one.commonest,
                of="chance: the most frequent value always",
            )
            for one in self.agreements
            if one.is_measure
        ]
        if self.mean is not None:
            values.append(
                Value(
                    KINDS["agreement"].name("reader"),
                    self.mean,
                    "mean of the agreements",
                    self.count,
                    self.mean_interval,
                    0 if self.mean_interval is None else 5 * self.resamples,
                )
            )
        return values + self.others

    @property
    def metrics(self) -> dict[str, float]:
        """By the names under which they are logged."""
        return {f"{self.split}/{one.name}": one.value for one in self.values}

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {
            "split": self.split,
            "count": self.count,
            "seed": self.seed,
            "real_count": self.real_count,
            "mean": self.mean,
            "values": [{**one.to_json(), "seed": self.seed} for one in self.values],
            "agreements": [
                {**asdict(one), "is_measure": one.is_measure} for one in self.agreements
            ],
            "nearest": [asdict(pair) for pair in self.nearest.pairs] if self.nearest else [],
            "nearest_in": self.nearest.model if self.nearest else None,  # whose features
            "models": self.models,
        }

    def table(self) -> str:
        """For people, in plain text."""
        lines = [f"{self.count} pictures from captions of the split {self.split}, seed {self.seed}"]
        if self.agreements:
            lines += ["", *_agreement_table(self.agreements, self.mean, self.mean_interval)]
        if self.others:
            lines += ["", *_table([_HEAD, *(_row(one) for one in self.others)])]
            lines += ["", *(f"{one.name}: {_explained(one)}" for one in self.others)]
        if self.models:
            lines += ["", *(f"features of {name}: {what}" for name, what in self.models.items())]
        return "\n".join(lines)


_HEAD = ("measure", "value", "95 % interval", "n", "better", "reference")


def _row(one: Value) -> tuple[str, ...]:
    interval = one.interval and f"{_number(one.interval[0])} - {_number(one.interval[1])}"
    reference = "-" if one.reference is None else _number(one.reference)
    return one.name, _number(one.value), interval or "-", str(one.count), one.better, reference


def _explained(one: Value) -> str:
    return one.what + (f"; reference: {one.of}" if one.of else "")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _agreement_table(
    agreements: Sequence[Agreement], mean: float | None, interval: Interval
) -> list[str]:
    head = ("attribute", "agreement", "95 % interval", "n", "chance", "reader on real")
    between = f"{interval[0]:.1%} - {interval[1]:.1%}" if interval else ""
    last = ("mean", "-" if mean is None else f"{mean:.1%}", between, "", "", "")
    lines = _table([head, *(_agreement_row(one) for one in agreements), last])
    lines.insert(-1, lines[1])
    if any(not one.is_measure for one in agreements):
        lines.append(
            f"* not a measure, and not in the mean: the reader reads fewer than {READABLE:.0%} "
            "of real test pictures rightly, or no caption names it"
        )
    return lines


def _agreement_row(one: Agreement) -> tuple[str, ...]:
    return (
        one.attribute + ("" if one.is_measure else " *"),
        f"{one.share:.1%}" if one.count else "-",
        f"{one.low:.1%} - {one.high:.1%}" if one.count else "-",
        str(one.count),
        f"{one.uniform:.1%} / {one.commonest:.1%}" if one.count else "-",
        f"{one.reader:.1%}",
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns as wide as they need, a rule below the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines
