"""Which family a config means: one of ours, or a user's own class."""

from __future__ import annotations

from t2i_ray.cgan import CGan
from t2i_ray.config import Config, import_class
from t2i_ray.cvae import CVae
from t2i_ray.family import Family
from t2i_ray.gan_cls import GanCls

OURS: dict[str, type[Family]] = {"gan_cls": GanCls, "cgan": CGan, "cvae": CVae}


def family_of(config: Config) -> type[Family]:
    """The class that ``model.family`` names. Raises UserError if it can't be had."""
    name = config.model.family
    family: type[Family] = OURS.get(name) or import_class("model.family", name, Family)
    return family
