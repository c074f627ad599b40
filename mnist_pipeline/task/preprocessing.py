"""The preparation of any picture to what the images of a task are like."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from mnist_pipeline.files.pictures import FORMATS, ImageError, open_picture
from mnist_pipeline.task.spec import TaskSpec

INK_SHARE = 20 / 28
"""MNIST digits were scaled to fit 20x20, keeping their shape, then centred by mass in 28x28 (Y. LeCun)."""

MIN_CONTRAST = 24
"""Least difference of ink and background on the scale 0..255; below it a picture counts as blank."""


def read_image(
    data: bytes,
    spec: TaskSpec,
    *,
    formats: tuple[str, ...] = FORMATS,
    animated: bool = True,
    admit: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Decode an image file and prepare it as `prepare` does: uint8 of `spec.array_shape`.

    The keywords bound what is decoded, see `files.pictures.open_picture`. Raises ImageError, with the reason.
    """
    with open_picture(data, formats=formats, animated=animated, admit=admit) as picture:
        pixels = _pixels(picture, spec)
    return _prepared(pixels, spec)


def prepare(picture: Image.Image, spec: TaskSpec) -> np.ndarray:
    """Prepare a picture as the images of the task were made: uint8 of `spec.array_shape`. What is prepared stays.

    - handwriting, as MNIST was made: grey, light ink on dark, cropped to the ink, scaled to fit 20/28 of the image
      keeping its shape, centred by mass. A picture of the image's size with a dark border is taken to be one already.
    - cutouts, as Fashion-MNIST was made: grey, light on dark, cropped to the thing, scaled to fit the image, centred.
      A picture of the image's size is taken to be one already.
    - photos: scaled to cover the image, and cropped at the longer sides; in colour or grey, as the images are.

    Raises ImageError if there is nothing in it but background; photos may be blank.
    """
    return _prepared(_pixels(picture, spec), spec)


def _pixels(picture: Image.Image, spec: TaskSpec) -> np.ndarray:
    """All that needs the picture itself: of photos the image, of others grey values as `_to_grey` gives them."""
    return _photo(picture, spec) if spec.pictures == "photos" else _to_grey(picture)


def _photo(picture: Image.Image, spec: TaskSpec) -> np.ndarray:
    height, width, channels = spec.image_shape
    mode = "L" if channels == 1 else "RGB"
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(np.rint(np.clip(_to_grey(picture), 0, 255)).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    coloured = picture.convert("RGB")  # before it becomes grey, which a palette cannot directly
    fitted = ImageOps.fit(coloured.convert(mode), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8)


def _prepared(pixels: np.ndarray, spec: TaskSpec) -> np.ndarray:
    if spec.pictures == "photos":
        return pixels
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = float(np.median(border))
    if pixels.shape == spec.array_shape and (
        spec.pictures == "cutouts" or (background == 0 and pixels.max() >= MIN_CONTRAST)
    ):
        return np.rint(pixels).astype(np.uint8)
    # Ink is whatever differs most from the border, so dark on light and light on dark come out the same.
    lighter, darker = pixels.max() - background, background - pixels.min()
    ink = (pixels - background) if lighter > darker else (background - pixels)
    if (contrast := float(ink.max())) < MIN_CONTRAST:
        raise ImageError(f"nothing found: the picture is blank (contrast {contrast:.0f} of 255)")
    ink = np.clip(ink, 0, None)
    threshold = _otsu(ink) if spec.pictures == "handwriting" else MIN_CONTRAST / 2
    rows, columns = (np.flatnonzero((ink > threshold).any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if spec.pictures == "cutouts":
        return _fit(ink, spec, 1.0)
    # Paper shadows (below half the threshold) become 0, the pen's own shade becomes full ink.
    low, high = threshold / 2, float(np.median(ink[ink > threshold]))
    return _fit(np.clip((ink - low) / (high - low), 0, 1) * 255, spec, INK_SHARE)


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
            raise ImageError("nothing found: the picture is fully transparent")
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


def _fit(ink: np.ndarray, spec: TaskSpec, share: float) -> np.ndarray:
    """Scale to fit a share of the image with antialiasing: uint8, its strongest pixel 255.

    Handwriting is centred by mass, anything else by its sides.
    """
    height, width, _ = spec.image_shape
    scale = min(round(share * outer) / side for outer, side in zip((height, width), ink.shape, strict=True))
    tall, wide = (max(1, round(side * scale)) for side in ink.shape)
    # Pillow's bilinear filter averages over all source pixels when it shrinks, so thin strokes do not break.
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((wide, tall), Image.Resampling.BILINEAR))
    small = np.clip(small / small.max(), 0, 1) * 255
    by_mass = spec.pictures == "handwriting"
    centres = (
        np.average(np.arange(side), weights=small.sum(axis)) if by_mass else (side - 1) / 2
        for side, axis in ((tall, 1), (wide, 0))
    )
    top, left = (
        int(np.clip(round((outer - 1) / 2 - centre), 0, outer - side))
        for outer, centre, side in zip((height, width), centres, (tall, wide), strict=True)
    )
    image = np.zeros((height, width), np.uint8)
    image[top : top + tall, left : left + wide] = np.rint(small)
    return image
