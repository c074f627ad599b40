"""Images that people put right, stored where `labelled_digits` watches."""

import io
import time
from collections import deque
from threading import Lock

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from upath import UPath

from mnist_pipeline.files.folders import walk
from mnist_pipeline.files.pictures import ImageError, is_image
from mnist_pipeline.files.storage import delete, exists, write_bytes
from mnist_pipeline.ml.review_items import image_id
from mnist_pipeline.serve.errors import ServiceError, unusable
from mnist_pipeline.stores import CorruptModel, ModelStore, UnknownModel
from mnist_pipeline.task.preprocessing import prepare
from mnist_pipeline.task.spec import TaskSpec

MINUTE_SECONDS = 60
COUNT_AGAIN_SECONDS = 60
"""Other services and people also write to the folder; looking through it takes longer the more there is."""


class Correction(BaseModel):
    """The label that a person gave to an image."""

    id: str = Field(description="Digest of the image's content; the same image has the same id.")
    label: int = Field(ge=0)
    waiting: int = Field(description="Corrections that no training has seen yet.")
    held: bool = Field(False, description="It is not used for training until somebody confirms it on /review.")


class Corrections:
    """The drop folder of labelled images, as the service writes to it: `<class>/<digest of the image>.png`."""

    def __init__(self, root: UPath, store: ModelStore, per_minute: int) -> None:
        self._root, self._store, self._per_minute = root, store, per_minute
        self._times: deque[float] = deque()
        self._lock, self._counting = Lock(), Lock()
        self._waiting: int | None = None
        self._counted_at = 0.0

    def prepared(self, image: np.ndarray, label: int, spec: TaskSpec) -> np.ndarray:
        """Return a uint8 image of `spec.array_shape` as the training will have it.

        Raises ServiceError for a blank image, and for a label that there is not.
        """
        if label >= spec.classes:
            raise unusable("bad_correction", f"label: Input should be less than {spec.classes}, not {label}")
        try:
            return prepare(Image.fromarray(image), spec)
        except ImageError as error:
            raise unusable("bad_image", str(error)) from None

    def has(self, digest: str, label: int, spec: TaskSpec) -> bool:
        """Return whether an image is stored with this label."""
        return exists(self._path(digest, spec.class_folders[label]))

    def store(self, image: np.ndarray, label: int, spec: TaskSpec) -> bool:
        """Store a prepared image with its label, and return whether that was new.

        The last word about an image counts: if it was stored with another label, that is taken back.
        """
        digest = image_id(image)
        path = self._path(digest, spec.class_folders[label])
        self.waiting()  # before this one is there
        with self._lock:
            stored = self._stored(digest, spec)
            if new := path not in stored:
                data = io.BytesIO()
                Image.fromarray(image).save(data, "PNG")
                write_bytes(path, data.getvalue())
            for other in stored:
                if other != path:
                    delete(other)
            self._change(new and not stored)
        return new

    def take_back(self, digest: str, spec: TaskSpec) -> bool:
        """Remove a correction, and return whether there was one of this id."""
        with self._lock:
            stored = self._stored(digest, spec)
            for path in stored:
                delete(path)
            self._change(-bool(stored))
        return bool(stored)

    def waiting(self) -> int:
        """Return how many labelled images came after the newest model's training had begun.

        They are counted when this is first asked; then the number is kept, and `count_again` looks now and then.
        """
        with self._counting:
            if self._waiting is None:
                self._waiting, self._counted_at = self._count(), time.monotonic()
            return self._waiting

    def count_again(self) -> None:
        """Count, if anybody ever asked and the last time is a while ago."""
        if self._waiting is not None and time.monotonic() - self._counted_at > COUNT_AGAIN_SECONDS:
            counted = self._count()
            with self._counting:
                self._waiting, self._counted_at = counted, time.monotonic()

    def _count(self) -> int:
        times = [
            entry.changed for name, entry in walk(self._root).files.items() if is_image(name) and name.count("/") == 1
        ]
        for name in self._store.versions():
            try:
                began = self._store.manifest(name).training.began_at
            except (CorruptModel, UnknownModel):  # damaged, or pruned in between
                continue
            if began is not None:
                return sum(changed > began for changed in times)
        return len(times)

    def _change(self, by: int) -> None:
        with self._counting:
            if self._waiting is not None:
                self._waiting = max(0, self._waiting + by)

    def _path(self, digest: str, folder: str) -> UPath:
        return self._root / folder / f"{digest}.png"

    def _stored(self, digest: str, spec: TaskSpec) -> list[UPath]:
        """The files of an image, of whatever class."""
        return [path for folder in spec.known_folders if exists(path := self._path(digest, folder))]

    def require_pace(self) -> None:
        """Count one more in this minute. Raises ServiceError where there are too many."""
        with self._lock:
            now = time.monotonic()
            while self._times and now - self._times[0] > MINUTE_SECONDS:
                self._times.popleft()
            if len(self._times) >= self._per_minute:
                wait = int(MINUTE_SECONDS - (now - self._times[0])) + 1
                message = f"more than {self._per_minute} corrections in a minute: try again in {wait} s"
                raise ServiceError(429, "too_many_corrections", message, retry_after=wait)
            self._times.append(now)
