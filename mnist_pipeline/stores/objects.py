"""Bytes by key: what a backend of a model store provides."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Self

from pydantic import BaseModel

from mnist_pipeline.stores.errors import ModelStoreError, ObjectChanged, ObjectMissing

PROOFS = ".proofs/"
"""Keys of the objects that a store is tried with; a backend lists them, but nothing else looks at them."""

DATA = "data/"
"""Keys of the images that versions were trained on; see `datasets`."""

EXPERIMENTS = "experiments/"
"""Keys of sweeps and of the versions that they try; see `experiments`."""

SWEEP_NAME = r"^[a-z0-9][a-z0-9_]{0,60}$"
"""Names of sweeps stand in keys and in names of partitions."""

LEADERBOARD = "leaderboard.html"
"""The page in the folder of a sweep."""

OPEN_SWEEPS, NAMED_SWEEPS = f"{EXPERIMENTS}.open/", f"{EXPERIMENTS}.named/"
"""Keys of empty objects: for each sweep that has trials left to do; for each sweep by a time, `_` and its name."""


class ObjectStore(BaseModel, ABC, frozen=True):
    """Five primitives on keys and bytes; each write must be all or nothing."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The folder or the address, without any secret."""

    @abstractmethod
    def read_object(self, key: str) -> tuple[bytes, str]:
        """Return the content and a token that changes with it. Raises ObjectMissing."""

    @abstractmethod
    def create_object(self, key: str, data: bytes) -> str:
        """Write a new object and return its token. Raises ObjectChanged if there is one."""

    @abstractmethod
    def replace_object(self, key: str, data: bytes, token: str) -> None:
        """Write over the object that `token` was read from. Raises ObjectChanged if it is another one by now."""

    @abstractmethod
    def list_objects(self, prefix: str = "", after: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix` and come after `after`, in order, a page at a time.

        `prefix` is empty or ends with a slash.
        """

    @abstractmethod
    def delete_object(self, key: str) -> None:
        """Remove an object; nothing happens if there is none."""

    @abstractmethod
    def below(self, folder: str) -> Self:
        """Return the store of the keys that begin with `folder` and a slash."""

    def delete_unfinished(self, before: datetime) -> list[str]:
        """Remove the temporary files of killed writers, last changed before then (UTC); returns their names."""
        return []

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
        while True:
            with suppress(ObjectChanged):
                try:
                    _, token = self.read_object(key)
                except ObjectMissing:
                    self.create_object(key, data)
                else:
                    self.replace_object(key, data, token)
                return

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read_object(key)[0] == data
        except ObjectMissing:
            return False


@cache
def prove_conditional_writes(store: ObjectStore) -> None:
    """Try, once a process, that a store honours the conditions of writes, without which promotions get lost unseen.

    Raises ModelStoreError if it does not.
    """
    key = f"{PROOFS}{time_text(datetime.now(UTC))}-{uuid.uuid4().hex}"
    try:
        token = store.create_object(key, b"created")
    except ObjectChanged:  # the answer to a first attempt was lost
        token = store.read_object(key)[1]
    try:
        _must_conflict(store, "create-if-absent (If-None-Match)", lambda: store.create_object(key, b"created again"))
        store._replace(key, b"replaced", token)
        _must_conflict(store, "replace-if-unchanged (If-Match)", lambda: store.replace_object(key, b"again", token))
    except ObjectChanged:
        raise ModelStoreError(f"{store.address} refuses to replace an object that nobody changed: {ADVICE}") from None
    finally:
        store.delete_object(key)


def delete_old_proofs(store: ObjectStore, before: datetime) -> None:
    """Remove the proofs of processes that were killed in them before then (UTC)."""
    for key in list(store.list_objects(PROOFS)):
        if key < f"{PROOFS}{time_text(before)}":
            store.delete_object(key)


def time_text(moment: datetime) -> str:
    """Return a time, UTC, as keys have it: text that sorts by time."""
    return f"{moment.year:04d}{moment:%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"


ADVICE = (
    "promotions would be lost or never made. Keep the models in a folder, or in a store that honours conditional "
    "writes: Amazon S3, Google Cloud Storage, Azure Blob Storage, or one that speaks S3 and says that it does"
)
"""The end of what is said about a store that cannot be used."""


def _must_conflict(store: ObjectStore, condition: str, write: Callable[[], object]) -> None:
    with suppress(ObjectChanged):
        write()
        raise ModelStoreError(f"{store.address} ignores the condition {condition} of a write: {ADVICE}")
