"""Splitting, joining and fingerprinting of images held as uint8 arrays."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.tensors import scratch
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import SplitSettings
from mnist_pipeline.task.dataset import Dataset, LabelledImages, no_images
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.spec import TaskSpec

PART = 1024
"""Images that are copied at a time."""


def content_digest(*datasets: LabelledImages) -> str:
    """Return the SHA-256 (hex) of shapes and bytes: equal for equal content, wherever it came from."""
    sha = hashlib.sha256()
    for dataset in datasets:
        for array in dataset:
            sha.update(f"{array.dtype}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


SPEC_OF_BEFORE = "82eedd141c847329"
"""The beginning of the digest of the spec of all data that was versioned before specs were."""


def data_version(spec: TaskSpec, *datasets: LabelledImages) -> str:
    """Return a digest (hex) of images, labels and spec: other classes or another scale are other data."""
    digest = content_digest(*datasets)
    if spec.digest().startswith(SPEC_OF_BEFORE):
        return digest
    return hashlib.sha256(f"{digest}{spec.digest()}".encode()).hexdigest()


def evenly(count: int, most: int) -> np.ndarray:
    """Return rising positions among `count` things: all, or of more than `most` so many at equal distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def class_counts(labels: np.ndarray, spec: TaskSpec) -> list[int]:
    """Count how often each label of `spec` occurs."""
    return np.bincount(labels, minlength=spec.classes).tolist()


def split(dataset: Dataset, labelled: LabelledImages, settings: SplitSettings) -> Splits:
    """Divide the training images into stratified splits; `labelled` joins training, but for what is held out of it.

    A labelled image that is a training image already gives that one its label, and does not join; nor does one that is
    a test image, whatever its label.
    Raises DataError if a class has too few images to be in both splits.
    """
    from sklearn.model_selection import train_test_split  # a second that no other step has to spend

    from mnist_pipeline.ml.holding_out import held_out

    images, labels = dataset.train
    counts = class_counts(labels, dataset.spec)
    present = [count for count in counts if count]
    if min(present, default=0) < 2:
        few = [name for name, count in zip(dataset.spec.class_names, counts, strict=True) if count == 1]
        raise DataError(f"each class needs at least 2 training images to be split: {', '.join(few)} has fewer")
    held = math.ceil(settings.validation_fraction * len(labels))
    if min(held, len(labels) - held) < len(present):
        raise DataError(
            f"validation_fraction {settings.validation_fraction:g} of {len(labels)} training images leaves fewer than "
            f"one of each of {len(present)} classes on one side: set it nearer to 0.5, or add images"
        )
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=settings.validation_fraction, random_state=settings.seed, stratify=labels
    )
    # Only now: which image is in which split must not depend on it.
    labels, known = relabelled(dataset.train, labelled)
    known |= among(dataset.test, labelled)
    held = held_out(labelled.images, settings) & ~known
    more = LabelledImages(labelled.images[~held & ~known], labelled.labels[~held & ~known])
    return Splits(
        train=LabelledImages(_chosen(images, train, more.images), np.concatenate([labels[train], more.labels])),
        validation=LabelledImages(_chosen(images, validation, images[:0]), labels[validation]),
        test=dataset.test,
        spec=dataset.spec,
        held_out=LabelledImages(labelled.images[held], labelled.labels[held]),
    )


def relabelled(train: LabelledImages, labelled: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of training images, uint8 (N,), some as people gave them to the same images later.

    Also returns bool (M,): which of the labelled images are among the training images.
    """
    labels = train.labels.copy()
    if not len(labelled.labels):
        return labels, np.zeros(0, bool)
    given = [_digest(image) for image in labelled.images]
    later, known = dict(zip(given, labelled.labels.tolist(), strict=True)), set()
    for position, image in enumerate(train.images):
        if (digest := _digest(image)) in later:
            labels[position] = later[digest]
            known.add(digest)
    return labels, np.array([digest in known for digest in given])


def _chosen(images: np.ndarray, positions: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The images at the positions, and then some more, also of those that are larger than memory."""
    found = scratch((len(positions) + len(more), *images.shape[1:]))
    for start in range(0, len(positions), PART):
        part = positions[start : start + PART]
        found[start : start + len(part)] = images[part]
    found[len(positions) :] = more
    return found


def among(a: LabelledImages, b: LabelledImages) -> np.ndarray:
    """Return bool (N,): which images of `b` stand, byte for byte, in `a` too."""
    if not len(b.labels):
        return np.zeros(0, bool)
    known = set(map(_digest, a.images))
    return np.array([_digest(image) in known for image in b.images])


def shared_images(a: LabelledImages, b: LabelledImages) -> int:
    """Count the images of `b` that stand, byte for byte, in `a` too."""
    return int(among(a, b).sum())


def missing_images(whole: LabelledImages, parts: Sequence[LabelledImages]) -> int:
    """Count the labelled images of `whole`, with repetition, that stand in none of `parts`."""
    wanted = Counter(_labelled(whole))
    wanted.subtract(key for part in parts for key in _labelled(part))
    return sum(count for count in wanted.values() if count > 0)


def _labelled(dataset: LabelledImages) -> Iterator[bytes]:
    return (_digest(image) + bytes([label]) for image, label in zip(*dataset, strict=True))


def _digest(image: np.ndarray) -> bytes:
    """Return 16 bytes that stand for an image: there is memory for those of millions of images."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def to_arrays(value: Dataset | Splits) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return a data set as named arrays and named texts, the two things that a safetensors file holds."""
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    for field, content in value._asdict().items():
        if isinstance(content, LabelledImages):
            arrays |= {f"{field}.{part}": np.ascontiguousarray(array) for part, array in content._asdict().items()}
        elif field != "skipped":  # that is told once, when the data set is read
            texts[field] = content.model_dump_json() if isinstance(content, TaskSpec) else str(content)
    return arrays, texts


def splits_from_arrays(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> Splits:
    """Invert `to_arrays` for Splits."""
    train, validation, test = (_part(arrays, name) for name in ("train", "validation", "test"))
    spec = _spec(texts)
    # Files from before there was such a split have none.
    held_out = _part(arrays, "held_out") if "held_out.images" in arrays else no_images(spec)
    return Splits(train, validation, test, spec, held_out)


def dataset_from_arrays(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> Dataset:
    """Invert `to_arrays` for a Dataset."""
    return Dataset(
        train=_part(arrays, "train"),
        test=_part(arrays, "test"),
        description=texts["description"],
        is_sample=texts["is_sample"] == str(True),
        spec=_spec(texts),
    )


def _part(arrays: Mapping[str, np.ndarray], name: str) -> LabelledImages:
    return LabelledImages(arrays[f"{name}.images"], arrays[f"{name}.labels"])


def _spec(texts: Mapping[str, str]) -> TaskSpec:
    """Read the spec; files from before it was stored with the images are of the default task."""
    return TaskSpec.model_validate_json(texts["spec"]) if "spec" in texts else MNIST
