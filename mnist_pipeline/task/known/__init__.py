"""The data sets that are known by name, a file each: their classes, their files, and where they come from.

A file `my_data.py` has a constant `DATA_SET`. It is found by its name; nothing else has to be changed. Files with an
underscore in front are no data sets.
"""

import pkgutil
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from mnist_pipeline.task.spec import Pictures, TaskSpec

if TYPE_CHECKING:
    import numpy as np

    from mnist_pipeline.task.dataset import Dataset

FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


class Known(NamedTuple):
    """A data set of four IDX files."""

    class_names: tuple[str, ...]
    least_accuracy: float
    """The accuracy_threshold where none is set: what a plain network of this kind reaches easily, 0..1."""
    torchvision: str = ""
    """The class in torchvision.datasets, which has the checksums, and names the folder that it downloads to; without it
    nothing is downloaded."""
    mirrors: tuple[str, ...] = ()
    """Base URLs, torchvision's; a test compares them, since importing torchvision takes seconds."""
    files: tuple[str, str, str, str] = FILES
    """Images and labels to train on, and to test with; each file may also be compressed, with .gz."""
    image_shape: tuple[int, int, int] = (28, 28, 1)
    """Height and width in pixels, and channels."""
    pictures: Pictures = "handwriting"
    archive: PurePosixPath | None = None
    """The one file to download, and the folder in it that has the four; None: they are downloaded one by one."""
    first_label: int = 0
    """The label of the first class in the files."""
    transposed: bool = False
    """The images lie on their side, mirrored."""
    spec: TaskSpec | None = None
    """The spec with the scale that everybody uses; None: the scale is computed from the training images."""
    sample: "Callable[[str], Dataset] | None" = None
    """The maker of a small part that needs no file and no network; it is told why that stands in for the data set."""
    name: str = ""
    """The name of the file, filled in by `known`."""


def known_names() -> list[str]:
    """Return the names of the data sets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def known(name: str) -> Known:
    """Return the data set of that name. Raises KeyError if there is none."""
    if name not in known_names():
        raise KeyError(name)
    found: Known = import_module(f"{__name__}.{name}").DATA_SET
    return found._replace(name=name)


def least_accuracy(name: str, labels: "np.ndarray") -> float:
    """Return the accuracy (0..1) that a model of a data set must reach where no accuracy_threshold is set.

    Of a data set that is not known by name it is twice the share of the commonest class among the `labels` (N,) of the
    test images, or half of the way from there to 1 if that is less: more than guessing.
    """
    if name in known_names():
        return known(name).least_accuracy
    commonest = max(Counter(labels.tolist()).values()) / len(labels)
    return min(2 * commonest, (1 + commonest) / 2)
