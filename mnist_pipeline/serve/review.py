"""The predictions that the model was not sure of, for people to look at: one queue for all services over one place."""

import re
from collections import OrderedDict
from datetime import datetime
from threading import Lock
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from upath import UPath

from mnist_pipeline.files.folders import walk
from mnist_pipeline.files.storage import delete, exists, read_bytes, write_bytes
from mnist_pipeline.serve.corrections import image_id

LABELLED = "labelled"
ENDING = ".json"
FILE_NAME = re.compile(r"[0-9a-f]{32}\.json")
"""No file of another name is touched."""


class ReviewItem(BaseModel):
    """A prediction that the model was not sure of."""

    id: str = Field(description="Of the image, as in corrections.")
    image: list[list[Any]] = Field(description="Rows of values 0..255.")
    label: int = Field(description="The answer of the model.")
    confidence: float = Field(description="0..1.")
    model: str


class ReviewQueue:
    """The latest unsure predictions, each image once.

        <root>/<image id>.json             to be looked at
        <root>/labelled/<image id>.json    labelled, and shown again if the label is taken back

    Predictions are added in memory, and written by `write`, which a service calls now and then.
    """

    def __init__(self, root: UPath, size: int) -> None:
        self._root, self._size = root, size
        self._new: OrderedDict[str, ReviewItem] = OrderedDict()
        self._added: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._read: dict[str, tuple[datetime, ReviewItem]] = {}
        self._lock = Lock()

    def add(self, image: np.ndarray, label: int, confidence: float, model: str) -> None:
        """Add an unsure prediction about a uint8 image; each model is asked about it once."""
        if (key := (image_id(image), model)) in self._added:
            return
        self._added[key] = None
        self._new[key[0]] = ReviewItem(id=key[0], image=image.tolist(), label=label, confidence=confidence, model=model)
        for kept in (self._added, self._new):
            while len(kept) > self._size:
                kept.popitem(last=False)

    def write(self) -> None:
        """Store what was added, and remove what is more than the size, the oldest first."""
        if not self._new:
            return
        with self._lock:
            while self._new:
                _, item = self._new.popitem(last=False)
                if not exists(self._root / LABELLED / f"{item.id}{ENDING}"):
                    write_bytes(self._root / f"{item.id}{ENDING}", item.model_dump_json().encode())
            for folder, names in self._names().items():
                for name, _ in names[self._size :]:
                    delete(self._root / folder / name)

    def items(self) -> list[ReviewItem]:
        """Return the items, least sure first. An item of a file that is damaged is left out."""
        self.write()
        found = {}
        for name, changed in self._names()[""]:
            known = self._read.get(name)
            if known is None or known[0] != changed:
                try:
                    known = changed, ReviewItem.model_validate_json(read_bytes(self._root / name))
                except (FileNotFoundError, ValidationError):  # another service removed it; or it is nobody's
                    continue
            found[name] = known
        self._read = found
        return sorted((item for _, item in found.values()), key=lambda item: item.confidence)

    def label(self, digest: str) -> None:
        """Show an image no more, since it was labelled."""
        self._move(digest, "", LABELLED)

    def take_back(self, digest: str) -> None:
        """Show an image again, since its label was taken back."""
        self._move(digest, LABELLED, "")

    def _move(self, digest: str, from_folder: str, to_folder: str) -> None:
        self.write()
        name = f"{digest}{ENDING}"
        try:
            content = read_bytes(self._root / from_folder / name)
        except FileNotFoundError:
            return
        write_bytes(self._root / to_folder / name, content)
        delete(self._root / from_folder / name)

    def _names(self) -> dict[str, list[tuple[str, datetime]]]:
        """Names and times of the files to be looked at and of the labelled ones, newest first."""
        found: dict[str, list[tuple[str, datetime]]] = {"": [], LABELLED: []}
        files = walk(self._root).files.items()
        for path, entry in sorted(files, key=lambda file: (file[1].changed, file[0]), reverse=True):
            folder, _, name = path.rpartition("/")
            if folder in found and FILE_NAME.fullmatch(name):
                found[folder].append((name, entry.changed))
        return found
