"""MLflow shows the committed history of a run; see docs/tracking.md. Imports mlflow late."""

from t2i_ray.tracking.about import (
    FALLBACKS_TAG,
    REASON_TAG,
    ROLLBACKS_TAG,
    About,
    Dataset,
    describe,
    scrub,
    tag,
)
from t2i_ray.tracking.access import check_access, try_out
from t2i_ray.tracking.destination import (
    Destination,
    absolute_uri,
    for_workers,
    locate,
    resolve,
)
from t2i_ray.tracking.history import History, PastRun
from t2i_ray.tracking.model import download_model, log_model
from t2i_ray.tracking.parent import (
    SETTING_TAG,
    STAGE_TAG,
    SWEEP_TAG,
    VALUES_TAG,
    Parent,
    of_sweep,
)
from t2i_ray.tracking.server import announce, one_line, set_status
from t2i_ray.tracking.tracker import Tracker, add, sync

__all__ = [
    "FALLBACKS_TAG",
    "REASON_TAG",
    "ROLLBACKS_TAG",
    "SETTING_TAG",
    "STAGE_TAG",
    "SWEEP_TAG",
    "VALUES_TAG",
    "About",
    "Dataset",
    "Destination",
    "History",
    "Parent",
    "PastRun",
    "Tracker",
    "absolute_uri",
    "add",
    "announce",
    "check_access",
    "describe",
    "download_model",
    "for_workers",
    "locate",
    "log_model",
    "of_sweep",
    "one_line",
    "resolve",
    "scrub",
    "set_status",
    "sync",
    "tag",
    "try_out",
]
