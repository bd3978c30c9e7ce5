"""What all sections are made of: every field says whether the curve depends on it.

*Identity* fields make the run what it is; *operational* ones (workers, storage, intervals, logging)
may change from attempt to attempt.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

#: A class by its module and name.
CLASS = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"


def identity(default: Any = ..., *, doc: str, **constraints: Any) -> Any:
    """A field on which the run's curve depends."""
    return Field(default, description=doc, json_schema_extra={"identity": True}, **constraints)


def operational(default: Any = ..., *, doc: str, **constraints: Any) -> Any:
    """A field that may change from attempt to attempt without changing the curve."""
    return Field(default, description=doc, json_schema_extra={"identity": False}, **constraints)


class Section(BaseModel):
    """Unknown keys are errors; a config never changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @property
    def counts(self) -> bool:
        """Whether its identity fields matter; those of a section that is switched off do not."""
        return True
