"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
"""Names that begin so are unfinished: a killed writer may leave them, a reader ignores them."""


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """A fresh file name beside `path` (folders made), removed at the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file name to write to; when the block ends well, that file takes the place of `path` at once.

    The old content stays until then, and after an error or a kill.
    """
    with temporary_sibling(path) as temporary:
        yield temporary
        sync(temporary)
        temporary.chmod(0o644)  # mkstemp's 0600 would hide the file from other users of a shared folder
        temporary.replace(path)
        sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
