"""The parts of EMNIST: handwritten letters and digits (Cohen et al. 2017, an extension of MNIST)."""

from pathlib import PurePosixPath

from mnist_pipeline.task.known import Known


def part(split: str, class_names: str, least_accuracy: float, first_label: int = 0) -> Known:
    """Return a split of the one archive that all are in."""
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    (train_images, train_labels), (test_images, test_labels) = (
        [f"emnist-{split}-{use}-{kind}" for kind in kinds] for use in ("train", "test")
    )
    return Known(
        class_names=tuple(class_names),
        torchvision="EMNIST",
        mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/",),
        least_accuracy=least_accuracy,
        files=(train_images, train_labels, test_images, test_labels),
        archive=PurePosixPath("gzip.zip/gzip"),
        first_label=first_label,
        transposed=True,
    )
