"""Bytes by key: what a backend of a model store provides."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress

from pydantic import BaseModel

from mnist_pipeline.stores.errors import ObjectChanged, ObjectMissing


class ObjectStore(BaseModel, ABC, frozen=True):
    """Five primitives on keys and bytes; each write must be all or nothing."""

    @abstractmethod
    def read_object(self, key: str) -> tuple[bytes, str]:
        """Return the content and a token that changes with it. Raises ObjectMissing."""

    @abstractmethod
    def create_object(self, key: str, data: bytes) -> None:
        """Write a new object. Raises ObjectChanged if there is one."""

    @abstractmethod
    def replace_object(self, key: str, data: bytes, token: str) -> None:
        """Write over the object that `token` was read from. Raises ObjectChanged if it is another one by now."""

    @abstractmethod
    def list_objects(self, prefix: str = "") -> Iterator[str]:
        """Yield all keys that begin with `prefix`, in any order."""

    @abstractmethod
    def delete_object(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""

    def _create(self, key: str, data: bytes, retry_is_ours: bool = True) -> None:
        """Create an object; with `retry_is_ours` one of the same content counts as created by this call."""
        try:
            self.create_object(key, data)
        except ObjectChanged:
            # A client that retries after a lost answer finds its own first attempt.
            if not (retry_is_ours and self._holds(key, data)):
                raise

    def _replace(self, key: str, data: bytes, token: str) -> None:
        try:
            self.replace_object(key, data, token)
        except ObjectChanged:
            if not self._holds(key, data):
                raise

    def put(self, key: str, data: bytes) -> None:
        """Write an object whether there is one or not; of several writers at once the last one stays."""
        self.update(key, lambda: data)

    def update(self, key: str, content: Callable[[], bytes]) -> None:
        """Write `content()`, which reads what is there; it is asked again if another one wrote in the meantime."""
        while True:
            with suppress(ObjectChanged):
                try:
                    _, token = self.read_object(key)
                except ObjectMissing:
                    self.create_object(key, content())
                else:
                    self.replace_object(key, content(), token)
                return

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read_object(key)[0] == data
        except ObjectMissing:
            return False
