"""The images for people to look at: one queue for all services and runs over one place."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError
from upath import UPath

from mnist_pipeline.files.folders import Walk, walk
from mnist_pipeline.files.storage import delete, exists, read_bytes, write_bytes
from mnist_pipeline.ml.review_items import (
    IMAGE_ID,
    MAX_NUMBERS,
    MOST_OF_A_KIND,
    Reason,
    ReviewItem,
    image_id,
)
from mnist_pipeline.task.spec import TaskSpec

LABELLED, HELD, CONTRADICTIONS = "labelled", "held", "contradictions"
ENDING = ".json"
MAX_ITEM_BYTES = 16 << 20
"""Larger files are nobody's: an image has a few bytes a number."""

HOUR = timedelta(hours=1)
"""The time in which MOST_OF_A_KIND contradictions of one source train unconfirmed."""


class _Stored(NamedTuple):
    """The names of images, newest first."""

    items: list[str]
    labelled: list[str]
    held: dict[str, list[str]]
    """The files of a held image, relative to the root; several sources may have sent it."""
    forgotten: list[str]
    """The files of contradictions that count no more."""

    def waiting(self) -> dict[str, str]:
        """Return the held images that nobody has looked at, and the newest file of each."""
        labelled = set(self.labelled)
        return {digest: files[0] for digest, files in self.held.items() if digest not in labelled}


