"""What a run is: typed sections, one YAML per run, dotted overrides, and the run's identity."""

from t2i_ray.config.classes import TARGETS, allow, classes_in, import_class, require_allowed
from t2i_ray.config.data import Data, Emoji, Folder, Source, SyntheticFlowers
from t2i_ray.config.encoders import CharCnnRnn, Custom, EncoderConfig, HuggingFace, Recurrent
from t2i_ray.config.fields import Section
from t2i_ray.config.identity import flatten, identity_hash, identity_of, operational_names
from t2i_ray.config.reading import (
    UserError,
    json_schema,
    load_config,
    parse_config,
    validate,
    with_overrides,
)
from t2i_ray.config.search import Dimension, Pbt, Search
from t2i_ray.config.sections import Config, Optim, Storage, Tracking
from t2i_ray.config.sweep import Sweep, load_sweep, parse_sweep, sweep_schema, with_values

__all__ = [
    "TARGETS",
    "CharCnnRnn",
    "Config",
    "Custom",
    "Data",
    "Dimension",
    "Emoji",
    "EncoderConfig",
    "Folder",
    "HuggingFace",
    "Optim",
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
    "allow",
    "classes_in",
    "flatten",
    "identity_hash",
    "identity_of",
    "import_class",
    "json_schema",
    "load_config",
    "load_sweep",
    "operational_names",
    "parse_config",
    "parse_sweep",
    "require_allowed",
    "sweep_schema",
    "validate",
    "with_overrides",
    "with_values",
]
