"""Labelled images as arrays, what they must look like, and the settings that name a data set."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.folders import Links
from mnist_pipeline.task.known import known_names
from mnist_pipeline.task.settings import Settings
from mnist_pipeline.task.spec import MAX_SIDE, TASK_NAME, Pictures, TaskSpec

if TYPE_CHECKING:  # numpy is needed by those who make or read arrays, not by those who only pass them on
    import numpy as np


Source = Literal["auto", "directory", "download", "sample"]
"""The names of the sources of raw data; `auto` is the first of the others that works."""

DEFAULT_DATASET = "mnist"
"""The one data set of before there were others: what is of it lies in no folder of its own."""


def dataset_names() -> list[str]:
    """Return the data sets that are known by name, and `folder`: one folder of image files a class."""
    return [*known_names(), "folder"]


class DatasetSettings(Settings):
    """The data set, where it comes from, and, of a folder of image files, what they are."""

    dataset: str = Field(DEFAULT_DATASET, description="A data set by its name, or `folder`: image files of your own.")
    source: Source = Field("auto", description="Of a data set with a name: the kind of its source.")
    directory: str = Field("", description="The folder of its files; downloads go there too.")
    name: str | None = Field(
        None, pattern=TASK_NAME, description="Only with `folder`: the name of the task; else the folder's."
    )
    image_size: tuple[int, int] | None = Field(
        None, description="Only with `folder`: height and width; else found from the files."
    )
    image_channels: Literal[1, 3] | None = Field(
        None, description="Only with `folder`: 1 grey, 3 colour; else found from the files."
    )
    pictures: Pictures | None = Field(None, description="Only with `folder`: the kind of pictures; else photos.")
    links: Links = Field("inside", description="Of a folder: links that are followed, as in watched folders.")

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in dataset_names():
            raise ValueError(f"dataset must be one of {', '.join(dataset_names())}, not {value!r}")
        return value

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.dataset != "folder":
            for field in ("name", "image_size", "image_channels", "pictures"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field} has an effect only with the data set 'folder', not {self.dataset!r}")
        elif self.source != "auto":
            raise ValueError(f"the source {self.source!r} has no effect with the data set 'folder': leave it out")
        if self.image_channels == 3 and self.pictures in ("handwriting", "cutouts"):
            raise ValueError(f"image_channels must be 1 for {self.pictures}, which are grey")
        if self.image_size and not 1 <= min(self.image_size) <= max(self.image_size) <= MAX_SIDE:
            raise ValueError(f"image_size must be in 1..{MAX_SIDE}, not {self.image_size}")
        return self


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
    skipped: Mapping[str, str] = {}
    """The name of each file that was left out, and why."""


def task_name(directory: Path) -> str:
    """Return the name of the task of a folder of image files: the folder's, in lower case, with underscores.

    Raises DataError for a name that begins with no letter.
    """
    name = re.sub(r"[^a-z0-9]+", "_", directory.name.lower()).strip("_")
    if not re.fullmatch(TASK_NAME, name):
        raise DataError(f"the name of the folder {directory} gives no name to the task: set DATASET_NAME ({TASK_NAME})")
    return name


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


def scale(images: "np.ndarray") -> "tuple[tuple[float, ...], tuple[float, ...]]":
    """Return mean and standard deviation of each channel of uint8 images (N, H, W) or (N, H, W, C), with 255 as 1.

    They are rounded to four decimal places, and a standard deviation is at least 0.0001.
    """
    import numpy as np

    values = np.arange(256) / 255
    channels = [images] if images.ndim == 3 else [images[..., channel] for channel in range(images.shape[-1])]
    means, deviations = [], []
    for channel in channels:
        counts = np.zeros(256, np.int64)
        for image in channel:  # exact, and in constant memory
            counts += np.bincount(image.ravel(), minlength=256)
        mean = float(counts @ values / counts.sum())
        means.append(round(mean, 4))
        deviations.append(max(round(float((counts @ (values - mean) ** 2 / counts.sum()) ** 0.5), 4), 0.0001))
    return tuple(means), tuple(deviations)


def no_images(spec: TaskSpec) -> LabelledImages:
    """Return an empty set of the right shape."""
    import numpy as np

    return LabelledImages(np.empty((0, *spec.array_shape), np.uint8), np.empty(0, np.uint8))
