"""A model store in a folder, safe between processes of one machine."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import Field

from mnist_pipeline.environment import Environment
from mnist_pipeline.files import atomic
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ObjectChanged, ObjectMissing

LOCK = ".lock"


def from_environment(environment: Environment) -> ModelStore:
    """Return the store in the folder MODEL_DIR."""
    return LocalModelStore(base_path=environment.local_place("model_dir", "models"))


class LocalModelStore(ModelStore):
    """A model store in a folder of this machine (or one mounted with POSIX locks and links)."""

    base_path: str = Field(description="The folder; made when first written to.")

    def read_object(self, key: str) -> tuple[bytes, str]:
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        return data, hashlib.sha256(data).hexdigest()

    def create_object(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with atomic.temporary_sibling(path) as temporary:
            temporary.write_bytes(data)
            temporary.chmod(0o644)
            atomic.sync(temporary)
            try:
                os.link(temporary, path)  # unlike a rename it fails if the name is taken
            except FileExistsError:
                raise ObjectChanged(key) from None
            atomic.sync(path.parent)

    def replace_object(self, key: str, data: bytes, token: str) -> None:
        with self._lock():
            try:
                current = self.read_object(key)[1]
            except ObjectMissing:
                raise ObjectChanged(key) from None
            if current != token:
                raise ObjectChanged(key)
            atomic.write_bytes(self._path(key), data)

    def list_objects(self, prefix: str = "") -> Iterator[str]:
        root = Path(self.base_path)
        for path in root.rglob("*"):
            key = path.relative_to(root).as_posix()
            if key.startswith(prefix) and not path.name.startswith(".") and path.is_file():
                yield key

    def delete_object(self, key: str) -> None:
        path = self._path(key)
        path.unlink(missing_ok=True)
        if path.parent != Path(self.base_path):
            with suppress(OSError):  # not empty, or gone already
                path.parent.rmdir()

    def _path(self, key: str) -> Path:
        return Path(self.base_path) / key

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by one process at a time; the system lets go of it when a process dies."""
        path = self._path(LOCK)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
