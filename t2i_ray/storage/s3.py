"""A store in an S3 bucket, on AWS or any server that speaks its protocol."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from t2i_ray.storage.base import MissingKey, Stamp, StorageError, Store, check_key
from t2i_ray.storage.cache import FOLDER, LIMIT, Cache

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_TRANSFER = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=16 << 20)
_ATTEMPTS = 8  # with growing pauses: some 5 s if each fails at once
_HURRY = 3, 4, 2  # seconds to connect, seconds to read, attempts: 10 s if it hangs
_PAGE = 1000  # as many keys as one request may name
_BROKEN_READS = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


class S3Store(Store):
    """A prefix in a bucket. Credentials come from the environment or the machine's role."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None,
        region: str | None,
        hurry: bool = False,
    ) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.endpoint, self.region = endpoint, region
        self.hurry = hurry
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, key: str) -> bytes:
        """See Store."""
        return self._read(key)

    def read_part(self, key: str, start: int, length: int) -> bytes:
        """See Store."""
        try:
            return self._read(key, Range=f"bytes={start}-{start + length - 1}") if length else b""
        except StorageError as error:
            if error.code == "InvalidRange":  # it starts at the end, or beyond
                return b""
            raise

    def stamp(self, key: str) -> Stamp:
        """See Store."""
        with self._errors("look for", key) as client:
            answer = client.head_object(Bucket=self.bucket, Key=self._key(key))
        return Stamp(answer["ContentLength"], answer["ETag"])

    def write(self, key: str, data: bytes) -> None:
        """See Store."""
        self._upload(key, io.BytesIO(data))

    def create(self, key: str, data: bytes) -> bool:
        """See Store. A retry after a lost answer finds the first try's object: False."""
        try:
            with self._errors("create", key) as client:
                client.put_object(
                    Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*"
                )
        except StorageError as error:
            if error.code == "PreconditionFailed":
                return False
            raise
        return True

    def upload(self, path: Path, key: str) -> None:
        """See Store."""
        with path.open("rb") as file:
            self._upload(key, file)

    def fetch(self, key: str, sha256: str | None = None) -> Path:
        """See Store. The cache is the node's (see storage.cache)."""
        cache = Cache.of_node()
        name = self._version(key) if sha256 is None else sha256
        try:
            return cache.get(name, lambda path: self._download(key, sha256, path))
        except OSError as error:
            raise StorageError(
                f"cache {cache.folder}: {error.strerror}; set {FOLDER} to a folder of yours with "
                f"room, or {LIMIT} to less"
            ) from error

    def list(self, prefix: str = "") -> list[str]:
        """See Store."""
        return list(self.stamps(prefix))

    def stamps(self, prefix: str = "") -> dict[str, Stamp]:
        """See Store."""
        root = self._below()
        with self._errors("list", prefix) as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket,
                Prefix=self._below(prefix),
                PaginationConfig={"PageSize": _PAGE},
            )
            return {
                key: Stamp(entry["Size"], entry["ETag"])
                for key, entry in sorted(
                    (entry["Key"].removeprefix(root), entry)
                    for page in pages
                    for entry in page.get("Contents", ())
                    if not entry["Key"].endswith("/")  # pyarrow's markers of folders
                )
            }

    def exists(self, key: str) -> bool:
        """See Store."""
        try:
            with self._errors("look for", key) as client:
                client.head_object(Bucket=self.bucket, Key=self._key(key))
        except MissingKey:
            return False
        return True

    def delete(self, prefix: str) -> None:
        """See Store."""
        prefix = prefix.rstrip("/")
        names = [self._key(key) for key in [prefix, *self.list(prefix)]]
        with self._errors("delete", prefix) as client:
            for start in range(0, len(names), _PAGE):
                answer = client.delete_objects(
                    Bucket=self.bucket,
                    Delete={
                        "Objects": [{"Key": name} for name in names[start : start + _PAGE]],
                        "Quiet": True,
                    },
                )
                for problem in answer.get("Errors", ()):
                    code = problem.get("Code", "")
                    raise StorageError(f"{self.uri}: could not delete {prefix}: {code}", code)

    def abort_uploads(self, prefix: str = "") -> None:
        """See Store."""
        below = self._below(prefix)
        with self._errors("abort uploads to", prefix) as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=below, PaginationConfig={"PageSize": _PAGE}
            )
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                if upload["Key"].startswith(below):  # whatever the server makes of the prefix
                    with suppress(client.exceptions.NoSuchUpload):  # it has ended meanwhile
                        client.abort_multipart_upload(
                            Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )

    def within(self, prefix: str) -> S3Store:
        """See Store."""
        return S3Store(
            self.bucket,
            self._key(prefix.rstrip("/")),
            endpoint=self.endpoint,
            region=self.region,
            hurry=self.hurry,
        )

    def hurried(self) -> S3Store:
        """See Store."""
        return S3Store(
            self.bucket, self.prefix, endpoint=self.endpoint, region=self.region, hurry=True
        )

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}".lstrip("/")

    def _below(self, prefix: str = "") -> str:
        """With which all keys below a prefix begin."""
        if prefix:
            return self._key(prefix.rstrip("/")) + "/"
        return f"{self.prefix}/" if self.prefix else ""

    def _read(self, key: str, **more: Any) -> bytes:
        with self._errors("read", key) as client:
            # botocore retries the request, but not a body that breaks off.
            for attempt in range(3):
                try:
                    answer = client.get_object(Bucket=self.bucket, Key=self._key(key), **more)
                    return bytes(answer["Body"].read())
                except _BROKEN_READS:
                    if attempt == 2:
                        raise
        raise AssertionError("not reached")

    def _upload(self, key: str, file: BinaryIO) -> None:
        with self._errors("write", key) as client:
            client.upload_fileobj(file, self.bucket, self._key(key), Config=_TRANSFER)

    def _version(self, key: str) -> str:
        """A name for what is under a key now, by the server's own tag for it."""
        size, tag = self.stamp(key)
        about = f"{self.endpoint} {self.uri}/{key} {tag} {size}"
        return hashlib.sha256(about.encode()).hexdigest()

    def _download(self, key: str, sha256: str | None, path: Path) -> Path:
        with path.open("wb+") as file:
            with self._errors("read", key) as client:
                client.download_fileobj(self.bucket, self._key(key), file, Config=_TRANSFER)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 not in (None, found):
            raise StorageError(
                f"{self.uri}: {key} is damaged: its sha256 is {found}, not {sha256}", "Damaged"
            )
        return path

    @contextmanager
    def _errors(self, action: str, key: str) -> Iterator[S3Client]:
        try:
            yield _client(self.endpoint, self.region, self.hurry)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            code, reason = _explain(error)
            if code in ("NoSuchKey", "404"):
                raise MissingKey(f"{self.uri}/{key}") from None
            # "from None": botocore's own text may hold credentials, e.g. of a malformed header.
            raise StorageError(f"{self.uri}: could not {action} {key}: {reason}", code) from None


def _explain(error: Exception) -> tuple[str, str]:
    """A code and one line, without secrets."""
    code = type(error).__name__
    text = str(error)
    if isinstance(error, ClientError):
        answer = error.response.get("Error", {})
        code = answer.get("Code", code)
        text = answer.get("Message") or ""
    elif type(error) is HTTPClientError:
        text = ""  # whatever the HTTP library said, headers and all
    for secret in (os.environ.get(name, "").strip() for name in _SECRETS):
        if secret:
            text = text.replace(secret, "***")
    return code, " ".join(f"{code}: {text}".split()).rstrip(": ")


@functools.cache
def _client(endpoint: str | None, region: str | None, hurry: bool = False) -> S3Client:
    """One client per process and place; clients may be shared by threads."""
    connect, read, attempts = _HURRY if hurry else (5, 30, _ATTEMPTS)
    settings: dict[str, Any] = {}
    if endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        # Many servers other than AWS refuse botocore's default, checksums in trailers.
        settings["request_checksum_calculation"] = "when_required"
        settings["response_checksum_validation"] = "when_required"
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        config=Config(
            connect_timeout=connect,
            read_timeout=read,
            retries={"mode": "standard", "total_max_attempts": attempts},
            **settings,
        ),
    )
