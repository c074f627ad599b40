"""The images for people to look at: one queue for all services and runs over one place."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from threading import Lock
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from upath import UPath

from mnist_pipeline.files.folders import Walk, walk
from mnist_pipeline.files.storage import delete, exists, read_bytes, write_bytes

IMAGE_ID = "^[0-9a-f]{32}$"
"""Files of another name are not touched."""

LABELLED, HELD, CONTRADICTIONS = "labelled", "held", "contradictions"
ENDING = ".json"
MAX_NUMBERS = 256 * 256 * 3
"""The numbers of the largest image that is kept, which is about a MiB as text."""
MAX_ITEM_BYTES = 16 << 20
"""Larger files are nobody's: an image has a few bytes a number."""

MOST_OF_A_KIND = 20
HOUR = timedelta(hours=1)
"""So many labels of one kind (this class called that one) that contradict the model train in an hour from a source."""

Reason = Literal["held", "contradiction", "improbable", "unlike", "unsure"]
"""Why an image is to be looked at: a label that trains only when it is confirmed; one that contradicts the deployed
model; one of the training data that a candidate finds improbable; a picture unlike the training data; an answer below
the threshold. They are looked at in this order."""


class ReviewItem(BaseModel):
    """An image to be looked at, and why."""

    id: str = Field(description="Of the image, as in corrections.")
    image: list[list[Any]] = Field(description="Rows of values 0..255.")
    label: int = Field(description="The answer of the model.")
    class_name: str | None = Field(None, description="The name of that class, which later models may count otherwise.")
    confidence: float = Field(description="0..1.")
    model: str
    reason: Reason = Field("unsure", description="Why it is to be looked at.")
    given: int | None = Field(None, description="The label that somebody gave; null: nobody did.")
    given_name: str | None = Field(None, description="The name of that class.")
    source: str | None = Field(None, description="A digest of the address that the label came from.")

    @classmethod
    def of(cls, image: np.ndarray, reason: Reason, **told: Any) -> "ReviewItem":
        """Return the item of a uint8 image."""
        return cls(id=image_id(image), image=image.tolist(), reason=reason, **told)

    @property
    def order(self) -> tuple[int, float]:
        """The place in the queue: labels that the model contradicts most surely first, and answers least sure first."""
        return get_args(Reason).index(self.reason), self.confidence if self.given is None else -self.confidence


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
        self._new: OrderedDict[str, tuple[np.ndarray, dict[str, Any]]] = OrderedDict()  # as lists they are large
        self._added: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = Lock()

    def add(self, image: np.ndarray, reason: Reason, **told: Any) -> None:
        """Add a prediction about a uint8 image, with the fields of its item; each model is asked about it once.

        Images of more than MAX_NUMBERS are not kept: the page could not send them back.
        """
        if image.size > MAX_NUMBERS:
            return
        digest = image_id(image)
        with self._lock:
            if (digest, told["model"]) in self._added:
                return
            self._added[digest, told["model"]] = None
            self._new[digest] = image, told | {"reason": reason}
            for kept in (self._added, self._new):
                while len(kept) > self._size:
                    kept.popitem(last=False)

    def write(self) -> None:
        """Store what was added, and remove what is more than the size, the oldest first."""
        with self._lock:
            new = list(self._new.values())
        for image, told in new:
            item = ReviewItem.of(image, **told)
            if not exists(self._marker(item.id)):
                write_bytes(self.root / f"{item.id}{ENDING}", item.model_dump_json().encode())
            with self._lock:
                self._new.pop(item.id, None)
        if new:
            self._trim()

    def put(self, items: Sequence[ReviewItem], most: int) -> int:
        """Store the first of `items` that nobody has looked at yet, `most` of them, and return how many these are."""
        labelled, put = set(self._stored().labelled), 0
        for item in items:
            if put == most:
                break
            if item.id not in labelled and np.size(item.image) <= MAX_NUMBERS:
                write_bytes(self.root / f"{item.id}{ENDING}", item.model_dump_json().encode())
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


def image_id(image: np.ndarray) -> str:
    """Return the SHA-256 (hex, its first half) of the pixels of an image."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]
