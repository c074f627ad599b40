"""The preparation of any picture of a digit to the 28x28 pixels that MNIST would have made of it."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from mnist_pipeline.files.pictures import FORMATS, ImageError, open_picture
from mnist_pipeline.task.spec import TASK

SIDE = TASK.image_shape[0]
DIGIT_SIDE = 20
"""MNIST digits were scaled to fit 20x20, keeping their shape, then centred by mass in 28x28 (Y. LeCun)."""

MIN_CONTRAST = 24
"""Least difference of ink and background on the scale 0..255; below it a picture counts as blank."""


def read_image(
    data: bytes,
    *,
    formats: tuple[str, ...] = FORMATS,
    animated: bool = True,
    admit: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Decode an image file and prepare it as `prepare` does: uint8 (28, 28).

    The keywords bound what is decoded, see `files.pictures.open_picture`. Raises ImageError, with the reason.
    """
    with open_picture(data, formats=formats, animated=animated, admit=admit) as picture:
        grey = _to_grey(picture)
    return _prepared(grey)


def prepare(picture: Image.Image) -> np.ndarray:
    """Prepare a picture as MNIST was made and return it as uint8 (28, 28), 0 background to 255 ink.

    It is made grey, light ink on dark, cropped to the ink, scaled to fit 20x20 keeping its shape, centred by mass.

    A 28x28 picture with a dark border is taken to be an MNIST image already and returned unchanged.
    Raises ImageError if there is no ink.
    """
    return _prepared(_to_grey(picture))


def _prepared(grey: np.ndarray) -> np.ndarray:
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = float(np.median(border))
    if grey.shape == (SIDE, SIDE) and background == 0 and grey.max() >= MIN_CONTRAST:
        return np.rint(grey).astype(np.uint8)
    # Ink is whatever differs most from the border, so dark on light and light on dark come out the same.
    lighter, darker = grey.max() - background, background - grey.min()
    ink = (grey - background) if lighter > darker else (background - grey)
    if (contrast := float(ink.max())) < MIN_CONTRAST:
        raise ImageError(f"no digit found: the picture is blank (contrast {contrast:.0f} of 255)")
    ink = np.clip(ink, 0, None)
    threshold = _otsu(ink)
    rows, columns = (np.flatnonzero((ink > threshold).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # Paper shadows (below half the threshold) become 0, the pen's own shade becomes full ink.
    low, high = threshold / 2, float(np.median(ink[ink > threshold]))
    return _fit(np.clip((ink - low) / (high - low), 0, 1) * 255)


def _to_grey(picture: Image.Image) -> np.ndarray:
    """float32 (height, width), 0..255; transparency laid over the background that contrasts with the ink."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits: by its own range
        values = np.asarray(picture, np.float32)
        if not np.isfinite(values).all():
            raise ImageError("the picture has values that are not finite")
        return values / max(float(values.max()), 1) * 255
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        grey, alpha = (np.asarray(channel, np.float32) for channel in (rgba.convert("L"), rgba.getchannel("A")))
        if not alpha.any():
            raise ImageError("no digit found: the picture is fully transparent")
        ink_is_light = np.average(grey, weights=alpha) > 127
        return grey * alpha / 255 + (0 if ink_is_light else 255) * (1 - alpha / 255)
    return np.asarray(picture.convert("L"), np.float32)


def _otsu(values: np.ndarray) -> float:
    """The threshold that best separates two groups of values (Otsu 1979, maximal variance between them)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = counts * centres
    mean_below = np.cumsum(sums) / np.maximum(below, 1)
    mean_above = np.cumsum(sums[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(edges[1 + np.argmax(between)])


def _fit(ink: np.ndarray) -> np.ndarray:
    """Scale to fit 20x20 with antialiasing and centre by mass in 28x28: uint8, its strongest pixel 255."""
    scale = DIGIT_SIDE / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    # Pillow's bilinear filter averages over all source pixels when it shrinks, so thin strokes do not break.
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    small = np.clip(small / small.max(), 0, 1) * 255
    rows, columns = (np.average(np.arange(side), weights=small.sum(axis)) for side, axis in ((height, 1), (width, 0)))
    centre = (SIDE - 1) / 2
    top, left = (
        int(np.clip(round(centre - mass), 0, SIDE - side)) for mass, side in ((rows, height), (columns, width))
    )
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[top : top + height, left : left + width] = np.rint(small)
    return image
