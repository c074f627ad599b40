"""The statistics of images that drift watches, and by whose ends the evaluation suite is sliced."""

import numpy as np

from mnist_pipeline.task.spec import TaskSpec


def image_statistics(images: np.ndarray, spec: TaskSpec) -> dict[str, np.ndarray]:
    """Return float64 arrays (N,) for uint8 images (N, *spec.array_shape): of strokes for handwriting, else of light."""
    return stroke_statistics(images) if spec.pictures == "handwriting" else light_statistics(images)


def light_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return float64 arrays (N,) for uint8 images (N, H, W) or (N, H, W, 3).

    `brightness` is the mean and `contrast` the standard deviation of the grey values, `sharpness` the mean difference
    of neighbours, and of colours `red`, `green` and `blue` are the means of the channels; all with 255 as 1.
    """
    values = images.astype(np.float32) / 255
    grey = values if values.ndim == 3 else values.mean(3)  # (N, H, W)
    steps = [np.abs(np.diff(grey, axis=axis)).mean((1, 2), dtype=np.float64) for axis in (1, 2) if grey.shape[axis] > 1]
    found = {
        "brightness": grey.mean((1, 2), dtype=np.float64),
        "contrast": grey.std((1, 2), dtype=np.float64),
        "sharpness": np.mean(steps, axis=0) if steps else np.zeros(len(images)),
    }
    if values.ndim == 4:
        channels = values.mean((1, 2), dtype=np.float64)  # (N, 3)
        found |= dict(zip(("red", "green", "blue"), channels.T, strict=True))
    return found


def stroke_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return five float64 arrays (N,) for grey uint8 images (N, H, W), 0 background to 255 ink.

    `ink` is the mean intensity, 0..1; `stroke_width` is in pixels; `centre_x` and `centre_y` are the centre of mass
    in pixels from the left and the top edge (the middle of an empty image); `slant` is how far the ink moves to the
    left from one row to the next, in pixels (0 for a single row).
    """
    height, width = images.shape[1:]
    # Products of integers, not of floats: those start BLAS threads, which get in the way of torch's.
    columns, rows = images.sum(1, dtype=np.uint32), images.sum(2, dtype=np.uint32)  # (N, W) and (N, H)
    ink = columns.sum(1, dtype=np.float64)  # (N,)
    # The frame keeps the ends of the rows apart, so that neighbours are those one step and one row away.
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(len(images), -1)  # (N, (H + 2) (W + 2))
    neighbours = [(framed[:, step:], framed[:, :-step]) for step in (1, width + 2)]
    # Area over half the length of the outline: exact for straight strokes, larger where edges are blurred.
    outline = sum(
        (np.maximum(here, there) - np.minimum(here, there)).sum(1, dtype=np.uint32)  # within uint8
        for here, there in neighbours
    )
    something = ink > 0
    centre_x, centre_y = np.full_like(ink, (width - 1) / 2), np.full_like(ink, (height - 1) / 2)
    np.divide(columns @ np.arange(width), ink, out=centre_x, where=something)
    np.divide(rows @ np.arange(height), ink, out=centre_y, where=something)
    # Of the ink: the covariance of column and row over the variance of the row, both times the ink.
    spread = rows @ np.arange(height) ** 2 - ink * centre_y**2  # (N,)
    together = (images @ np.arange(width, dtype=np.uint32)) @ np.arange(height) - ink * centre_x * centre_y  # (N,)
    return {
        "ink": ink / (255 * height * width),
        "stroke_width": np.divide(2 * ink, outline, out=np.zeros_like(ink), where=something),
        "centre_x": centre_x,
        "centre_y": centre_y,
        "slant": np.divide(-together, spread, out=np.zeros_like(ink), where=spread > 1),
    }
