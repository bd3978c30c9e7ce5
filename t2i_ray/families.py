"""Which family a config means: one of ours, or a user's own class."""

from __future__ import annotations

import importlib
import inspect

from t2i_ray.cgan import CGan
from t2i_ray.config import Config, UserError
from t2i_ray.cvae import CVae
from t2i_ray.family import Family
from t2i_ray.gan_cls import GanCls

OURS: dict[str, type[Family]] = {"gan_cls": GanCls, "cgan": CGan, "cvae": CVae}


def family_of(config: Config) -> type[Family]:
    """The class that ``model.family`` names. Raises UserError if it can't be had."""
    name = config.model.family
    if name in OURS:
        return OURS[name]
    module, _, target = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), target, None)
    except Exception as error:  # whatever the module does while it is imported
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.family={name}: can't be imported: {reason}; install it, or set PYTHONPATH to "
            "its folder, on every worker"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Family)):
        raise UserError(
            f"model.family={name}: {'no such class there' if found is None else 'no Family'}; give "
            "a class that derives from t2i_ray.family.Family"
        )
    if lacking := sorted(found.__abstractmethods__):
        raise UserError(f"model.family={name}: it has no {', no '.join(lacking)}; add them")
    family: type[Family] = found
    return family
