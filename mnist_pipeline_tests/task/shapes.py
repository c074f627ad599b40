"""Small pictures that a network tells apart within seconds, and the bytes of an IDX file."""

import numpy as np
from PIL import Image

from mnist_pipeline.task.dataset import LabelledImages


def sign(label: int, side: int, chance: np.random.Generator) -> Image.Image:
    """A class as a pattern of 4x4 fields, light and grey on dark, near the middle."""
    cell = max(2, side // 7)
    fields = np.random.default_rng(label).integers(0, 2, (4, 4), np.uint8) * 190 + 60
    picture = Image.new("L", (side, side))
    top, left = (int(chance.integers(-1, 2)) + (side - 4 * cell) // 2 for _ in range(2))
    picture.paste(Image.fromarray(fields).resize((4 * cell, 4 * cell), Image.Resampling.NEAREST), (left, top))
    noise = chance.integers(0, 12, (side, side), np.uint8)  # no two alike
    noise[[0, -1]] = noise[:, [0, -1]] = 0
    return Image.fromarray(np.asarray(picture) + noise)


def signs(classes: int, per_class: int, chance: np.random.Generator) -> LabelledImages:
    """So many signs of 28x28 pixels of each class, class by class."""
    labels = np.repeat(np.arange(classes), per_class).astype(np.uint8)
    return LabelledImages(np.stack([np.asarray(sign(int(label), 28, chance)) for label in labels]), labels)


def idx(array: np.ndarray) -> bytes:
    """A uint8 array as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
