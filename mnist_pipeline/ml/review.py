"""The images for people to look at: one queue for all services and runs over one place."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError
from upath import UPath

from mnist_pipeline.files.folders import walk
from mnist_pipeline.files.storage import delete, exists, read_bytes, write_bytes
from mnist_pipeline.ml.review_items import IMAGE_ID, MAX_NUMBERS, Doubt, ReviewItem, image_id
from mnist_pipeline.task.spec import TaskSpec

LABELS, HELD, CONTRADICTIONS, LABELLED = "labels", "held", "contradictions", "labelled"
ENDING = ".json"
MAX_ITEM_BYTES = 16 << 20
"""Larger files are nobody's: an image has a few bytes a number."""

MOST_IN_AN_HOUR = 20
HOUR = timedelta(hours=1)
"""So many labels of one kind (this class called that one) that contradict the model train unconfirmed, of a source."""

MOST_HELD_OF_A_KIND, MOST_HELD = 500, 5000
"""The most labels of one kind that wait from one source, and the most that wait in all; more are refused."""

MOST_OF_A_KIND = 20
"""The most labels of one kind that a run has looked at: the page shows different mistakes."""

DECIDED = b"decided"
MOST_LABELLED = 10_000
"""So many images are remembered that somebody looked at, which have this content; and as many that were labelled
otherwise, lest labels push decisions out."""


MOST_BYTES = 32 << 20
"""The files of all items that are shown at a time."""


class TooManyWait(Exception):
    """So many labels wait that no more are taken."""


class _Stored(NamedTuple):
    """The files of each kind, newest first, with their names relative to the root and their sizes."""

    doubts: dict[str, str]
    labels: dict[str, str]
    labelled: dict[str, str]
    """The name of a file by the id of its image, as in the two before."""
    held: list[str]
    expired: list[str]
    """Contradictions of more than an hour ago."""
    sizes: dict[str, int]


