"""The data sets that are known by name: their classes, their files, and where they come from."""

import string
from collections import Counter
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from mnist_pipeline.task.spec import MNIST, Pictures

if TYPE_CHECKING:
    import numpy as np

CAPITALS_THAT_LOOK_ALIKE = "cijklmopsuvwxyz"
"""The letters whose two cases are one class in EMNIST's merged sets (Cohen et al. 2017, EMNIST: an extension of MNIST
to handwritten letters)."""


class Known(NamedTuple):
    """A data set of four IDX files, as torchvision knows it too."""

    name: str
    class_names: tuple[str, ...]
    torchvision: str
    """The class in torchvision.datasets, which has the checksums, and names the folder that it downloads to."""
    mirrors: tuple[str, ...]
    """Base URLs, torchvision's; a test compares them, since importing torchvision takes seconds."""
    files: tuple[str, str, str, str]
    """Images and labels to train on, and to test with; each file may also be compressed, with .gz."""
    least_accuracy: float
    """The accuracy_threshold where none is set: what a plain network of this kind reaches easily, 0..1."""
    pictures: Pictures = "handwriting"
    archive: PurePosixPath | None = None
    """The one file to download, and the folder in it that has the four; None: they are downloaded one by one."""
    first_label: int = 0
    """The label of the first class in the files."""
    transposed: bool = False
    """The images lie on their side, mirrored."""


FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def _emnist(split: str, class_names: str, least_accuracy: float, first_label: int = 0) -> Known:
    train, images, labels = f"emnist-{split}-train", "images-idx3-ubyte", "labels-idx1-ubyte"
    test = f"emnist-{split}-test"
    return Known(
        name=f"emnist_{split}",
        class_names=tuple(class_names),
        torchvision="EMNIST",
        mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/",),
        files=(f"{train}-{images}", f"{train}-{labels}", f"{test}-{images}", f"{test}-{labels}"),
        least_accuracy=least_accuracy,
        archive=PurePosixPath("gzip.zip/gzip"),
        first_label=first_label,
        transposed=True,
    )


KNOWN = {
    known.name: known
    for known in (
        Known(
            MNIST.name,
            MNIST.class_names,
            "MNIST",
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            FILES,
            least_accuracy=0.95,
        ),
        Known(
            "fashion_mnist",
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            "FashionMNIST",
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            FILES,
            least_accuracy=0.85,
            pictures="cutouts",
        ),
        Known(
            "kmnist",
            ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            "KMNIST",
            ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
            FILES,
            least_accuracy=0.85,
        ),
        # The first label in the files of letters is 1; the 0 is torchvision's class "N/A".
        _emnist("letters", string.ascii_lowercase, least_accuracy=0.85, first_label=1),
        _emnist(
            "balanced",
            string.digits
            + string.ascii_uppercase
            + "".join(letter for letter in string.ascii_lowercase if letter not in CAPITALS_THAT_LOOK_ALIKE),
            least_accuracy=0.8,
        ),
    )
}
"""The data sets by their names."""


def least_accuracy(name: str, labels: "np.ndarray") -> float:
    """Return the accuracy (0..1) that a model of a data set must reach where no accuracy_threshold is set.

    Of a data set that is not known by name it is twice the share of the commonest class among the `labels` (N,) of the
    test images, or half of the way from there to 1 if that is less: more than guessing.
    """
    if known := KNOWN.get(name):
        return known.least_accuracy
    commonest = max(Counter(labels.tolist()).values()) / len(labels)
    return min(2 * commonest, (1 + commonest) / 2)
