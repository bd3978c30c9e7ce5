"""Every measure of generated pictures: its name, its group, and which way is better.

This is the one list of them. What is ranked by (sweeps, comparisons), what is chosen (groups) and
what a result document says of a direction are all read off it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import model_validator

from t2i_ray.config.fields import CLASS, Section, operational

READER, INCEPTION = "reader", "inception"
#: The model that matches pictures with captions, made by pretrain-encoder.
MATCHING = "matching"
Group = Literal[
    "agreement",
    "frechet",
    "kernel",
    "precision_recall",
    "inception_score",
    "diversity",
    "memory",
    "joint",
    "r_precision",
]
MODEL = "[a-z][a-z0-9]*"  # no underscore, so that no two templates can make the same name
ATTRIBUTE = r"[\w-]+"


@dataclass(frozen=True)
class Kind:
    """Measures that differ by the model, or the attribute, by which they look at pictures."""

    group: str  # by which it is chosen
    template: str  # of its name
    larger: bool | None  # whether larger is better; None: neither, so nothing is ranked by it
    inception: str | None = None  # its name in the literature, kept for the literature's model

    def name(self, model: str) -> str:
        """Its name with this model. Only Inception's have the names of the literature."""
        if model == INCEPTION and self.inception:
            return self.inception
        return self.template.format(model=model, attribute="mean")

    @property
    def pattern(self) -> str:
        """Of its names."""
        pattern = self.template.format(model=MODEL, attribute=ATTRIBUTE)
        return f"{pattern}|{self.inception}" if self.inception else pattern


KINDS = {
    kind.template.partition("_{")[0].partition("/")[0]: kind
    for kind in (
        Kind("agreement", "agreement/{attribute}", True),
        Kind("frechet", "frechet_{model}", False, "fid"),
        Kind("kernel", "kernel_{model}", False, "kid"),
        Kind("precision_recall", "precision_{model}", True),
        Kind("precision_recall", "recall_{model}", True),
        Kind("inception_score", "inception_score", True),
        Kind("diversity", "diversity_{model}", True),
        Kind("memory", "memorised_{model}", False),
        Kind("memory", "nearest_{model}", None),
        Kind("joint", "frechet_joint_{model}", False),
        Kind("r_precision", "r_precision_{model}", True),
    )
}
GROUPS = get_args(Group)
#: What ``t2i-ray evaluate`` takes unless told otherwise: little time, no library besides ours.
CHEAP = ("agreement", "frechet", "diversity", "memory", "r_precision")
#: What is taken while training unless told otherwise.
WHILE_TRAINING: list[Group] = ["agreement", "frechet"]
#: What may rank settings: a pattern of names without their split.
RANKED = "|".join(kind.pattern for kind in KINDS.values() if kind.larger is not None)


def larger_is_better(metric: str) -> bool | None:
    """Of a name with or without its split; None: neither way, or it is no measure."""
    name = re.sub("^(train|val|test)/", "", metric)
    kinds = [kind for kind in KINDS.values() if re.fullmatch(kind.pattern, name)]
    return kinds[0].larger if kinds else None


def names_taken(
    groups: Collection[str], attributes: Collection[str], models: Iterable[str]
) -> list[str]:
    """The names, without their split, that these groups give.

    Args:
        groups: of measures.
        attributes: that the reader reads; without any there is no reader.
        models: others by which it is measured: INCEPTION, MATCHING.
    """
    eyes = [*([READER] if attributes else []), *models]
    by = {
        "agreement": ["mean"] if attributes else [],
        "inception_score": [INCEPTION] if INCEPTION in eyes else [],
        "r_precision": [MATCHING] if MATCHING in eyes else [],
    }
    names = [
        kind.name(model)
        for kind in KINDS.values()
        if kind.group in groups
        for model in by.get(kind.group, eyes)
    ]
    if "agreement" in groups:
        names += [KINDS["agreement"].template.format(attribute=name) for name in attributes]
    return names


class OwnFeatures(Section):
    """A network of the user's own whose features measures are taken in, as YAML."""

    name: str = operational(
        doc="What stands in the measures' names, as in frechet_<name>.", pattern=f"^{MODEL}$"
    )
    weights: str = operational(doc="Path of its weights: .safetensors with target, or .onnx.")
    target: str | None = operational(
        None,
        doc="package.module:Class of a torch module that is made without arguments and turns "
        "float32 [n, 3, S, S] into [n, d]; only with .safetensors.",
        pattern=f"^{CLASS}$",
    )
    size: int | None = operational(
        None, doc="Pixels to which pictures are brought before, bicubic; none: as they are.", ge=1
    )
    mean: tuple[float, float, float] = operational(
        (0.5, 0.5, 0.5), doc="Taken off red, green and blue, which are from 0 to 1."
    )
    std: tuple[float, float, float] = operational(
        (0.5, 0.5, 0.5), doc="By which they are divided then."
    )

    @model_validator(mode="after")
    def _check(self) -> OwnFeatures:
        taken = [word for word in (READER, INCEPTION, "fid", "kid") if word in self.name]
        if taken:
            raise ValueError(
                f"name={self.name}: {taken[0]} would be mistaken for what others call so; give "
                "the network's own name"
            )
        onnx = self.weights.endswith(".onnx")
        if not onnx and not self.weights.endswith(".safetensors"):
            raise ValueError(
                f"weights={self.weights}: give .safetensors or .onnx; other formats can run code "
                "when they are read, and are not"
            )
        if onnx == (self.target is not None):
            raise ValueError(
                f"weights={self.weights} with target={self.target}: .safetensors needs a target, "
                "package.module:Class, and .onnx takes none"
            )
        if not all(self.std):
            raise ValueError(f"std={list(self.std)}: can't divide by 0")
        return self
