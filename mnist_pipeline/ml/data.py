"""Splitting, joining and fingerprinting of images held as uint8 arrays."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mnist_pipeline.ml.records import Dataset, LabelledImages, Splits
from mnist_pipeline.ml.settings import CLASSES, SIDE, SplitSettings


class DataError(ValueError):
    """The data is not what it must be; the message says what was expected."""


def content_digest(*datasets: LabelledImages) -> str:
    """SHA-256 (hex) of shapes and bytes: equal for equal content, wherever it came from."""
    sha = hashlib.sha256()
    for dataset in datasets:
        for array in dataset:
            sha.update(f"{array.dtype}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def class_counts(labels: np.ndarray) -> list[int]:
    """How often each of the ten labels occurs."""
    return np.bincount(labels, minlength=CLASSES).tolist()


def validate(dataset: LabelledImages, name: str) -> LabelledImages:
    """Return `dataset` unchanged, or raise DataError if it is not uint8 (N, 28, 28) with N labels 0..9, N > 0."""
    images, labels = dataset
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{name}: images must be uint8 (N, {SIDE}, {SIDE}), not {images.dtype} {images.shape}")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise DataError(f"{name}: {len(images)} images need as many uint8 labels, not {labels.dtype} {labels.shape}")
    if not len(images):
        raise DataError(f"{name}: there is no image")
    if labels.max() >= CLASSES:
        raise DataError(f"{name}: labels must be in 0..{CLASSES - 1}, but {labels.max()} occurs")
    return dataset


def split(dataset: Dataset, extra_train: LabelledImages, settings: SplitSettings) -> Splits:
    """Stratified train and validation splits; `extra_train` joins the training split only.

    Raises DataError if a class has too few images to be in both splits.
    """
    from sklearn.model_selection import train_test_split  # a second that no other step has to spend

    images, labels = dataset.train
    counts = np.bincount(labels, minlength=CLASSES)
    if (present := counts[counts > 0]).min(initial=len(labels)) < 2 or len(labels) < 2 * len(present):
        raise DataError(
            f"each class needs at least 2 training images to be split, but the counts are {counts.tolist()}"
        )
    train, validation = train_test_split(
        np.arange(len(labels)), test_size=settings.validation_fraction, random_state=settings.seed, stratify=labels
    )
    return Splits(
        train=LabelledImages(
            np.concatenate([images[train], extra_train.images]), np.concatenate([labels[train], extra_train.labels])
        ),
        validation=LabelledImages(images[validation], labels[validation]),
        test=dataset.test,
    )


def no_images() -> LabelledImages:
    """An empty set of the right shape."""
    return LabelledImages(np.empty((0, SIDE, SIDE), np.uint8), np.empty(0, np.uint8))


def shared_images(a: LabelledImages, b: LabelledImages) -> int:
    """How many images of `b` stand, byte for byte, in `a` too."""
    known = {image.tobytes() for image in a.images}
    return sum(image.tobytes() in known for image in b.images)


def missing_images(whole: LabelledImages, parts: Sequence[LabelledImages]) -> int:
    """How many labelled images of `whole`, counted with repetition, stand in none of `parts`."""
    wanted, found = Counter(_labelled_bytes(whole)), Counter(key for part in parts for key in _labelled_bytes(part))
    return (wanted - found).total()


def _labelled_bytes(dataset: LabelledImages) -> Iterator[tuple[bytes, int]]:
    return ((image.tobytes(), int(label)) for image, label in zip(*dataset, strict=True))


def to_arrays(value: Dataset | Splits) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A data set as named arrays and named words, the two things that a safetensors file holds."""
    arrays: dict[str, np.ndarray] = {}
    words: dict[str, str] = {}
    for field, content in value._asdict().items():
        if isinstance(content, LabelledImages):
            arrays |= {f"{field}.{part}": np.ascontiguousarray(array) for part, array in content._asdict().items()}
        else:
            words[field] = str(content)
    return arrays, words


def splits_from_arrays(arrays: Mapping[str, np.ndarray]) -> Splits:
    """The inverse of `to_arrays` for Splits."""
    return Splits(*(_labelled(arrays, name) for name in Splits._fields))


def dataset_from_arrays(arrays: Mapping[str, np.ndarray], words: Mapping[str, str]) -> Dataset:
    """The inverse of `to_arrays` for a Dataset."""
    return Dataset(
        train=_labelled(arrays, "train"),
        test=_labelled(arrays, "test"),
        description=words["description"],
        is_sample=words["is_sample"] == str(True),
    )


def _labelled(arrays: Mapping[str, np.ndarray], name: str) -> LabelledImages:
    return LabelledImages(arrays[f"{name}.images"], arrays[f"{name}.labels"])
