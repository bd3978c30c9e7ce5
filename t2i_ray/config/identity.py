"""Which run it is: the fields on which its curve depends, and their hash.

The identity fields are hashed together with the digest of the prepared data: the same name with
another hash is another run, and is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, get_args

from t2i_ray.config.fields import Section
from t2i_ray.config.run import Config


def identity_of(config: Config) -> dict[str, Any]:
    """The identity fields as a flat mapping of dotted names, sorted."""
    return dict(sorted(_flat(config, identity_only=True)))


def flatten(config: Config) -> dict[str, Any]:
    """Every field as a flat mapping of dotted names."""
    return dict(_flat(config, identity_only=False))


def _flat(section: Section, *, identity_only: bool, prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        marked = extra.get("identity") if isinstance(extra, dict) else None
        if isinstance(value, Section):
            if not identity_only or (marked is not False and value.counts):
                rows += _flat(value, identity_only=identity_only, prefix=f"{prefix}{name}.")
        elif not identity_only or marked is not False:
            rows.append((f"{prefix}{name}", value))
    return rows


def identity_hash(config: Config, data_digest: str) -> str:
    """Twelve hex digits naming what the curve depends on: identity fields and the data."""
    document = {**identity_of(config), "data.digest": data_digest}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]


def operational_names(section: type[Section] = Config, prefix: str = "") -> set[str]:
    """Dotted names of all operational fields, whichever kind of encoder or source is chosen."""
    names: set[str] = set()
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        within = list(_sections_in(field.annotation))
        if isinstance(extra, dict) and extra.get("identity") is False and not within:
            names.add(f"{prefix}{name}")
        for inner in within:
            if isinstance(extra, dict) and extra.get("identity") is False:
                names |= {f"{prefix}{name}.{leaf}" for leaf in inner.model_fields}
            else:
                names |= operational_names(inner, f"{prefix}{name}.")
    return names


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation allows, within unions and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)
