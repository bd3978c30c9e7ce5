"""Importing much at once: what most of a start consists of."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from importlib import import_module


def import_all(names: Iterable[str]) -> None:
    """Import modules without garbage collection, which would find nothing in a fifth of the time.

    What there is afterwards stays, and is not looked through again.
    """
    gc.disable()
    try:
        for name in names:
            import_module(name)
        gc.freeze()
    finally:
        gc.enable()
