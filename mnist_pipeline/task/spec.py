"""The task as data that travels with data sets and models: its name, the classes, and what the images are like."""

import hashlib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer, model_validator

from mnist_pipeline.files.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from mnist_pipeline.files.arrays import StoredArray

MAX_CLASSES = 256
"""Labels are uint8."""

MAX_SIDE = 4096
MAX_NAME = 100
DEFAULT_TASK = "mnist"
"""The task whose name is left out where it is written: there was no other one before."""

TASK_NAME = r"^[a-z][a-z0-9_]{0,60}$"

Pictures = Literal["handwriting", "cutouts", "photos"]
"""The kinds of pictures, which decide how one is prepared, what is drawn from it at random, and what drift watches:

- handwriting: strokes on paper, light or dark; only the ink counts
- cutouts: a thing on an even background, light or dark; only the thing counts
- photos: all of the picture counts
"""


class TaskSpec(BaseModel, frozen=True, extra="forbid"):
    """The name of a task, its classes, the shape of an image, and the constants that scale it."""

    name: str = Field(DEFAULT_TASK, pattern=TASK_NAME, description="The data set; models of another one are refused.")
    pictures: Pictures = Field("handwriting", description="The kind of pictures, which decides how one is prepared.")
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

    @model_validator(mode="before")
    @classmethod
    def _from_before(cls, content: Any) -> Any:
        """Specs of before did not tell the kind of pictures: grey ones were of handwriting."""
        if isinstance(content, dict) and "pictures" not in content and list(content.get("image_shape", ()))[2:] == [3]:
            return content | {"pictures": "photos"}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        *sides, channels = self.image_shape
        if not 1 <= min(sides) <= max(sides) <= MAX_SIDE or channels not in (1, 3):
            raise ValueError(
                f"image_shape {self.image_shape} must be (height, width, channels), 1..{MAX_SIDE}, with 1 or 3 channels"
            )
        if not len(self.mean) == len(self.std) == channels or min(self.std) <= 0:
            raise ValueError(f"mean and std need {channels} numbers each, one a channel, and std is above 0")
        if self.pictures != "photos" and channels != 1:
            raise ValueError(f"images of {self.pictures} are grey, with 1 channel")
        if len(set(self.class_names)) != self.classes:
            raise ValueError("each class needs a name of its own")
        if wrong := [name for name in self.class_names if not _is_name(name)]:
            raise ValueError(
                f"{wrong} cannot name classes: 1..{MAX_NAME} characters, no space at an end, no control characters"
            )
        taken: dict[str, str] = {}
        for name, folder in zip(self.class_names, self.class_folders, strict=True):
            if not folder:
                raise ValueError(f"the class {name!r} has no letter or figure that could name its folder")
            if folder in taken:
                raise ValueError(f"the classes {taken[folder]!r} and {name!r} would share the folder {folder!r}")
            taken[folder] = name
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a spec of before did not have and has not now: its digest stays, and its readers can read."""
        default = {"name": DEFAULT_TASK, "pictures": "handwriting" if self.image_shape[2] == 1 else "photos"}
        return {key: value for key, value in write(self).items() if value != default.get(key)}

    @cached_property
    def class_folders(self) -> tuple[str, ...]:
        """The names of the folders and object keys of the classes, in the order of the labels: `t-shirt_top`.

        They are in lower case, since some file systems do not tell cases apart: `upper_a` is the folder of `A`, and `a`
        that of `a`. They do not depend on what other classes there are.
        """
        return tuple(_slug(name) for name in self.class_names)

    @cached_property
    def known_folders(self) -> dict[str, int]:
        """The label by the name of a folder: the names of `class_folders`, and of the classes as they are."""
        known = {name: label for label, name in enumerate(self.class_names) if "/" not in name}
        return known | {folder: label for label, folder in enumerate(self.class_folders)}

    def require_images(self, images: "np.ndarray | StoredArray", name: str = "") -> None:
        """Raise DataError, with `name`, if `images` are not uint8 (N, *array_shape)."""
        if images.dtype != "uint8" or images.shape[1:] != self.array_shape:
            expected = ", ".join(map(str, ("N", *self.array_shape)))
            raise DataError(f"{name}images must be uint8 ({expected}), not {images.dtype} {images.shape}")

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the spec."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()


def _slug(name: str) -> str:
    slug = re.sub(r"[^\w.-]+", "_", name.lower()).strip("._")
    return f"upper_{slug}" if slug and name.isupper() else slug
