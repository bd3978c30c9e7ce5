"""Which run it is: the fields on which its curve depends, and their hash.

The identity fields are hashed together with the digest of the prepared data: the same name with
another hash is another run, and is refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from t2i_ray.config.sections import Config, Section


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
            if not (identity_only and marked is False):
                rows += _flat(value, identity_only=identity_only, prefix=f"{prefix}{name}.")
        elif not identity_only or marked is not False:
            rows.append((f"{prefix}{name}", value))
    return rows


def identity_hash(config: Config, data_digest: str) -> str:
    """Twelve hex digits naming what the curve depends on: identity fields and the data."""
    document = {**identity_of(config), "data.digest": data_digest}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:12]
