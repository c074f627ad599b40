"""The task as data that travels with data sets and models: the classes, and the shape of the images."""

import hashlib
import re
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, Field, FiniteFloat, model_validator

from mnist_pipeline.files.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from mnist_pipeline.files.arrays import StoredArray

MAX_CLASSES = 256
"""Labels are uint8."""

MAX_SIDE = 4096
FOLDER_NAME = re.compile(r"(?![.\s])[^/\x00-\x1f]{1,100}")


class TaskSpec(BaseModel, frozen=True, extra="forbid"):
    """The classes, the shape of an image, and the constants that scale it."""

    class_names: tuple[str, ...] = Field(
        min_length=2, max_length=MAX_CLASSES, description="What each label stands for, in the order of the labels."
    )
    image_shape: tuple[int, int, int] = Field(description="Height and width in pixels, and channels: 1 or 3.")
    mean: tuple[FiniteFloat, ...] = Field(description="Of each channel over the training images, with 255 as 1.")
    std: tuple[FiniteFloat, ...] = Field(description="Standard deviation of each channel, with 255 as 1.")

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """The shape of one image as a uint8 array: (H, W) if it is grey, (H, W, 3) in colour."""
        height, width, channels = self.image_shape
        return (height, width) if channels == 1 else (height, width, channels)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        *sides, channels = self.image_shape
        if not 1 <= min(sides) <= max(sides) <= MAX_SIDE or channels not in (1, 3):
            raise ValueError(
                f"image_shape {self.image_shape} must be (height, width, channels), 1..{MAX_SIDE}, with 1 or 3 channels"
            )
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need {channels} numbers each, one a channel, and std is above 0")
        if len(set(self.class_names)) != self.classes:
            raise ValueError("each class needs a name of its own")
        if wrong := [name for name in self.class_names if not FOLDER_NAME.fullmatch(name)]:
            raise ValueError(
                f"{wrong} cannot name the folders of labelled images: no '/', no dot in front, 1..100 long"
            )
        return self

    def require_images(self, images: "np.ndarray | StoredArray", name: str = "") -> None:
        """Raise DataError, with `name`, if `images` are not uint8 (N, *array_shape)."""
        if images.dtype != "uint8" or images.shape[1:] != self.array_shape:
            expected = ", ".join(map(str, ("N", *self.array_shape)))
            raise DataError(f"{name}images must be uint8 ({expected}), not {images.dtype} {images.shape}")

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the spec."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


TASK = TaskSpec(class_names=tuple("0123456789"), image_shape=(28, 28, 1), mean=(0.1307,), std=(0.3081,))
"""Handwritten digits as in MNIST; mean and standard deviation are those of its 60,000 training images.

Data sets and versions that were stored before a spec was stored with them are of this task.
"""
