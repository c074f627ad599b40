"""Files at an address: a folder, a bucket, or this process's memory. They are written whole or not at all."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from upath import UPath

from mnist_pipeline.files import atomic, cloud

if TYPE_CHECKING:
    from obstore.store import ObjectStore

PART_BYTES = 64 << 20
"""An object is fetched in parts of this size: a request ends after cloud.ONE_REQUEST_SECONDS, however much is left."""


def storage_path(address: str, endpoint_url: str | None = None) -> UPath:
    """Return a folder, `s3://`, `gs://`, `az://` or `memory://` address as a path object; `~` is the home folder.

    `endpoint_url` is of stores that speak S3 but are not Amazon's. Raises ValueError for an address that is none.
    """
    scheme, _, _ = cloud.parse_address(address)
    if not scheme:
        return UPath(cloud.expand_user(address))
    if scheme == cloud.MEMORY:
        return UPath(address)  # fsspec's own, which all threads of the process share
    _register()
    return UPath(address, **cloud.options(scheme, endpoint_url))


@cache
def _register() -> None:
    from obstore.fsspec import register

    register(list(cloud.BUCKETS))


def is_in_memory(path: Path | UPath) -> bool:
    """Return whether the address is of this process's memory, `memory://`."""
    return not isinstance(path, Path) and path.protocol == cloud.MEMORY


def read_bytes(path: Path | UPath) -> bytes:
    """Return the content of a file. Raises FileNotFoundError, or OSError where it cannot be read."""
    if isinstance(path, Path):
        return path.read_bytes()
    with cloud.sentences(str(path)):
        return path.fs.cat_file(path.path)  # one request; path.read_bytes() makes two


def write_bytes(path: Path | UPath, data: bytes) -> None:
    """Replace a file by `data`, all or nothing."""
    if isinstance(path, Path):
        atomic.write_bytes(path, data)
    else:
        with cloud.sentences(str(path)):
            path.fs.pipe_file(path.path, data)  # a bucket shows an object only when it is complete


@contextmanager
def replacing(path: Path | UPath) -> Iterator[Path]:
    """Give a file on the disk to write to, which takes the place of `path`, in a folder or a bucket, all or nothing."""
    if isinstance(path, Path):
        with atomic.replacing(path) as temporary:
            yield temporary
        return
    with tempfile.NamedTemporaryFile() as collected:
        temporary = Path(collected.name)
        yield temporary
        with cloud.sentences(str(path)):
            path.fs.put_file(collected.name, path.path)


@contextmanager
def writing(path: Path | UPath) -> Iterator[IO[bytes]]:
    """Open a file to write to, which becomes the content of `path` when the block ends well, all or nothing.

    What is to go to a bucket is collected in a temporary file, not in memory.
    """
    if is_in_memory(path):
        collected = io.BytesIO()
        yield collected
        write_bytes(path, collected.getvalue())
    else:
        with replacing(path) as temporary, temporary.open("wb") as file:
            yield file


@contextmanager
def reading(path: Path | UPath) -> Iterator[IO[bytes]]:
    """Open a file to read and to seek in; that of a bucket is fetched into a temporary file, in constant memory."""
    if is_in_memory(path):
        yield io.BytesIO(read_bytes(path))
    else:
        with on_disk(path) as local, local.open("rb") as file:
            yield file


@contextmanager
def on_disk(path: Path | UPath) -> Iterator[Path]:
    """Give a file on the disk: `path` in a folder itself, of one in a bucket a copy for the time of the block."""
    if isinstance(path, Path):
        yield path
        return
    import obstore

    bucket, key = bucket_of(path)
    with tempfile.NamedTemporaryFile() as fetched:
        with cloud.sentences(str(path)):
            whole = obstore.get(bucket, key)  # its content comes when it is asked for
            size, tag = whole.meta["size"], whole.meta["e_tag"]
            if size <= PART_BYTES:
                fetched.write(whole.bytes())
            for start in range(0, size if size > PART_BYTES else 0, PART_BYTES):  # each has the time of a request
                part = obstore.get(bucket, key, options={"range": (start, min(start + PART_BYTES, size))})
                if part.meta["e_tag"] != tag:
                    raise OSError(f"{path} was replaced while it was read: try again")
                fetched.write(part.bytes())
        fetched.flush()
        yield Path(fetched.name)


def bucket_of(path: UPath) -> tuple["ObjectStore", str]:
    """Return the bucket of a path as obstore's store, and the key in it."""
    bucket, _, key = path.path.partition("/")
    return cloud.connect(path.protocol, bucket, path.storage_options.get("config", {}).get("endpoint")), key


def exists(path: Path | UPath) -> bool:
    """Return whether there is a file or a folder of this name."""
    if isinstance(path, Path):
        return path.exists()
    with cloud.sentences(str(path)):
        return path.exists()


def is_folder(path: Path | UPath) -> bool:
    """Return whether there is a folder of this name, which in a bucket means that something is below it."""
    if isinstance(path, Path):
        return path.is_dir()
    with cloud.sentences(str(path)):
        return path.is_dir()


def delete(path: Path | UPath) -> None:
    """Remove a file; nothing happens if there is none."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with cloud.sentences(str(path)), suppress(FileNotFoundError):  # fsspec's memory tells it, buckets do not
        path.fs.rm_file(path.path)
