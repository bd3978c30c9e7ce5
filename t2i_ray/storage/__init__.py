"""Where everything is kept: one root, a local folder or an S3 prefix, and flat keys below it.

Whatever is written is there whole or not at all, on either kind. A store is cheap to open, so
tasks on other machines are given the ``config.Storage`` and open it themselves.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from t2i_ray import config
from t2i_ray.config import UserError
from t2i_ray.storage.base import MissingKey, Stamp, StorageError, Store, check_key, patiently
from t2i_ray.storage.fenced import FencedStore
from t2i_ray.storage.local import LocalStore
from t2i_ray.storage.opened import open_key
from t2i_ray.storage.patient import PatientStore

__all__ = [
    "JOB_VARIABLE",
    "FencedStore",
    "LocalStore",
    "MissingKey",
    "PatientStore",
    "Stamp",
    "StorageError",
    "Store",
    "absolute",
    "check_writable",
    "open_key",
    "open_store",
    "patiently",
]


JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for what runs as a job


def open_store(storage: config.Storage, *, field: str = "storage.uri") -> Store:
    """The store of a config; nothing is read or written yet.

    Args:
        storage: where it is, and how S3 is reached.
        field: the config's field that holds its URI, for errors.

    Raises:
        UserError: the URI or the endpoint is malformed.
    """
    uri = storage.uri
    for name, value in ((field, uri), ("storage.endpoint", storage.endpoint or "")):
        if "@" in urlsplit(value).netloc:  # it may hold a secret: not repeated
            raise UserError(
                f"{name}: must not hold credentials; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment, or use the machine's role"
            )
    if uri.startswith("s3://"):
        return _open_s3(storage, field)
    if "://" in uri or not uri:
        raise UserError(f"{field}={uri}: give a local folder, or s3://bucket/prefix")
    return LocalStore(Path(absolute(uri, field)))


def absolute(place: str, field: str) -> str:
    """A local path as it is found from any folder, ~ and links followed; a URI as it is.

    Args:
        place: a path, which need not exist, or a URI.
        field: the config's field that holds it, for errors.

    Raises:
        UserError: a relative path in a Ray job, whose working directory is temporary.
    """
    if "://" in place:
        return place
    path = Path(place).expanduser()
    if not path.is_absolute() and JOB_VARIABLE in os.environ:
        raise UserError(
            f"{field}={place}: a relative path would be looked for in the Ray job's temporary "
            "folder; give an absolute one"
        )
    return str(path.resolve())


def _open_s3(storage: config.Storage, field: str) -> Store:
    bucket, _, prefix = storage.uri.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}", bucket):
        raise UserError(f"{field}={storage.uri}: give s3://bucket/prefix with a bucket's name")
    try:
        check_key(prefix or "root")
        if set("?#") & set(prefix):
            raise ValueError("no '?' or '#'; a server other than AWS goes into storage.endpoint")
    except ValueError as error:
        raise UserError(f"{field}={storage.uri}: {error}") from None
    if storage.endpoint and not re.match(r"https?://[^/]+", storage.endpoint):
        raise UserError(
            f"storage.endpoint={storage.endpoint}: give a URL such as http://127.0.0.1:9000"
        )
    from t2i_ray.storage.s3 import S3Store  # boto3 is loaded only where it is needed

    return S3Store(bucket, prefix, endpoint=storage.endpoint, region=storage.region)


_NO_STORE = "what answers is not a store of objects; mend storage.endpoint, or the server"
_NO_ANSWER = "start the server, or mend storage.endpoint"
_RENEW = "get new credentials"
_REGION = "set storage.region to the bucket's"
_REMEDIES = {
    "NoSuchBucket": "create the bucket, or mend its name",
    "AccessDenied": "these credentials may not write there; grant reading, writing, listing and "
    "deleting, or use others",
    "InvalidAccessKeyId": "mend AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "mend AWS_SECRET_ACCESS_KEY",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, "
    "or use the machine's role",
    "ExpiredToken": _RENEW,
    "InvalidToken": _RENEW,
    "RequestTimeTooSkewed": "set this machine's clock right (NTP)",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "EndpointConnectionError": _NO_ANSWER,
    "ConnectTimeoutError": _NO_ANSWER,
    "ReadTimeoutError": _NO_ANSWER,
    "ConnectionClosedError": _NO_ANSWER,
    "SSLError": "write storage.endpoint with http:// or https:// as the server has it, or name its "
    "certificate in AWS_CA_BUNDLE",
    "401": _NO_STORE,  # S3 says 403
    "HTTPClientError": "look for stray characters in the credentials' variables",
    "ENOSPC": "make room, or use another disk",
}


def check_writable(store: Store) -> None:
    """Write, read and delete a small probe; a server that does not answer is given up soon.

    Raises:
        UserError: it can't be done; names storage.uri and the remedy.
    """
    probe, store = f".probe-{uuid.uuid4().hex}", store.hurried()
    try:
        created = [store.create(probe, b"probe"), store.create(probe, b"again")]
        content = store.read(probe)
        store.delete(probe)
    except MissingKey:  # of what was just written, or where it was to be
        raise UserError(f"storage.uri={store.uri}: {_NO_STORE}") from None
    except StorageError as error:
        reason = str(error).removeprefix(f"{store.uri}: ").replace(f"/{probe}", "")
        reason = reason.replace(probe, "a file")
        remedy = _REMEDIES.get(error.code, "give a place that can be written to")
        raise UserError(f"storage.uri={store.uri}: {reason}; {remedy}") from None
    if created != [True, False] or content != b"probe":
        raise UserError(
            f"storage.uri={store.uri}: the server overwrites what it was asked to create only if "
            "absent; use one that honours If-None-Match"
        )
