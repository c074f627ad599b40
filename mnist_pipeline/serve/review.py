"""The predictions that the model was not sure of, for people to look at: one queue for all services over one place."""

import re
from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from upath import UPath

from mnist_pipeline.files.folders import walk
from mnist_pipeline.files.storage import delete, exists, read_bytes, write_bytes
from mnist_pipeline.serve.corrections import IMAGE_ID, image_id

LABELLED = "labelled"
ENDING = ".json"
MAX_NUMBERS = 256 * 256 * 3
"""The numbers of the largest image that is kept, which is about a MiB as text."""
MAX_ITEM_BYTES = 16 << 20
"""Larger files are nobody's: an image has a few bytes a number."""


class ReviewItem(BaseModel):
    """A prediction that the model was not sure of."""

    id: str = Field(description="Of the image, as in corrections.")
    image: list[list[Any]] = Field(description="Rows of values 0..255.")
    label: int = Field(description="The answer of the model.")
    class_name: str | None = Field(None, description="The name of that class, which later models may count otherwise.")
    confidence: float = Field(description="0..1.")
    model: str


class ReviewQueue:
    """The latest unsure predictions, each image once.

        <root>/<image id>.json             what the model said
        <root>/labelled/<image id>.json    empty: it was labelled, and is shown again if the label is taken back

    Predictions are added in memory, and written by `write`, which a service calls now and then.
    """

    def __init__(self, root: UPath, size: int) -> None:
        self._root, self._size = root, size
        self._new: OrderedDict[str, tuple[np.ndarray, dict[str, Any]]] = OrderedDict()  # as lists they are large
        self._added: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = Lock()

    def add(self, image: np.ndarray, label: int, class_name: str, confidence: float, model: str) -> None:
        """Add an unsure prediction about a uint8 image; each model is asked about it once.

        Images of more than MAX_NUMBERS are not kept: the page could not send them back.
        """
        if image.size > MAX_NUMBERS:
            return
        digest = image_id(image)
        with self._lock:
            if (digest, model) in self._added:
                return
            self._added[digest, model] = None
            told = {"id": digest, "label": label, "class_name": class_name, "confidence": confidence, "model": model}
            self._new[digest] = image, told
            for kept in (self._added, self._new):
                while len(kept) > self._size:
                    kept.popitem(last=False)

    def write(self) -> None:
        """Store what was added, and remove what is more than the size, the oldest first."""
        with self._lock:
            new = list(self._new.values())
        for image, told in new:
            item = ReviewItem(image=image.tolist(), **told)
            if not exists(self._marker(item.id)):
                write_bytes(self._root / f"{item.id}{ENDING}", item.model_dump_json().encode())
            with self._lock:
                self._new.pop(item.id, None)
        if new:
            self._trim()

    def items(self) -> list[ReviewItem]:
        """Return the items, least sure first. An item of a file that is damaged is left out."""
        self.write()
        stored, found = self._stored(), []
        for digest in sorted(set(stored[""]) - set(stored[LABELLED])):
            try:
                item = ReviewItem.model_validate_json(read_bytes(self._root / f"{digest}{ENDING}"))
            except (OSError, ValidationError):  # another service removed it; or it is nobody's
                continue
            found += [item] if item.id == digest else []
        return sorted(found, key=lambda item: item.confidence)

    def label(self, digest: str) -> None:
        """Show an image no more, since it was labelled."""
        write_bytes(self._marker(digest), b"")
        self._trim()

    def take_back(self, digest: str) -> None:
        """Show an image again, since its label was taken back."""
        delete(self._marker(digest))

    def _trim(self) -> None:
        for folder, digests in self._stored().items():
            for digest in digests[self._size :]:
                delete(self._root / folder / f"{digest}{ENDING}")

    def _marker(self, digest: str) -> UPath:
        return self._root / LABELLED / f"{digest}{ENDING}"

    def _stored(self) -> dict[str, list[str]]:
        """The images of the files to be looked at and of the labelled ones, newest first; no other file counts."""
        found: dict[str, list[str]] = {"": [], LABELLED: []}
        files = walk(self._root).files.items()
        for path, entry in sorted(files, key=lambda file: (file[1].changed, file[0]), reverse=True):
            folder, _, name = path.rpartition("/")
            digest = name.removesuffix(ENDING)
            if folder in found and name != digest and re.match(IMAGE_ID, digest) and entry.size <= MAX_ITEM_BYTES:
                found[folder].append(digest)
        return found
