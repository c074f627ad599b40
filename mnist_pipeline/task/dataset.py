"""Labelled images as arrays, and what they must look like."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:  # numpy is needed by those who make or read arrays, not by those who only pass them on
    import numpy as np


Source = Literal["auto", "directory", "download", "sample"]
"""The names of the sources of raw data; `auto` is the first of the others that works."""


class LabelledImages(NamedTuple):
    """Images and what they show."""

    images: "np.ndarray"
    """uint8 (N, H, W), in colour (N, H, W, 3), 0..255."""
    labels: "np.ndarray"
    """uint8 (N,), counted from 0."""


class Dataset(NamedTuple):
    """A raw data set, untouched."""

    train: LabelledImages
    test: LabelledImages
    description: str
    """The source, in words."""
    is_sample: bool
    """True where a small part stands in for the full data set."""
    spec: TaskSpec


def validate(dataset: LabelledImages, name: str, spec: TaskSpec) -> LabelledImages:
    """Return `dataset` unchanged if it has images, all of the shape of `spec`, and a label of `spec` for each.

    Raises DataError, with `name` and what was expected, otherwise.
    """
    import numpy as np

    images, labels = dataset
    spec.require_images(images, f"{name}: ")
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise DataError(f"{name}: {len(images)} images need as many uint8 labels, not {labels.dtype} {labels.shape}")
    if not len(images):
        raise DataError(f"{name}: there is no image")
    if labels.max() >= spec.classes:
        raise DataError(f"{name}: labels must be in 0..{spec.classes - 1}, but {labels.max()} occurs")
    return dataset


def no_images(spec: TaskSpec) -> LabelledImages:
    """Return an empty set of the right shape."""
    import numpy as np

    return LabelledImages(np.empty((0, *spec.array_shape), np.uint8), np.empty(0, np.uint8))
