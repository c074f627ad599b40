"""Signs that stand for the pictures of the task, as the files of the data set are. Put small real ones here."""

from functools import cache
from pathlib import Path

import numpy as np

from mnist_pipeline.task.dataset import DEFAULT_DATASET, Dataset, LabelledImages, scale
from mnist_pipeline.task.known import known
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.task.shapes import idx, signs

DATA_SET = known(DEFAULT_DATASET)
CLASSES = len(DATA_SET.class_names)
USUAL = 80
"""So many images a class the tests write as raw data; the scale is that of these."""


@cache
def _drawn() -> tuple[LabelledImages, LabelledImages]:
    chance = np.random.default_rng(0)
    return signs(CLASSES, 400, chance), signs(CLASSES, 100, chance)


def _spec() -> TaskSpec:
    train, _ = _drawn()
    first = np.concatenate([np.flatnonzero(train.labels == label)[:USUAL] for label in range(CLASSES)])
    mean, std = scale(train.images[first])
    return TaskSpec(
        name=DATA_SET.name,
        pictures=DATA_SET.pictures,
        class_names=DATA_SET.class_names,
        image_shape=DATA_SET.image_shape,
        mean=mean,
        std=std,
    )


SPEC = _spec()
"""The task of these images."""


@cache
def embedded_images() -> Dataset:
    """Return 400 images of each class to train on and 100 to test with, with no file and no network."""
    return Dataset(*_drawn(), "signs", True, SPEC)


def write_files(folder: Path, dataset: Dataset) -> None:
    """Write a data set as the files that DATASET_DIR may name: four plain IDX files."""
    files = iter(DATA_SET.files)
    for part in (dataset.train, dataset.test):
        images = part.images.swapaxes(1, 2) if DATA_SET.transposed else part.images
        (folder / next(files)).write_bytes(idx(images))
        (folder / next(files)).write_bytes(idx(part.labels + np.uint8(DATA_SET.first_label)))


def variables_of(folder: Path | str) -> dict[str, str]:
    """Return the variables of a deployment whose raw data are the files that `write_files` wrote."""
    return {"DATASET_SOURCE": "directory", "DATASET_DIR": str(folder)}
