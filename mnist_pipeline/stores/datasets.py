"""The images that versions were trained, chosen and tested on: kept once by content, so that a training can be
reproduced, and an earlier test set asked again.

    data/<content digest>/<number>     images row by row, PART_BYTES in each, and last the labels, uint8
    data/<content digest>/index.json   says how many, once all are there
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from mnist_pipeline.files.tensors import scratch
from mnist_pipeline.ml.data import class_counts, content_digest
from mnist_pipeline.ml.manifest import SplitRecord
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores.errors import CorruptModel, ObjectMissing, UnknownModel
from mnist_pipeline.stores.objects import DATA, ObjectStore
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
    parts: int
    """Objects beside this one; 0: they are being written."""
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
        index = _index(store, digest)
        if not index.parts:
            raise ObjectMissing(INDEX)
        images = scratch(index.shape)
        content, position = images.reshape(-1), 0
        for part in range(index.parts - 1):
            data = np.frombuffer(store.read_object(_key(digest, str(part)))[0], np.uint8)
            content[position : position + len(data)] = data
            position += len(data)
        labels = np.frombuffer(store.read_object(_key(digest, str(index.parts - 1)))[0], np.uint8)
    except ObjectMissing:
        raise UnknownModel(f"the images of digest {digest[:16]} are not kept in {store.address}") from None
    except (ValidationError, ValueError) as error:
        raise CorruptModel(f"the images of digest {digest[:16]} are damaged: {error}") from error
    found = LabelledImages(images, labels)
    if content_digest(found) != digest:
        raise CorruptModel(f"the images of digest {digest[:16]} in {store.address} are not those that were kept")
    return found


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

    Returns their digests. `used` returns the digests that versions need; it is called after the listing, so that what
    is kept meanwhile is not listed.
    """
    listed = kept_data(store)
    needed = used() if listed else set()
    deleted = []
    for digest in sorted(listed.keys() - needed):
        try:
            if _index(store, digest).kept_at >= before:
                continue
        except (ObjectMissing, ValidationError):
            pass  # a killed deletion left them, or they are damaged
        store.delete_object(_key(digest, INDEX))  # first, so that what is torn does not count as kept
        for key in listed[digest]:
            store.delete_object(key)
        deleted.append(digest)
    return deleted


def _keep(store: ObjectStore, digest: str, part: LabelledImages) -> None:
    shape = part.images.shape
    try:
        parts = _index(store, digest).parts
    except (ObjectMissing, ValidationError):
        parts = 0
    if not parts:
        _write_index(store, digest, shape, 0)  # tells prune that somebody is at it
        for content in _parts(part):
            store.put(_key(digest, str(parts)), content)
            parts += 1
    _write_index(store, digest, shape, parts)  # also where it was there: prune sees that it is needed now


def _write_index(store: ObjectStore, digest: str, shape: tuple[int, ...], parts: int) -> None:
    index = Index(shape=shape, parts=parts, kept_at=datetime.now(UTC))
    store.put(_key(digest, INDEX), index.model_dump_json().encode())


def _index(store: ObjectStore, digest: str) -> Index:
    return Index.model_validate_json(store.read_object(_key(digest, INDEX))[0])


def _parts(part: LabelledImages) -> Iterator[bytes]:
    """The images row by row, in objects of about PART_BYTES, and last the labels."""
    rows = max(1, PART_BYTES // max(1, part.images[:1].nbytes))
    for start in range(0, len(part.images), rows):
        yield np.ascontiguousarray(part.images[start : start + rows]).tobytes()
    yield np.ascontiguousarray(part.labels).tobytes()


def _key(digest: str, name: str) -> str:
    return f"{DATA}{digest}/{name}"