class ReviewQueue:
    """The latest images to be looked at.

        <root>/<id>.json                                a doubtful answer about the image of this id
        <root>/labels/<id>.json                         a doubtful label, which trains
        <root>/held/<source>.<kind>.<id>.json           a label that waits until somebody confirms it
        <root>/contradictions/<source>.<kind>.<id>.json empty, for an hour: one that was taken unconfirmed
        <root>/labelled/<id>.json                       the image was labelled, here or elsewhere

    Of the first two the latest are kept, so many of each; of held ones all: they are people's work.
    Doubtful answers of a service are added in memory, and written by `write`, which it calls now and then.
    """

    def __init__(self, root: UPath, size: int) -> None:
        self.root, self._size = root, size
        self._new: OrderedDict[str, tuple[Doubt, TaskSpec, str]] = OrderedDict()  # images as lists are large
        self._added: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = Lock()
        self._untidy = False

    def add(self, doubt: Doubt, spec: TaskSpec, model: str) -> None:
        """Add a doubtful answer; each model is asked about an image once.

        Images of more than MAX_NUMBERS are not kept: the page could not send them back.
        """
        if doubt.image.size > MAX_NUMBERS:
            return
        digest = image_id(doubt.image)
        with self._lock:
            if (digest, model) in self._added:
                return
            self._added[digest, model] = None
            self._new[digest] = doubt, spec, model
            for kept in (self._added, self._new):
                while len(kept) > self._size:
                    kept.popitem(last=False)

    def write(self) -> None:
        """Store what was added, and remove what is more than the size, the oldest first."""
        with self._lock:
            new = dict(self._new)
        for digest, (doubt, spec, model) in new.items():
            path = self.root / f"{digest}{ENDING}"
            if self.is_open(digest) and not exists(path):
                write_bytes(path, doubt.item(spec, model).model_dump_json().encode())
            with self._lock:
                self._new.pop(digest, None)
        if new or self._untidy:
            self._trim()

    def put(self, items: Iterable[ReviewItem], most: int) -> int:
        """Store the first `most` of `items` that are not known, and return how many these are.

        Of labels of one kind there are at most MOST_OF_A_KIND among them.
        """
        stored, put = self._stored(), 0
        kinds: Counter[tuple[int, int]] = Counter()
        for item in items:
            if put == most:
                break
            known = {*stored.labels, *stored.labelled, *(() if item.given is not None else stored.doubts)}
            if item.id in known or np.size(item.image) > MAX_NUMBERS:
                continue
            if item.given is not None:
                kinds[item.given, item.label] += 1
                if kinds[item.given, item.label] > MOST_OF_A_KIND:
                    continue
            write_bytes(self.root / _name(item), item.model_dump_json().encode())
            (stored.doubts if item.given is None else stored.labels)[item.id] = _name(item)
            put += 1
        self._trim()
        return put

    def items(self, shape: tuple[int, ...]) -> list[ReviewItem]:
        """Return the items with images of this shape in their order, of each kind as many as the queue has places.

        An image is there once, with the gravest reason. Items of files that are damaged are left out, and the last ones
        of those that have more than MOST_BYTES together.
        """
        self.write()
        stored, found, left = self._stored(), dict[str, ReviewItem](), MOST_BYTES
        for names in (stored.held, stored.labels.values(), stored.doubts.values()):
            places = self._size
            for name in names:
                if _id(name) in stored.labelled:
                    continue
                left -= stored.sizes[name]
                if not places or left < 0:
                    break
                if (item := self._read(name)) and item.id not in found and item.shape == shape:
                    found[item.id] = item
                    places -= 1
        return sorted(found.values(), key=lambda item: item.order)

    def admit(self, item: ReviewItem, hold_all: bool = False) -> bool:
        """Store a label that contradicts the model, and return whether it trains at once; if not, it is held back.

        Held back is what `hold_all` says, what exceeds MOST_IN_AN_HOUR in the hour before it, and whatever is of the
        kind and the source of a label that waits. Raises TooManyWait, and OSError if that cannot be stored.
        """
        kind, waiting = _kind_of(item), walk(self.root / HELD).files
        path = self.root / HELD / f"{kind}{item.id}{ENDING}"
        alike = [name for name in waiting if name.startswith(kind)]
        waits = any(self.is_open(_id(name)) for name in alike)
        if path.name not in alike and (len(alike) >= MOST_HELD_OF_A_KIND or len(waiting) >= MOST_HELD):
            raise TooManyWait(f"{len(waiting)} labels wait until somebody confirms them on /review: no more are taken")
        marker = self.root / CONTRADICTIONS / path.name
        write_bytes(marker, b"")  # before they are counted, so that of two at the same time none is overlooked
        taken = walk(marker.parent).files.items()
        times = [entry.changed for name, entry in taken if name.startswith(kind)]
        recent = sum(changed > _an_hour_before(times) for changed in times)
        admitted = not (hold_all or waits or recent > MOST_IN_AN_HOUR)
        item = item.model_copy(update={"reason": "contradiction" if admitted else "held"})
        write_bytes(self.root / _name(item) if admitted else path, item.model_dump_json().encode())
        delete(self._marker(item.id))  # this is another label than the one that somebody looked at
        if not admitted:
            delete(marker)
        self._untidy = True
        return admitted

    def held(
        self, source: str, given: int, label: int, shape: tuple[int, ...], digests: Sequence[str]
    ) -> list[ReviewItem]:
        """Return those of these images whose labels of one kind and source wait, but for damaged ones."""
        kind = _kind(source, given, label, shape)
        names = [f"{HELD}/{kind}{digest}{ENDING}" for digest in dict.fromkeys(digests)]
        return [item for name in names if (item := self._read(name))]

    def count_held(self) -> int:
        """Return how many labels wait."""
        stored = self._stored()
        return sum(_id(name) not in stored.labelled for name in stored.held)

    def discard(self, items: Iterable[ReviewItem]) -> None:
        """Forget labels that wait."""
        for item in items:
            delete(self.root / HELD / f"{_kind_of(item)}{item.id}{ENDING}")

    def discard_held_of(self, digest: str, source: str) -> bool:
        """Forget the labels of an image that wait and that came from this source; return whether there was one."""
        if not self.is_open(digest):  # somebody decided about it
            return False
        names = [name for name in walk(self.root / HELD).files if name.startswith(f"{source}.") and _id(name) == digest]
        for name in names:
            delete(self.root / HELD / name)
        return bool(names)

    def label(self, digests: Sequence[str], decided: bool) -> None:
        """Show images no more, since they were labelled; a label that waits only if somebody who looked has decided."""
        waits = set() if decided else set(map(_id, self._stored().held))
        for digest in set(digests) - waits:
            if decided or self.is_open(digest):
                write_bytes(self._marker(digest), DECIDED if decided else b"")
        self._untidy = True

    def take_back(self, digest: str) -> None:
        """Show an image again, since its label was taken back; but not for a contradicting label that is gone."""
        delete(self._marker(digest))
        name = f"{LABELS}/{digest}{ENDING}"
        if (item := self._read(name)) and item.reason == "contradiction":
            delete(self.root / name)

    def is_open(self, digest: str) -> bool:
        """Return whether an image was not labelled yet."""
        return not exists(self._marker(digest))

    def _read(self, name: str) -> ReviewItem | None:
        try:
            item = ReviewItem.model_validate_json(read_bytes(self.root / name))
        except (FileNotFoundError, ValidationError):  # another service removed it; or it is nobody's
            return None
        return item if _id(name) == item.id else None

    def _trim(self) -> None:
        stored = self._stored()
        gone = [*list(stored.doubts.values())[self._size :], *list(stored.labels.values())[self._size :]]
        decided = [digest for digest, name in stored.labelled.items() if stored.sizes[name]]
        others = [digest for digest in stored.labelled if digest not in set(decided)]
        for digest in [*decided[MOST_LABELLED:], *others[MOST_LABELLED:]]:  # what it hid must not be shown again
            files = [stored.doubts.get(digest), stored.labels.get(digest), stored.labelled[digest]]
            gone += [name for name in files if name]
            gone += [name for name in stored.held if _id(name) == digest]
        for name in [*gone, *stored.expired]:
            delete(self.root / name)
        self._untidy = False

    def _marker(self, digest: str) -> UPath:
        return self.root / LABELLED / f"{digest}{ENDING}"

    def _stored(self) -> _Stored:
        """All files that count: of an image, and not too large."""
        found = _Stored({}, {}, {}, [], [], {})
        files = sorted(walk(self.root).files.items(), key=lambda file: (file[1].changed, file[0]), reverse=True)
        hour = _an_hour_before([entry.changed for path, entry in files if path.startswith(f"{CONTRADICTIONS}/")])
        for path, entry in files:
            folder, _, name = path.rpartition("/")
            if not name.endswith(ENDING) or not re.match(IMAGE_ID, _id(name)) or entry.size > MAX_ITEM_BYTES:
                continue
            found.sizes[path] = entry.size
            if folder == HELD:
                found.held.append(path)
            elif folder == CONTRADICTIONS:
                found.expired.extend([path] if entry.changed < hour else [])
            elif folder in ("", LABELS, LABELLED):
                {"": found.doubts, LABELS: found.labels, LABELLED: found.labelled}[folder][_id(name)] = path
        return found


def _an_hour_before(times: list[datetime]) -> datetime:
    """Return the time an hour before the latest one, by the clock of the storage that gave them.

    What a wrong clock dated later than now must not make the others old.
    """
    return min(max(times, default=datetime.now(UTC)), datetime.now(UTC)) - HOUR


def _kind(source: str, given: int, label: int, shape: tuple[int, ...]) -> str:
    """The beginning of the names of labels of one kind and source, of images of one shape."""
    return f"{source}.{given}-{label}-{'x'.join(map(str, shape))}."


def _kind_of(item: ReviewItem) -> str:
    return _kind(str(item.source), item.given if item.given is not None else -1, item.label, item.shape)


def _id(name: str) -> str:
    """The image that a file is about."""
    return name.rpartition("/")[2].removesuffix(ENDING).rpartition(".")[2]


def _name(item: ReviewItem) -> str:
    """The file of an item that does not wait, relative to the root."""
    name = f"{item.id}{ENDING}"
    return name if item.given is None else f"{LABELS}/{name}"
