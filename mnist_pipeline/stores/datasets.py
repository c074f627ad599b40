"""The images that versions were trained, chosen and tested on: kept once by content, so that a training can be
reproduced, and an earlier test set asked again.

    data/<content digest>/<writing>/<number>   images row by row, PART_BYTES in each, and last the labels, uint8
    data/<content digest>/index.json           names the writing, once all of it is there; compare-and-swap

A writing has a name of its own, so that what prune deletes is never what somebody writes at the same moment; the index
of images that were deleted stays, and says so.
"""

import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from mnist_pipeline.files.tensors import scratch
from mnist_pipeline.ml.data import class_counts, content_digest
from mnist_pipeline.ml.manifest import SplitRecord
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores.errors import CorruptModel, ObjectChanged, ObjectMissing, UnknownModel
from mnist_pipeline.stores.objects import DATA, ObjectStore, time_text
from mnist_pipeline.task.dataset import LabelledImages, no_images
from mnist_pipeline.task.spec import TaskSpec

INDEX = "index.json"

SPLITS = "splits.json"
"""The object in the folder of a sweep that names the splits of all its trials, as manifests do."""

SPLIT_RECORDS = TypeAdapter(dict[str, SplitRecord])

PART_BYTES = 32 << 20
"""The size of an object: what is larger than memory goes there and comes back in parts."""


class Index(BaseModel, frozen=True):
    """The description of a folder of `data/`."""

    shape: tuple[int, ...]
    """The images: uint8 (N, H, W) or (N, H, W, C)."""
    writing: str = ""
    """The name of the objects that hold them: a time, and a random number."""
    parts: int
    """The number of these objects; 0: they were deleted."""
    kept_at: datetime
    """The time when a version last asked for it to be kept, UTC."""


def keep_splits(store: ObjectStore, splits: Splits) -> dict[str, SplitRecord]:
    """Keep the splits in a store, each once by its content, and return what a manifest says about them."""
    kept = {}
    for name, part in splits.parts.items():
        digest = content_digest(part)
        _keep(store, digest, part)
        counts = class_counts(part.labels, splits.spec)
        size = part.images.nbytes + part.labels.nbytes
        kept[name] = SplitRecord(digest=digest, images=len(part.labels), class_counts=counts, bytes=size)
    return kept


def load_splits(store: ObjectStore, records: dict[str, SplitRecord], spec: TaskSpec) -> Splits:
    """Return the splits that `keep_splits` kept. Raises UnknownModel if one is gone, CorruptModel if it changed."""
    if missing := {"train", "validation", "test"} - records.keys():
        raise UnknownModel(
            f"its {', '.join(sorted(missing))} images were not kept: it was saved before splits were, or is damaged"
        )
    found = {name: load_images(store, record.digest or "") for name, record in records.items()}
    held_out = found.get("held_out", no_images(spec))
    return Splits(found["train"], found["validation"], found["test"], spec, held_out)


def load_images(store: ObjectStore, digest: str) -> LabelledImages:
    """Return images and labels by their content digest, verified.

    Raises UnknownModel if they are not kept, CorruptModel if they are not what was kept.
    """
    try:
        index = Index.model_validate_json(store.read_object(f"{DATA}{digest}/{INDEX}")[0])
        if not index.parts:
            raise ObjectMissing(INDEX)
        if math.prod(index.shape) > index.parts * PART_BYTES:  # before room is made for them
            raise ValueError(f"the shape {index.shape} does not fit into {index.parts} objects")
        images = scratch(index.shape)
        content, position = images.reshape(-1), 0
        for part in range(index.parts - 1):
            data = np.frombuffer(store.read_object(_key(digest, index.writing, part))[0], np.uint8)
            content[position : position + len(data)] = data
            position += len(data)
        labels = np.frombuffer(store.read_object(_key(digest, index.writing, index.parts - 1))[0], np.uint8)
    except ObjectMissing:
        raise UnknownModel(f"the images of digest {digest[:16]} are not kept in {store.address}") from None
    except (ValidationError, ValueError) as error:
        raise CorruptModel(f"the images of digest {digest[:16]} are damaged: {error}") from error
    found = LabelledImages(images, labels)
    if content_digest(found) != digest:
        raise CorruptModel(f"the images of digest {digest[:16]} in {store.address} are not those that were kept")
    return found


