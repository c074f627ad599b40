"""A model store in a folder, safe between processes of one machine."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import Field

from mnist_pipeline.files import atomic
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ModelStoreError, ObjectChanged, ObjectMissing

LOCK = ".lock"
LOST_AND_FOUND = "lost+found"
"""A folder that the root of a volume has, and that only its administrator may list."""


class LocalModelStore(ModelStore):
    """A model store in a folder of this machine (or one mounted with POSIX locks and links)."""

    base_path: str = Field(description="The folder; made when first written to.")

    @property
    def address(self) -> str:
        return self.base_path

    def read_object(self, key: str) -> tuple[bytes, str]:
        with self._must_be_a_folder():
            try:
                data = self._path(key).read_bytes()
            except FileNotFoundError:
                raise ObjectMissing(key) from None
        return data, _token(data)

    def create_object(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with self._must_be_a_folder():
            created = False
            while not created:
                # A deletion at the same moment may take the empty folder away in between: then it is made again.
                with suppress(FileNotFoundError), atomic.temporary_sibling(path) as temporary:
                    temporary.write_bytes(data)
                    temporary.chmod(0o644)
                    atomic.sync(temporary)
                    try:
                        os.link(temporary, path)  # unlike a rename it fails if the name is taken
                    except FileExistsError:
                        raise ObjectChanged(key) from None
                    created = True
            with suppress(FileNotFoundError):
                atomic.sync(path.parent)
        return _token(data)

    def replace_object(self, key: str, data: bytes, token: str) -> None:
        with self._lock():
            try:
                current = self.read_object(key)[1]
            except ObjectMissing:
                raise ObjectChanged(key) from None
            if current != token:
                raise ObjectChanged(key)
            atomic.write_bytes(self._path(key), data)

    def list_objects(self, prefix: str = "", after: str = "") -> Iterator[str]:
        with self._must_be_a_folder():
            yield from self._below(prefix, after)

    def delete_object(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        if path.parent != Path(self.base_path):
            with suppress(OSError):  # not empty, or gone already
                path.parent.rmdir()

    def below(self, folder: str) -> Self:
        return self.model_copy(update={"base_path": str(self._path(folder))})

    def delete_unfinished(self, before: datetime) -> list[str]:
        removed = []
        for folder, _, names in os.walk(self.base_path, topdown=False):
            for name in names:
                path = Path(folder, name)
                if name.startswith(atomic.TEMPORARY_PREFIX):
                    with suppress(FileNotFoundError):
                        if path.stat().st_mtime < before.timestamp():
                            path.unlink()
                            removed.append(path.relative_to(self.base_path).as_posix())
            if Path(folder) != Path(self.base_path):
                with suppress(OSError):  # not empty
                    Path(folder).rmdir()
        return removed

    def _below(self, folder: str, after: str) -> Iterator[str]:
        """The keys below a folder, which is empty or ends with a slash, in order; a folder that went away has none."""
        try:
            with os.scandir(self._path(folder)) as entries:
                names = sorted(
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if entry.name != LOST_AND_FOUND
                )
        except FileNotFoundError:
            return
        for name in names:
            key = folder + name
            if name.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._below(key, after)
            elif not name.startswith(".") and key > after:
                yield key

    def _path(self, key: str) -> Path:
        return Path(self.base_path) / key

    @contextmanager
    def _must_be_a_folder(self) -> Iterator[None]:
        try:
            yield
        except (NotADirectoryError, FileExistsError):
            raise ModelStoreError(f"{self.base_path} is, or lies below, a file: a model store is a folder") from None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by one process at a time; the system lets go of it when a process dies."""
        path = self._path(LOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _token(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
