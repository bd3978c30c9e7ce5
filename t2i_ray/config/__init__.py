"""What a run is: typed sections, one YAML per run, dotted overrides, and the run's identity."""

from t2i_ray.config.identity import flatten, identity_hash, identity_of
from t2i_ray.config.reading import (
    UserError,
    json_schema,
    load_config,
    parse_config,
    validate,
    with_overrides,
)
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
from t2i_ray.config.sweep import Dimension, Pbt, Search, Sweep, load_sweep, parse_sweep, with_values

__all__ = [
    "BiGRU",
    "Config",
    "Data",
    "Dimension",
    "Emoji",
    "EncoderConfig",
    "Folder",
    "HuggingFace",
    "Optim",
    "Pbt",
    "Search",
    "Section",
    "Source",
    "Storage",
    "Sweep",
    "SyntheticFlowers",
    "Tracking",
    "UserError",
    "flatten",
    "identity_hash",
    "identity_of",
    "json_schema",
    "load_config",
    "load_sweep",
    "parse_config",
    "parse_sweep",
    "validate",
    "with_overrides",
    "with_values",
]
