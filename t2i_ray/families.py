"""Which family a config means: one of ours, or a user's own class."""

from __future__ import annotations

from t2i_ray.cgan import CGan
from t2i_ray.config import Config, UserError, import_class
from t2i_ray.cvae import CVae
from t2i_ray.family import Family, Objective
from t2i_ray.gan_cls import GanCls
from t2i_ray.pretrain import Autoencode, Matching

OURS: dict[str, type[Family]] = {"gan_cls": GanCls, "cgan": CGan, "cvae": CVae}


#: What `t2i-ray pretrain-encoder` trains.
OBJECTIVES: dict[str, type[Objective]] = {"matching": Matching, "autoencode": Autoencode}


def objective_of(config: Config) -> type[Objective]:
    """The family of a run, or what its encoder is pretrained on. Raises UserError."""
    return OBJECTIVES.get(config.model.family) or family_of(config)


def family_of(config: Config) -> type[Family]:
    """The class that ``model.family`` names. Raises UserError if it can't be had."""
    name = config.model.family
    if name in OBJECTIVES:
        raise UserError(
            f"model.family={name}: this run pretrains an encoder and draws nothing; give a run of "
            f"{', '.join(OURS)}"
        )
    family: type[Family] = OURS.get(name) or import_class("model.family", name, Family)
    return family
