"""Ten signs that stand for the pictures of a task, and files as a user has them. Put small real ones here."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mnist_pipeline.task.dataset import Dataset, LabelledImages, scale
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.shapes import signs

CLASSES = 10
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
    names = tuple(str(label) for label in range(CLASSES))
    return TaskSpec(class_names=names, image_shape=(28, 28, 1), mean=mean, std=std)


SPEC = _spec()
"""The task of these images."""


@cache
def embedded_images() -> Dataset:
    """Return 400 images of each class to train on and 100 to test with, with no file and no network."""
    return Dataset(*_drawn(), "signs", True, SPEC)


def write_files(folder: Path, dataset: Dataset) -> None:
    """Write a data set as the files that DATASET_DIR may name: `train/<class>/<image>` and `test/<class>/<image>`."""
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        for number, (image, label) in enumerate(zip(*part, strict=True)):
            place = folder / name / SPEC.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:05}.png").write_bytes(encode(Image.fromarray(image)))


def variables_of(folder: Path | str) -> dict[str, str]:
    """Return the variables of a deployment whose raw data are the files that `write_files` wrote."""
    return {"DATASET": "folder", "DATASET_DIR": str(folder), "IMAGE_SIZE": "28", "PICTURES": "handwriting"}
