"""Signs that stand for the pictures of the task, as the files of the data set are. Put small real ones here."""

from functools import cache
from pathlib import Path

import numpy as np

from mnist_pipeline.task.dataset import DEFAULT_DATASET, Dataset, LabelledImages, scale
from mnist_pipeline.task.known import known
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.task.shapes import idx, sign

DATA_SET = known(DEFAULT_DATASET)
CLASSES = len(DATA_SET.class_names)
USUAL = 80
"""So many images a class the tests write as raw data; the scale is that of these."""


def _signs(per_class: int, chance: np.random.Generator) -> LabelledImages:
    labels = np.repeat(np.arange(CLASSES), per_class).astype(np.uint8)
    return LabelledImages(np.stack([np.asarray(sign(int(label), 28, chance)) for label in labels]), labels)


@cache
def _drawn() -> tuple[LabelledImages, LabelledImages]:
    chance = np.random.default_rng(0)
    return _signs(400, chance), _signs(100, chance)


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
