"""What a run is: typed sections, one YAML per run, dotted overrides, and the run's identity."""

from t2i_ray.config.classes import TARGETS, allow, classes_in, import_class, require_allowed
from t2i_ray.config.data import Data
from t2i_ray.config.encoders import CharCnnRnn, Custom, EncoderConfig, HuggingFace, Recurrent
from t2i_ray.config.fields import Section
from t2i_ray.config.identity import flatten, identity_hash, identity_of, operational_names
from t2i_ray.config.measures import (
    CHEAP,
    GROUPS,
    INCEPTION,
    KINDS,
    MATCHING,
    RANKED,
    READER,
    WHILE_TRAINING,
    OwnFeatures,
    larger_is_better,
    names_taken,
)
from t2i_ray.config.operation import Cluster, Evaluation, Storage, Tracking
from t2i_ray.config.reading import (
    UserError,
    json_schema,
    load_config,
    parse_config,
    read_yaml,
    validate,
    with_overrides,
)
from t2i_ray.config.run import Config
from t2i_ray.config.search import Dimension, Pbt, Search
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
from t2i_ray.config.training import FAMILIES, PRETRAINING, Optim

__all__ = [
    "CHEAP",
    "FAMILIES",
    "GROUPS",
    "INCEPTION",
    "KINDS",
    "MATCHING",
    "PRETRAINING",
    "RANKED",
    "READER",
    "TARGETS",
    "WHILE_TRAINING",
    "CharCnnRnn",
    "Cluster",
    "Coco",
    "Config",
    "Cub200",
    "Custom",
    "Data",
    "Dimension",
    "Emoji",
    "EncoderConfig",
    "Evaluation",
    "Folder",
    "Hdf5",
    "HuggingFace",
    "Optim",
    "OwnFeatures",
    "Oxford102",
    "Parquet",
    "Pbt",
    "Recurrent",
    "Search",
    "Section",
    "Source",
    "Storage",
    "Sweep",
    "SyntheticFlowers",
    "Tracking",
    "UserError",
    "WebDataset",
    "allow",
    "classes_in",
    "flatten",
    "identity_hash",
    "identity_of",
    "import_class",
    "json_schema",
    "larger_is_better",
    "load_config",
    "load_sweep",
    "names_taken",
    "operational_names",
    "parse_config",
    "parse_sweep",
    "read_yaml",
    "require_allowed",
    "sweep_schema",
    "validate",
    "with_overrides",
    "with_values",
]
