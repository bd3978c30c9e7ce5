"""What a run is: typed sections, one YAML per run, dotted overrides, and the run's identity."""

from t2i_ray.config.data import Data
from t2i_ray.config.encoders import BiGRU, EncoderConfig, HuggingFace
from t2i_ray.config.fields import Section
from t2i_ray.config.identity import flatten, identity_hash, identity_of, operational_names
from t2i_ray.config.measures import (
    CHEAP,
    GROUPS,
    INCEPTION,
    KINDS,
    RANKED,
    READER,
    WHILE_TRAINING,
    OwnFeatures,
    larger_is_better,
    names_while_training,
)
from t2i_ray.config.reading import (
    UserError,
    json_schema,
    load_config,
    parse_config,
    read_yaml,
    validate,
    with_overrides,
)
from t2i_ray.config.search import Dimension, Pbt, Search
from t2i_ray.config.sections import Config, Optim, Storage, Tracking
from t2i_ray.config.sources import (
    Coco,
    Cub200,
    Emoji,
    Folder,
    Hdf5,
    Oxford102,
    Parquet,
    Source,
    SyntheticFlowers,
    WebDataset,
)
from t2i_ray.config.sweep import Sweep, load_sweep, parse_sweep, sweep_schema, with_values

__all__ = [
    "CHEAP",
    "GROUPS",
    "INCEPTION",
    "KINDS",
    "RANKED",
    "READER",
    "WHILE_TRAINING",
    "BiGRU",
    "Coco",
    "Config",
    "Cub200",
    "Data",
    "Dimension",
    "Emoji",
    "EncoderConfig",
    "Folder",
    "Hdf5",
    "HuggingFace",
    "Optim",
    "OwnFeatures",
    "Oxford102",
    "Parquet",
    "Pbt",
    "Search",
    "Section",
    "Source",
    "Storage",
    "Sweep",
    "SyntheticFlowers",
    "Tracking",
    "UserError",
    "WebDataset",
    "flatten",
    "identity_hash",
    "identity_of",
    "json_schema",
    "larger_is_better",
    "load_config",
    "load_sweep",
    "names_while_training",
    "operational_names",
    "parse_config",
    "parse_sweep",
    "read_yaml",
    "sweep_schema",
    "validate",
    "with_overrides",
    "with_values",
]
