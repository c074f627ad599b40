"""Real images of the task, and files as a user has them."""

from functools import cache
from pathlib import Path

from mnist_pipeline.task.dataset import Dataset
from mnist_pipeline.task.known.mnist import MNIST, load_sample
from mnist_pipeline_tests.task.shapes import idx

SPEC = MNIST
"""The task of these images."""


@cache
def embedded_images() -> Dataset:
    """The sample that needs no file and no network."""
    return load_sample("tests")


def write_files(folder: Path, dataset: Dataset) -> None:
    """Write a data set as the files that DATASET_DIR may name: four plain IDX files."""
    for name, part in (("train", dataset.train), ("t10k", dataset.test)):
        for kind, array in (("images-idx3", part.images), ("labels-idx1", part.labels)):
            (folder / f"{name}-{kind}-ubyte").write_bytes(idx(array))


def variables_of(folder: Path | str) -> dict[str, str]:
    """Return the variables of a deployment whose raw data are the files that `write_files` wrote.

    MNIST_DIR, which names the full data set for the tests, is another name of DATASET_DIR for what they start.
    """
    return {"DATASET_SOURCE": "directory", "DATASET_DIR": str(folder), "MNIST_DIR": ""}
