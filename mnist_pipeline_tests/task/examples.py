"""Real images of the task, a network that learns them within seconds, and files as a user has them."""

import io
from typing import Any

import numpy as np
from PIL import Image

from mnist_pipeline.task.dataset import Dataset, LabelledImages
from mnist_pipeline_tests.task.sample import SPEC, embedded_images, variables_of, write_files

__all__ = ["GOOD", "SPEC", "TINY", "embedded_images", "png", "small_dataset", "take", "variables_of", "write_files"]

TINY: dict[str, Any] = {
    "conv_channels": [8, 8, 16],
    "hidden_units": [32],
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.01,
    "translation_pixels": 0.0,
    "precision": "float32",
}
"""A real network that learns within seconds."""

GOOD: dict[str, Any] = {
    "conv_channels": [8, 16, 32],
    "hidden_units": [64],
    "epochs": 5,
    "batch_size": 64,
    "learning_rate": 0.01,
    "conv_dropout": 0,
}
"""A small network that hardly errs, if it learns from the whole sample."""


def small_dataset(train: int = 80, test: int = 20) -> Dataset:
    """So many images of each class of the sample."""
    full = embedded_images()
    return Dataset(take(full.train, train), take(full.test, test), "a part of the sample", True, full.spec)


def take(images: LabelledImages, per_class: int) -> LabelledImages:
    """The first images of each class."""
    classes = np.unique(images.labels)
    chosen = np.concatenate([np.flatnonzero(images.labels == label)[:per_class] for label in classes])
    return LabelledImages(images.images[chosen], images.labels[chosen])


def png(image: np.ndarray) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
