"""Buckets of Amazon S3, Google Cloud Storage and Azure Blob Storage, through obstore."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from obstore.store import MemoryStore, ObjectStore

BUCKETS = ("s3", "gs", "az")
"""Schemes of addresses that name a bucket: of S3 or what speaks it, Google Cloud Storage, Azure Blob Storage."""

MEMORY = "memory"
"""The scheme of what lives in the memory of this process, and ends with it."""

SCHEMES = (*BUCKETS, MEMORY)

PAGE = 1000
"""Objects a request of a listing; no bucket gives more."""

ONE_REQUEST_SECONDS = 300
"""No request takes longer, however large its body: 30 s would be too little for a data set over a slow line."""

MISSING_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
"""The words by which S3, Azure and Google tell a bucket that is not there from an object that is not."""

BUCKET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""Names of buckets; the clouds allow less."""

ONE_SLASH = re.compile(r"[a-z0-9]+:/[^/]")


class StorageError(OSError):
    """A bucket cannot be used; the message says which, why, and what to check."""


def parse_address(address: str) -> tuple[str, str, str]:
    """Return scheme, bucket and prefix of an address `scheme://bucket/prefix`; a folder has the scheme "".

    Raises ValueError for an address with a password or a query in it, without repeating it, for another scheme, and
    where bucket or prefix cannot be one.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        if ONE_SLASH.match(address):
            raise ValueError(f"{address!r} has one slash where an address has two; for a folder write ./{address}")
        expand_user(address)
        return "", "", address
    refuse_secrets(address)
    if scheme not in SCHEMES:
        raise ValueError(f"{address!r} is neither a folder nor one of {', '.join(f'{name}://' for name in SCHEMES)}")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not bucket and scheme != MEMORY:
        raise ValueError(f"{address!r} names no bucket: write {scheme}://bucket or {scheme}://bucket/prefix")
    if bucket and not BUCKET.fullmatch(bucket):
        raise ValueError(f"{address!r} names no bucket: {bucket!r} has characters that no name of a bucket has")
    if prefix and {"", ".", ".."} & set(prefix.split("/")):
        raise ValueError(f"{address!r} has an empty part, '.' or '..' in its prefix, which no bucket lists")
    return scheme, bucket, prefix


def expand_user(folder: str) -> Path:
    """Return the path of a folder; `~` is the home folder. Raises ValueError where a user has none."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{folder!r}: {error}") from None


def require_url(url: str) -> None:
    """Raise ValueError for what is no URL of a server, or has a password or a query in it, without repeating that."""
    refuse_secrets(url)
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port):
            return
    except ValueError:
        pass
    raise ValueError("a URL begins with http:// or https:// and names a host")


def refuse_secrets(address: str) -> None:
    """Raise ValueError for an address with a user, a password or a query: it would be written to logs and metadata."""
    rest = address.partition("://")[2] or address
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise ValueError(
            "an address must not hold a user, a password or a query, since it is written to logs: "
            "give credentials as the tools of the cloud find them"
        )


@lru_cache(maxsize=64)
def options(
    scheme: str, endpoint_url: str | None = None, max_attempts: int = 5, timeout_seconds: float = 30
) -> dict[str, Any]:
    """Return the options of obstore for the buckets of a scheme.

    Credentials and region of S3 come as boto3 finds them (environment, profile, single sign-on, role), those of Google
    and Azure as obstore finds them: GOOGLE_APPLICATION_CREDENTIALS or gcloud's, AZURE_STORAGE_ACCOUNT_NAME and a key,
    a managed identity, or the Azure command line. Raises StorageError where S3 has none.
    """
    found: dict[str, Any] = {
        "client_options": {
            "allow_http": True,  # only where the address that somebody set says so; those of the clouds do not
            "timeout": timedelta(seconds=ONE_REQUEST_SECONDS),
            "connect_timeout": timedelta(seconds=timeout_seconds),
            "read_timeout": timedelta(seconds=timeout_seconds),
        },
        "retry_config": {"max_retries": max_attempts - 1},
    }
    if endpoint_url:
        require_url(endpoint_url)
    if scheme == "s3":
        found["credential_provider"] = _boto3_credentials()
        if endpoint_url:
            found["config"] = {"endpoint": endpoint_url}
    return found


@cache
def _boto3_credentials() -> Any:
    from boto3 import Session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(Session())
    except BotoCoreError as error:  # such as a profile that there is not
        raise StorageError(f"S3 needs credentials, and boto3 says: {error}") from None
    except ValueError:
        raise StorageError(
            "S3 needs credentials, and boto3 finds none: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or run where there is a role"
        ) from None


MEMORIES: "dict[str, MemoryStore]" = {}
"""The stores in the memory of this process, by their names."""


def connect(
    scheme: str, bucket: str, endpoint_url: str | None = None, max_attempts: int = 5, timeout_seconds: float = 30
) -> "ObjectStore":
    """Return the bucket as obstore's store; one for each bucket in a process. In memory, `bucket` is only a name."""
    if scheme == MEMORY:
        from obstore.store import MemoryStore

        return MEMORIES.setdefault(bucket, MemoryStore())
    if os.getpid() != _process():
        raise StorageError(
            "buckets cannot be used in a process that was forked from one that used them, and would wait for ever: "
            "start it by spawn or forkserver"
        )
    return _connect(scheme, bucket, endpoint_url, max_attempts, timeout_seconds)


@cache
def _process() -> int:
    """The process that used buckets first."""
    return os.getpid()


@lru_cache(maxsize=64)
def _connect(
    scheme: str, bucket: str, endpoint_url: str | None, max_attempts: int, timeout_seconds: float
) -> "ObjectStore":
    from obstore.store import from_url

    with sentences(f"{scheme}://{bucket}"):
        return from_url(f"{scheme}://{bucket}", **options(scheme, endpoint_url, max_attempts, timeout_seconds))


@contextmanager
def sentences(where: str) -> Iterator[None]:
    """Raise what obstore raises as StorageError, with a sentence.

    FileNotFoundError, AlreadyExistsError and PreconditionError pass, but for a bucket that does not exist.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except FileNotFoundError as error:
        if MISSING_BUCKET.search(str(error)):
            raise StorageError(f"{where}: there is no such bucket") from None
        raise
    except InvalidPathError as error:
        raise StorageError(
            f"{where}: {_first_line(error)}. Rename or remove that object: names with empty parts, '.', '..' or "
            "control characters cannot be listed"
        ) from None
    except BaseError as error:
        said = "there is no such bucket" if MISSING_BUCKET.search(str(error)) else _first_line(error)
        raise StorageError(
            f"{where}: {said}. Check the name of the bucket, the credentials, the region and the network"
        ) from None  # a signature in what obstore says would be written to logs


def _first_line(error: Exception) -> str:
    """The message without obstore's dump and the answer's XML, and without queries, which may hold a signature."""
    said = str(error).partition("\n")[0].partition(": <")[0]
    return re.sub(r"\?\S+", "", said).rstrip(".")
