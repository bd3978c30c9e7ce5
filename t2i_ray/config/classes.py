"""Classes of the user's own: how they are found by their names, and which may be.

A class is code. The config in a checkpoint, a model or a stored sweep may come from anybody, so a
class that only such a config names is not imported unless the user allows it. The user's own
command, with a YAML file or an override, needs no further leave.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from t2i_ray.config.fields import CLASS
from t2i_ray.config.reading import UserError

TARGETS = "T2I_RAY_TARGETS"  # names of classes that are allowed, between blanks


def allow(names: Iterable[str]) -> None:
    """Allow these classes too, here and in processes that are started from here."""
    allowed = os.environ.get(TARGETS, "").split()
    if new := [name for name in names if name not in allowed]:
        os.environ[TARGETS] = " ".join([*allowed, *new])


def require_allowed(document: Any) -> None:
    """Raises UserError if a stored config or sweep names a class that the user has not allowed."""
    for field, name in classes_in(document):
        if name not in os.environ.get(TARGETS, "").split():
            raise UserError(
                f"{field}={name}: not imported only because a stored config says so; if you trust "
                f"this code, allow it: --allow-target {name}, or {TARGETS}={name}"
            )


def classes_in(document: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Fields of a config or sweep, wherever in it, and the names of classes that they have.

    Options of a user's encoder are the encoder's own, whatever they are called.
    """
    if isinstance(document, dict):
        for key, value in document.items():
            if f"{field}.{key}".startswith("space.encoder.options") or (
                key == "options" and document.get("kind") == "custom"
            ):
                continue
            within = field if field.endswith(("family", "target")) else f"{field}.{key}".strip(".")
            yield from classes_in(value, within)
    elif isinstance(document, list):
        for value in document:
            yield from classes_in(value, field)
    elif field.endswith(("family", "target")) and re.fullmatch(CLASS, str(document)):
        yield field, document


def import_class(field: str, name: str, base: type) -> Any:
    """The class ``module:Class``, which derives from base and lacks none of its methods.

    Raises:
        UserError: it can't be had; names the config's field.
    """
    module, _, last = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), last, None)
    except Exception as error:  # whatever the module does while it is imported
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{field}={name}: can't be imported: {reason}; install it, or set PYTHONPATH to its "
            "folder, on every worker"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UserError(
            f"{field}={name}: {'no such class there' if found is None else f'no {base.__name__}'}; "
            f"give a class that derives from {base.__module__}.{base.__name__}"
        )
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{field}={name}: it has no {', no '.join(lacking)}; add them")
    return found
