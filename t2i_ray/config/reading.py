"""From YAML and dotted overrides to a config, or to one line that says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from t2i_ray.config.fields import Section
from t2i_ray.config.run import Config

# ValueError: a date in a 13th month, a number of 5,000 digits, bytes that are no UTF-8.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

S = TypeVar("S", bound=Section)


class UserError(Exception):
    """Something the user can mend: one line naming field, value and remedy. Exit code 2.

    Whatever came from a file or the command line, it stays one line, without control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_UNSEEN.sub(lambda found: ascii(found[0])[1:-1], message))


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a run's YAML and apply ``key.sub=value`` overrides (values are YAML).

    Raises:
        UserError: the file is missing or not YAML, or a field is unknown or wrong.
    """
    return parse_config(read_yaml(path, overrides))


def read_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file, with overrides applied. Raises UserError."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf8"))
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}; give the path of a YAML file") from error
    except _NOT_YAML as error:
        raise UserError(f"config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UserError(f"config {path}: must be a mapping of sections, such as name: and train:")
    return with_overrides(document, overrides or [])


def with_overrides(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The same mapping with ``key.sub=value`` applied (values are YAML). Raises UserError."""
    for override in overrides:
        _apply(document, override)
    return document


def parse_config(document: dict[str, Any]) -> Config:
    """The resolved config of a plain mapping. Raises UserError."""
    return validate(Config, document)


def validate(section: type[S], document: dict[str, Any]) -> S:
    """A section from a plain mapping; the first problem as one line. Raises UserError."""
    try:
        return section.model_validate(document)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write it as key.sub=value, e.g. train.steps=1000")
    try:
        loaded = yaml.safe_load(value)
    except _NOT_YAML:
        raise UserError(f"override {override!r}: {value!r} is not a YAML value") from None
    set_value(document, key, loaded, f"override {override!r}")


def set_value(document: dict[str, Any], key: str, value: Any, what: str) -> None:
    """Set a dotted key of a nested mapping. Raises UserError, which names ``what`` asks for it."""
    *sections, last = key.split(".")
    place = document
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{what}: {section} is a value, not a section")
    place[last] = value


def _one_line(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key; remove it or mend its spelling")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing; it must be given")
        elif problem["type"] == "union_tag_not_found":
            lines.append(f"{where}: say which kind it is, e.g. {where}.kind=...")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))  # ours name their fields themselves
        else:
            lines.append(f"{where}={problem['input']!r}: {problem['msg']}")
    return "; ".join(lines)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run's YAML, for editors."""
    return Config.model_json_schema()
