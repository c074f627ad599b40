"""Common corruptions of images, one severity each: what a robust model still knows.

For handwriting in the manner of Mu and Gilmer 2019 (arXiv 1906.02337), for other pictures of Hendrycks and Dietterich
2019, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (ImageNet-C). The severities are
mild: a usual model still knows most of the images.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_pipeline.task.spec import TaskSpec

Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A function of float32 (N, H, W, C), 0..1, and a source of chance that gives the same, clipped to 0..1 afterwards."""


def corruptions(spec: TaskSpec) -> dict[str, Corruption]:
    """Return the corruptions for the kind of pictures of a task, by name."""
    return STROKES if spec.pictures == "handwriting" else LIGHT


def corrupted(images: np.ndarray, name: str, spec: TaskSpec, seed: int = 0) -> np.ndarray:
    """Return uint8 images (N, *spec.array_shape) corrupted, of the same shape: equal for equal images and seed.

    Raises KeyError for a name that is none of `corruptions(spec)`.
    """
    chance = np.random.default_rng((zlib.crc32(name.encode()), seed))
    values = images.reshape(-1, *spec.image_shape).astype(np.float32) / 255
    found = corruptions(spec)[name](values, chance)
    return np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8).reshape(images.shape)


def _gaussian_noise(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return values + chance.normal(0, 0.1, values.shape).astype(np.float32)


def _shot_noise(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    photons = 12  # of a white pixel
    return chance.poisson(values * photons).astype(np.float32) / photons


def _impulse_noise(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Salt and pepper on 6% of the pixels."""
    where, salt = (chance.random((*values.shape[:3], 1)) for _ in range(2))
    return np.where(where < 0.06, (salt < 0.5).astype(np.float32), values)


def _blur(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    height, width = values.shape[1:3]
    return ndimage.gaussian_filter(values, (0, 0.75 * height / 28, 0.75 * width / 28, 0))


def _motion_blur(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return ndimage.uniform_filter1d(values, max(3, round(values.shape[2] / 7)), axis=2)


def _turned(values: np.ndarray, chance: np.random.Generator, linear: Callable[[int], np.ndarray]) -> np.ndarray:
    """Each image by one of two linear maps about its middle, `linear` of 1 and of -1: from (row, column) to where its
    value comes from."""
    found, sides = np.empty_like(values), chance.random(len(values)) < 0.5
    middle = (np.array(values.shape[1:3]) - 1) / 2
    for sign in (1, -1):
        chosen, matrix = sides == (sign > 0), np.eye(4)
        matrix[1:3, 1:3] = linear(sign)
        offset = np.zeros(4)
        offset[1:3] = middle - matrix[1:3, 1:3] @ middle
        if chosen.any():
            found[chosen] = ndimage.affine_transform(values[chosen], matrix, offset, order=1)
    return found


def _rotation(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    cos, sin = np.cos(np.radians(15)), np.sin(np.radians(15))
    return _turned(values, chance, lambda sign: np.array([[cos, -sign * sin], [sign * sin, cos]]))


def _shear(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return _turned(values, chance, lambda sign: np.array([[1, 0], [sign * 0.3, 1]]))


def _scale(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Larger or smaller by a fifth."""
    return _turned(values, chance, lambda sign: np.eye(2) * 1.2**sign)


def _translation(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Each image moves by a fourteenth of the side, to one of four corners."""
    rows, columns = (max(1, round(side / 14)) for side in values.shape[1:3])
    corner = chance.integers(0, 4, len(values))
    found = np.empty_like(values)
    for way in range(4):
        step = (0, rows * (1 if way & 1 else -1), columns * (1 if way & 2 else -1), 0)
        found[corner == way] = ndimage.shift(values[corner == way], step, order=0)
    return found


def _thinner(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The mean of the image and its erosion, so that strokes lose about a pixel."""
    return (values + ndimage.grey_erosion(values, _pixels(values))) / 2


def _thicker(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return (values + ndimage.grey_dilation(values, _pixels(values))) / 2


def _pixels(values: np.ndarray) -> tuple[int, int, int, int]:
    """The size of a mark of three pixels of 28."""
    return 1, max(2, round(values.shape[1] * 3 / 28)), max(2, round(values.shape[2] * 3 / 28)), 1


def _stripe(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """A grey line down the image."""
    found, at = values.copy(), chance.integers(0, values.shape[2], len(values))
    found[np.arange(len(values)), :, at] = np.maximum(found[np.arange(len(values)), :, at], 0.6)
    return found


def _dotted_line(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """White dots along a straight line from side to side."""
    height, width = values.shape[1:3]
    columns = np.arange(0, width, max(2, width // 9))
    ends = chance.uniform(0, height - 1, (len(values), 2))
    rows = np.rint(ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * columns / max(width - 1, 1)).astype(int)  # (N, dots)
    found = values.copy()
    found[np.arange(len(values))[:, None], rows, columns] = 1
    return found


def _brighter(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return values + 0.2


def _darker(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    return values * 0.6


def _less_contrast(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    mean = values.mean((1, 2, 3), keepdims=True)
    return mean + (values - mean) * 0.5


def _pixelation(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Every two by two pixels are one."""
    height, width = (side - side % 2 for side in values.shape[1:3])
    found = values.copy()
    if not height * width:
        return found
    blocks = values[:, :height, :width].reshape(len(values), height // 2, 2, width // 2, 2, -1).mean((2, 4))
    found[:, :height, :width] = blocks.repeat(2, 1).repeat(2, 2)
    return found


def _jpeg(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    found = np.empty_like(values)
    for number, image in enumerate(np.rint(values * 255).astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=25)
        found[number] = np.asarray(Image.open(file), np.float32).reshape(image.shape) / 255
    return found


def _waves(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Each row is moved sideways, by up to a twentieth of the width, along a wave down the image."""
    height, width = values.shape[1:3]
    phase = chance.uniform(0, 2 * np.pi, (len(values), 1))
    steps = np.rint(width / 20 * np.sin(2 * np.pi * np.arange(height) / (height / 2) + phase)).astype(int)  # (N, H)
    columns = np.clip(np.arange(width) - steps[..., None], 0, width - 1)  # (N, H, W)
    return np.take_along_axis(values, columns[..., None], 2)


STROKES: dict[str, Corruption] = {
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "blur": _blur,
    "motion blur": _motion_blur,
    "rotation": _rotation,
    "shear": _shear,
    "scale": _scale,
    "translation": _translation,
    "thinner strokes": _thinner,
    "thicker strokes": _thicker,
    "stripe": _stripe,
    "dotted line": _dotted_line,
}
"""The corruptions of handwriting."""

LIGHT: dict[str, Corruption] = {
    "gaussian noise": _gaussian_noise,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "blur": _blur,
    "motion blur": _motion_blur,
    "brighter": _brighter,
    "darker": _darker,
    "less contrast": _less_contrast,
    "pixelation": _pixelation,
    "JPEG": _jpeg,
    "waves": _waves,
    "rotation": _rotation,
}
"""The corruptions of photos and cutouts."""
