"""Digits that people put right, stored where `labelled_digits` watches, and unsure predictions to be looked at."""

import hashlib
import io
import time
from collections import OrderedDict, deque
from datetime import datetime, timedelta, timezone
from threading import Lock

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from upath import UPath

from mnist_pipeline.ml.folders import visible_files
from mnist_pipeline.ml.images import ImageError, is_image, prepare
from mnist_pipeline.ml.settings import CLASSES
from mnist_pipeline.ml.storage import write_bytes
from mnist_pipeline.serve.errors import ServiceError, unusable
from mnist_pipeline.stores import CorruptModel, ModelStoreResource, UnknownModel

MINUTE_SECONDS = 60
IMAGE_ID = "^[0-9a-f]{32}$"
"""The service touches no file of another name."""


class Correction(BaseModel):
    """A digit and what a person says that it is."""

    id: str = Field(description="Digest of the image's content; the same image has the same id.")
    label: int = Field(ge=0, lt=CLASSES)
    waiting: int = Field(description="Corrections that no training has seen yet.")


class Corrections:
    """The drop folder of labelled digits, as the service writes to it: `<label>/<digest of the image>.png`."""

    def __init__(self, root: UPath, store: ModelStoreResource, per_minute: int) -> None:
        self._root, self._store, self._per_minute = root, store, per_minute
        self._times: deque[float] = deque()
        self._lock = Lock()

    def add(self, image: np.ndarray, label: int) -> tuple[Correction, bool]:
        """Store a uint8 (28, 28) image with its label; also whether that was new.

        The last word about an image counts: if it was stored with another label, that is taken back. Raises
        ServiceError for a blank image and where there are too many.
        """
        try:
            image = prepare(Image.fromarray(image))  # what the training will make of it
        except ImageError as error:
            raise unusable("bad_image", str(error)) from None
        digest = image_id(image)
        path = self._path(digest, label)
        with self._lock:
            stored = self._stored(digest)
            if new := path not in stored:
                self._admit()
                data = io.BytesIO()
                Image.fromarray(image).save(data, "PNG")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, data.getvalue())
                self._times.append(time.monotonic())
            for other in stored:
                if other != path:
                    other.unlink(missing_ok=True)
        return Correction(id=digest, label=label, waiting=self.waiting()), new

    def take_back(self, digest: str) -> None:
        """Remove a correction. Raises ServiceError if there is none of this id."""
        with self._lock:
            stored = self._stored(digest)
            for path in stored:
                path.unlink(missing_ok=True)
        if not stored:
            raise ServiceError(404, "unknown_correction", "there is no correction of this id")

    def waiting(self) -> int:
        """Labelled digits that came after the newest model's training had begun."""
        files = [details for name, details in visible_files(self._root).items() if is_image(name)]
        for name in self._store.versions():
            try:
                manifest = self._store.manifest(name)
            except (CorruptModel, UnknownModel):  # damaged, or pruned in between
                continue
            began = manifest.created_at - timedelta(seconds=sum(epoch.seconds for epoch in manifest.history))
            return sum(_changed(details) > began for details in files)
        return len(files)

    def _path(self, digest: str, label: int) -> UPath:
        return self._root / str(label) / f"{digest}.png"

    def _stored(self, digest: str) -> list[UPath]:
        return [path for label in range(CLASSES) if (path := self._path(digest, label)).exists()]

    def _admit(self) -> None:
        now = time.monotonic()
        while self._times and now - self._times[0] > MINUTE_SECONDS:
            self._times.popleft()
        if len(self._times) >= self._per_minute:
            wait = int(MINUTE_SECONDS - (now - self._times[0])) + 1
            message = f"more than {self._per_minute} corrections in a minute: try again in {wait} s"
            raise ServiceError(429, "too_many_corrections", message, retry_after=wait)


class ReviewItem(BaseModel):
    """A prediction that the model was not sure of."""

    id: str = Field(description="Of the image, as in corrections.")
    image: list[list[int]] = Field(description="28 rows of 28 values 0..255.")
    label: int = Field(description="What the model said.")
    confidence: float = Field(description="0..1.")
    model: str


class ReviewQueue:
    """The latest unsure predictions of this process, each image once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[str, ReviewItem] = OrderedDict()
        self._labelled: OrderedDict[str, ReviewItem] = OrderedDict()

    def add(self, image: np.ndarray, label: int, confidence: float, model: str) -> None:
        """The oldest item makes room for it."""
        digest = image_id(image)
        if digest not in self._labelled:
            item = ReviewItem(id=digest, image=image.tolist(), label=label, confidence=confidence, model=model)
            _keep(self._items, item, self._size)

    def items(self) -> list[ReviewItem]:
        """Least sure first."""
        return sorted(self._items.values(), key=lambda item: item.confidence)

    def label(self, digest: str) -> None:
        """It was labelled: it is not shown again."""
        if item := self._items.pop(digest, None):
            _keep(self._labelled, item, self._size)

    def take_back(self, digest: str) -> None:
        """It was not: it is shown again."""
        if item := self._labelled.pop(digest, None):
            _keep(self._items, item, self._size)


def _keep(items: "OrderedDict[str, ReviewItem]", item: ReviewItem, size: int) -> None:
    items[item.id] = item
    while len(items) > size:
        items.popitem(last=False)


def image_id(image: np.ndarray) -> str:
    """SHA-256 (hex, its first half) of the pixels of a uint8 (28, 28) image."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]


def _changed(details: dict) -> datetime:
    when = details.get("LastModified") or details["mtime"]
    return when if isinstance(when, datetime) else datetime.fromtimestamp(when, timezone.utc)