class ReviewQueue:
    """The latest images to be looked at, each image once.

        <root>/<image id>.json                        what is known about it
        <root>/held/<source>/<kind>/<image id>.json   the same of a label that waits until somebody confirms it
        <root>/labelled/<image id>.json               empty: somebody looked; it is shown again if that is taken back
        <root>/contradictions/<source>/<kind>/<image id>.json   empty, for an hour: such a label trains unconfirmed

    Of the first and the third only the latest are kept; of held ones all: they are people's work.
    Unsure predictions are added in memory, and written by `write`, which a service calls now and then.
    """

    def __init__(self, root: UPath, size: int) -> None:
        self.root, self._size = root, size
        self._new: OrderedDict[str, tuple[Any, ...]] = OrderedDict()  # images as lists of numbers are large
        self._added: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = Lock()

    def add(self, image: np.ndarray, reason: Reason, spec: TaskSpec, model: str, label: int, confidence: float) -> None:
        """Add a prediction about a uint8 image; each model is asked about it once.

        Images of more than MAX_NUMBERS are not kept: the page could not send them back.
        """
        if image.size > MAX_NUMBERS:
            return
        digest = image_id(image)
        with self._lock:
            if (digest, model) in self._added:
                return
            self._added[digest, model] = None
            self._new[digest] = image, reason, spec, model, label, confidence
            for kept in (self._added, self._new):
                while len(kept) > self._size:
                    kept.popitem(last=False)

    def write(self) -> None:
        """Store what was added, and remove what is more than the size, the oldest first."""
        with self._lock:
            new = dict(self._new)
        for digest, told in new.items():
            path = self.root / f"{digest}{ENDING}"
            if self.is_open(digest) and not exists(path):  # what is asked already may be more than a doubt
                write_bytes(path, ReviewItem.of(*told).model_dump_json().encode())
            with self._lock:
                self._new.pop(digest, None)
        if new:
            self._trim()

    def put(self, items: Iterable[ReviewItem], most: int) -> int:
        """Store the first `most` of `items` that were not stored before, and return how many these are."""
        stored = self._stored()
        known, put = {*stored.items, *stored.labelled, *stored.held}, 0
        for item in items:
            if put == most:
                break
            if item.id not in known and np.size(item.image) <= MAX_NUMBERS:
                write_bytes(self.root / f"{item.id}{ENDING}", item.model_dump_json().encode())
                known.add(item.id)
                put += 1
        self._trim()
        return put

    def items(self) -> list[ReviewItem]:
        """Return the items in their order; of those that are held as many as the queue has places.

        An item of a file that is damaged is left out."""
        self.write()
        stored, found = self._stored(), list[ReviewItem]()
        waiting = stored.waiting()
        hidden = {*stored.labelled, *waiting}
        names = [f"{digest}{ENDING}" for digest in stored.items if digest not in hidden]
        for name in [*list(waiting.values())[: self._size], *names]:
            try:
                item = ReviewItem.model_validate_json(read_bytes(self.root / name))
            except (OSError, ValidationError):  # another service removed it; or it is nobody's
                continue
            found += [item] if name.endswith(f"{item.id}{ENDING}") else []
        return sorted(found, key=lambda item: item.order)

    def admit(self, item: ReviewItem, hold_all: bool = False) -> bool:
        """Store a label that contradicts the model, and return whether it trains at once; if not, it is held back.

        Held back is what `hold_all` says, what exceeds MOST_OF_A_KIND in the hour before it, and whatever is of the
        kind and the source of a label that waits. Raises OSError if that cannot be stored.
        """
        kind, name = f"{item.source}/{item.given}-{item.label}", f"{item.id}{ENDING}"
        marker, held = self.root / CONTRADICTIONS / kind / name, self.root / HELD / kind
        write_bytes(marker, b"")  # before they are counted, so that of two at the same time none is overlooked
        times = {found: entry.changed for found, entry in walk(marker.parent).files.items()}
        recent = sum(changed > times[name] - HOUR for changed in times.values())
        waits = any(self.is_open(digest) for _, digest in newest_first(walk(held)))
        admitted = not (hold_all or waits or recent > MOST_OF_A_KIND)
        item = item.model_copy(update={"reason": "contradiction" if admitted else "held"})
        write_bytes(self.root / name if admitted else held / name, item.model_dump_json().encode())
        self.take_back(item.id)  # another label for what was looked at before
        if not admitted:
            delete(marker)
        self._trim()
        return admitted

    def held(self, digests: Sequence[str]) -> list[ReviewItem]:
        """Return those of these images whose labels wait. Raises OSError if one cannot be read."""
        waiting = self._stored().waiting()
        names = [waiting[digest] for digest in dict.fromkeys(digests) if digest in waiting]
        return [ReviewItem.model_validate_json(read_bytes(self.root / name)) for name in names]

    def count_held(self) -> int:
        """Return how many images have a label that waits."""
        return len(self._stored().waiting())

    def discard_held(self, digest: str) -> bool:
        """Forget the label of an image that waits, and return whether there was one."""
        names = self._stored().held.get(digest, [])
        for name in names:
            delete(self.root / name)
        return bool(names)

    def label(self, digest: str) -> None:
        """Show an image no more, since it was labelled."""
        write_bytes(self._marker(digest), b"")
        self._trim()

    def take_back(self, digest: str) -> None:
        """Show an image again, since its label was taken back."""
        delete(self._marker(digest))

    def is_open(self, digest: str) -> bool:
        """Return whether nobody has looked at an image yet."""
        return not exists(self._marker(digest))

    def _trim(self) -> None:
        stored = self._stored()
        gone = [*stored.forgotten, *(f"{digest}{ENDING}" for digest in stored.items[self._size :])]
        for digest in stored.labelled[self._size :]:
            # What it has hidden must not be shown again.
            gone += [*stored.held.get(digest, []), f"{digest}{ENDING}", f"{LABELLED}/{digest}{ENDING}"]
        for name in gone:
            delete(self.root / name)

    def _marker(self, digest: str) -> UPath:
        return self.root / LABELLED / f"{digest}{ENDING}"

    def _stored(self) -> _Stored:
        """The images of all files; no other file counts."""
        found, walked = _Stored([], [], {}, []), walk(self.root)
        named = newest_first(walked)
        # By the clock of the storage, which also gave the times.
        outdated = walked.files[named[0][0]].changed - HOUR if named else None
        for path, digest in named:
            folder, _, _ = path.rpartition("/")
            if not folder:
                found.items.append(digest)
            elif folder == LABELLED:
                found.labelled.append(digest)
            elif folder.startswith(f"{HELD}/"):
                found.held.setdefault(digest, []).append(path)
            elif folder.startswith(f"{CONTRADICTIONS}/") and outdated and walked.files[path].changed < outdated:
                found.forgotten.append(path)
        return found


def newest_first(found: Walk) -> list[tuple[str, str]]:
    """Return the names of the files that are named by an image, and its id, the newest first."""
    files = sorted(found.files.items(), key=lambda file: (file[1].changed, file[0]), reverse=True)
    names = [path for path, entry in files if path.endswith(ENDING) and entry.size <= MAX_ITEM_BYTES]
    ids = [path.rpartition("/")[2].removesuffix(ENDING) for path in names]
    return [(path, digest) for path, digest in zip(names, ids, strict=True) if re.match(IMAGE_ID, digest)]
