"""What a run is: typed sections, one YAML per run, dotted overrides, and the run's identity."""

from t2i_ray.config.identity import flatten, identity_hash, identity_of
from t2i_ray.config.reading import UserError, json_schema, load_config, parse_config, validate
from t2i_ray.config.sections import (
    BiGRU,
    Config,
    Data,
    Emoji,
    EncoderConfig,
    Folder,
    HuggingFace,
    Optim,
    Section,
    Source,
    Storage,
    SyntheticFlowers,
    Tracking,
)

__all__ = [
    "BiGRU",
    "Config",
    "Data",
    "Emoji",
    "EncoderConfig",
    "Folder",
    "HuggingFace",
    "Optim",
    "Section",
    "Source",
    "Storage",
    "SyntheticFlowers",
    "Tracking",
    "UserError",
    "flatten",
    "identity_hash",
    "identity_of",
    "json_schema",
    "load_config",
    "parse_config",
    "validate",
]
