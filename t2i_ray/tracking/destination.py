"""Where MLflow is, and what workers are told of it."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit, urlunsplit

from t2i_ray.config import Config, Storage, Tracking, UserError
from t2i_ray.storage import absolute, open_store
from t2i_ray.tracking.about import scrub

TOLD = "T2I_RAY_MLFLOW"  # a hash of where the driver publishes to, for its workers
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
# Where a database's address says by its query which one it is.
NAMED = re.compile(r"(?i)\b(server|host|port|database|dbname|unix_socket|service|dsn)=([^;&]*)")


@dataclass(frozen=True)
class Destination:
    """Where runs are shown. Its printed form holds no secret."""

    uri: str = field(repr=False)
    experiment: str
    artifacts: str | None = None  # where an experiment made here keeps artifacts; None: as MLflow's
    elsewhere: bool = False  # not the driver's: whatever is to be published is left to the driver


def resolve(config: Config) -> Destination | None:
    """Where a run is to be shown; None if tracking is off.

    Raises:
        UserError: as locate does; not in a worker, for its driver knows where.
    """
    if not config.tracking.enabled:
        return None
    told = os.environ.get(TOLD)
    try:
        found = locate(config.tracking, config.storage)
    except UserError:
        if not told:
            raise
        found = Destination("", config.tracking.experiment)
    return replace(found, elsewhere=told not in (None, _place(found.uri)))


def for_workers(config: Config) -> dict[str, str]:
    """Variables by which workers find this MLflow, or learn that what they find is another.

    Ray shows them to whoever lists jobs. So they name servers and files; a database's address may
    hold a password in more ways than one can think of.
    """
    try:
        found = resolve(config)
    except UserError:  # said where MLflow is needed
        return {}
    if found is None:
        return {}
    if found.elsewhere:  # a trial's process, whose workers may find what it did not
        return {TOLD: os.environ[TOLD]}
    told = {TOLD: _place(found.uri)}
    if re.match(r"https?:|sqlite[^?]*$", found.uri):
        told["MLFLOW_TRACKING_URI"] = found.uri
    return told


def locate(tracking: Tracking, storage: Storage) -> Destination:
    """Where MLflow is, by the config, the environment, or beside a local storage.

    Credentials in MLFLOW_TRACKING_URI's http form go where MLflow never prints them: into
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of this process.

    Raises:
        UserError: no URI is given and none can be derived, or MLflow can't use it.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    named = "tracking.uri" if tracking.uri else "MLFLOW_TRACKING_URI"
    if tracking.uri:
        _refuse_secrets(uri)
    root = open_store(storage).uri
    if not uri and "://" in root:
        raise UserError(
            f"tracking.uri=null: storage.uri={root} has no place for a database; give the "
            "address of an MLflow server, or set MLFLOW_TRACKING_URI, or tracking.enabled=false"
        )
    uri = absolute_uri(uri, named) or f"sqlite:///{root}/mlflow.db"
    kind = _kind(uri)
    if kind in ("http", "https"):
        return Destination(_without_credentials(uri, named), tracking.experiment)
    if kind not in DATABASES or (kind == "sqlite" and ":////" not in uri):  # or in memory
        raise UserError(
            f"{named}={scrub(uri)}: give http://host:port, or a database such as "
            "sqlite:////absolute/path/mlflow.db"
        )
    if "://" in root and storage.endpoint:  # MLflow writes artifacts to S3 itself
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", storage.endpoint)
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    return Destination(uri, tracking.experiment, f"{root}/mlartifacts")


def absolute_uri(uri: str, named: str) -> str:
    """The URI; if it is SQLite's, with the path of a file as it is found from any folder.

    Raises:
        UserError: a relative path in a Ray job, whose working directory is temporary.
    """
    head, _, rest = uri.partition(":///")
    path, mark, query = rest.partition("?")
    if _kind(uri) != "sqlite" or path in ("", ":memory:"):
        return uri
    return f"{head}:///{absolute(path, named)}{mark}{query}"


def _refuse_secrets(uri: str) -> None:
    kind, user = _kind(uri), _address(uri).rpartition("@")[0]
    secret = ":" in user if kind in DATABASES else user  # over http a name may be a token
    if "?" in uri or (secret and kind != "sqlite"):
        raise UserError(
            f"tracking.uri={kind}://...: a config holds no user and password, "  # perhaps in parts
            "and no query; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_URI"
        )


def _without_credentials(uri: str, named: str) -> str:
    parts = urlsplit(uri)
    if "@" in parts.path + parts.query + parts.fragment:
        # Not repeated: it may hold a part of a password.
        raise UserError(
            f"{named}: an @ stands behind the host; write / ? # in a user or password as "
            "%2F %3F %23, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    for name, value in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        if value:
            os.environ.setdefault(f"MLFLOW_TRACKING_{name}", unquote(value))
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _kind(uri: str) -> str:
    return uri.partition("://")[0].partition("+")[0].lower()


def _address(uri: str) -> str:
    """Its part between scheme and query, with the user."""
    return uri.partition("://")[2].partition("?")[0]


def _place(uri: str) -> str:
    """The same for URIs of the same place, whatever the user; from the hash nothing is learnt."""
    named = sorted(NAMED.findall(unquote(uri.partition("?")[2])))
    address = _address(uri)
    if _kind(uri) != "sqlite":
        address = address.rpartition("@")[2]
    place = _kind(uri), address, named
    return hashlib.sha256(repr(place).encode()).hexdigest()[:16]
