"""The statistics that drift watches in the images themselves."""

import numpy as np

from mnist_pipeline.task.spec import TASK

HEIGHT, WIDTH = TASK.array_shape


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return four float64 arrays (N,) for uint8 images (N, 28, 28), 0 background to 255 ink.

    `ink` is the mean intensity, 0..1; `stroke_width` is in pixels; `centre_x` and `centre_y` are the centre of mass
    in pixels from the left and the top edge (the middle of an empty image).
    """
    # Products of integers, not of floats: those start BLAS threads, which get in the way of torch's.
    columns, rows = images.sum(1, dtype=np.uint32), images.sum(2, dtype=np.uint32)  # (N, 28) each
    ink = columns.sum(1, dtype=np.float64)  # (N,)
    # The frame keeps the ends of the rows apart, so that neighbours are those one step and one row away.
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1))).reshape(len(images), -1)  # (N, 30 * 30)
    neighbours = [(framed[:, step:], framed[:, :-step]) for step in (1, WIDTH + 2)]
    # Area over half the length of the outline: exact for straight strokes, larger where edges are blurred.
    outline = sum(
        (np.maximum(here, there) - np.minimum(here, there)).sum(1, dtype=np.uint32)  # within uint8
        for here, there in neighbours
    )
    something = ink > 0
    centre_x, centre_y = np.full_like(ink, (WIDTH - 1) / 2), np.full_like(ink, (HEIGHT - 1) / 2)
    return {
        "ink": ink / (255 * HEIGHT * WIDTH),
        "stroke_width": np.divide(2 * ink, outline, out=np.zeros_like(ink), where=something),
        "centre_x": np.divide(columns @ np.arange(WIDTH), ink, out=centre_x, where=something),
        "centre_y": np.divide(rows @ np.arange(HEIGHT), ink, out=centre_y, where=something),
    }