def copy_images(source: ObjectStore, target: ObjectStore, digest: str) -> None:
    """Keep images of one store in another one, too. Raises what `load_images` raises."""
    _keep(target, digest, load_images(source, digest))


def digests_of(records: dict[str, SplitRecord]) -> set[str]:
    """Return the content digests that a manifest or a sweep names."""
    return {record.digest for record in records.values() if record.digest}


def kept_data(store: ObjectStore) -> dict[str, list[str]]:
    """Return the keys below `data/` by their digests."""
    found: dict[str, list[str]] = {}
    for key in store.list_objects(DATA):
        found.setdefault(key.split("/")[1], []).append(key)
    return found


def delete_unused(store: ObjectStore, used: Callable[[], set[str]], before: datetime) -> list[str]:
    """Delete the images that no version needs any more, if none asked for them since `before` (UTC).

    What killed writers left before then goes, too. Returns the digests of what was deleted. `used` returns the digests
    that versions need; it is called after the listing, so that what is kept meanwhile is not listed.
    """
    listed = kept_data(store)
    needed = used() if listed else set()
    deleted = []
    for digest, keys in sorted(listed.items()):
        index, token = _found(store, digest)
        if index is None and digest in needed:
            continue  # damaged, or of other code
        if index and index.parts and digest not in needed and index.kept_at < before:
            gone = index.model_copy(update={"parts": 0})
            try:  # whoever reads the index from here on writes anew; whoever has read it before finds it changed
                store._replace(f"{DATA}{digest}/{INDEX}", gone.model_dump_json().encode(), token or "")
            except ObjectChanged:
                continue  # a version has just asked for them
            index = gone
            deleted.append(digest)
        current = index.writing if index and index.parts else None
        for key in keys:
            writing = key.split("/")[2]
            left = writing != current and writing < time_text(before)  # by a killed writer
            if writing != INDEX and (left or (index and not index.parts and writing == index.writing)):
                store.delete_object(key)
    return deleted


def _keep(store: ObjectStore, digest: str, part: LabelledImages) -> None:
    written: Index | None = None
    while True:
        key, now = f"{DATA}{digest}/{INDEX}", datetime.now(UTC)
        found, token = _found(store, digest)
        if found and found.parts and len(list(store.list_objects(f"{DATA}{digest}/{found.writing}/"))) == found.parts:
            index = found.model_copy(update={"kept_at": now})  # prune sees that it is needed now
        else:
            written = written or _written(store, digest, part)
            index = written.model_copy(update={"kept_at": now})
        with suppress(ObjectChanged):  # by another writer, or by prune: look again
            if token is None:
                store._create(key, index.model_dump_json().encode())
            else:
                store._replace(key, index.model_dump_json().encode(), token)
            return


def _written(store: ObjectStore, digest: str, part: LabelledImages) -> Index:
    """Write the images under a new name, and return the index that will name it."""
    now = datetime.now(UTC)
    writing, parts = f"{time_text(now)}-{uuid.uuid4().hex[:8]}", 0
    for content in _parts(part):
        store._create(_key(digest, writing, parts), content)
        parts += 1
    return Index(shape=part.images.shape, writing=writing, parts=parts, kept_at=now)


def _found(store: ObjectStore, digest: str) -> tuple[Index | None, str | None]:
    """The index, None where it is missing or damaged, and the token of the object, None where there is none."""
    index, token = None, None
    with suppress(ObjectMissing):
        data, token = store.read_object(f"{DATA}{digest}/{INDEX}")
        with suppress(ValidationError):
            index = Index.model_validate_json(data)
    return index, token


def _parts(part: LabelledImages) -> Iterator[bytes]:
    """The images row by row, in objects of about PART_BYTES, and last the labels."""
    rows = max(1, PART_BYTES // max(1, part.images[:1].nbytes))
    for start in range(0, len(part.images), rows):
        yield np.ascontiguousarray(part.images[start : start + rows]).tobytes()
    yield np.ascontiguousarray(part.labels).tobytes()


def _key(digest: str, writing: str, number: int) -> str:
    return f"{DATA}{digest}/{writing}/{number}"
