"""Small data sets of other tasks, made of shapes that a small network can tell apart."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mnist_pipeline.task.known import known
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.examples import GOOD
from mnist_pipeline_tests.task.shapes import idx, sign

SMALL: dict[str, Any] = GOOD | {"batch_size": 32, "epochs": 6, "precision": "float32"}
"""A network that learns these within seconds."""


def write_idx(folder: Path, name: str, *, train: int, test: int) -> None:
    """Write the four gzipped files of a known data set, with so many images a class."""
    data_set, chance = known(name), np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for images_file, labels_file, count in ((*data_set.files[:2], train), (*data_set.files[2:], test)):
        labels = chance.permutation(np.repeat(np.arange(len(data_set.class_names)), count)).astype(np.uint8)
        images = np.stack([np.asarray(sign(int(label), 28, chance)) for label in labels])
        stored = images.swapaxes(1, 2) if data_set.transposed else images
        for file, array in ((images_file, stored), (labels_file, labels + np.uint8(data_set.first_label))):
            (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array), mtime=0))


def photo(label: int, chance: np.random.Generator, size: tuple[int, int] | None = None) -> Image.Image:
    """A colour photo of a thing: an ellipse, a box or a cross, in a colour of its class, on a noisy ground."""
    width, height = size or (int(chance.integers(40, 120)), int(chance.integers(40, 120)))
    ground = chance.integers(90, 140, (height, width, 3), np.uint8)
    picture = Image.fromarray(ground)
    draw, colour = ImageDraw.Draw(picture), [(220, 40, 40), (40, 200, 60), (50, 70, 230)][label % 3]
    box = [width * 0.2, height * 0.2, width * 0.8, height * 0.8]
    match label % 3:
        case 0:
            draw.ellipse(box, fill=colour)
        case 1:
            draw.rectangle(box, fill=colour)
        case _:
            draw.line(box, fill=colour, width=max(4, width // 6))
            draw.line([box[0], box[3], box[2], box[1]], fill=colour, width=max(4, width // 6))
    return picture


FORMS: Sequence[tuple[str, Callable[[Image.Image], bytes]]] = (
    ("png", encode),
    ("jpg", lambda picture: encode(picture, "JPEG", quality=92)),
    ("webp", lambda picture: encode(picture, "WEBP", lossless=True)),
    ("png", lambda picture: encode(picture.convert("P", palette=Image.Palette.ADAPTIVE))),
    ("png", lambda picture: encode(picture.convert("RGBA"))),
    ("tif", lambda picture: encode(picture.convert("CMYK"), "TIFF")),
    ("jpg", lambda picture: encode(picture.rotate(90, expand=True), "JPEG", exif=turned_right())),
)
"""Endings, and the ways to write a picture so that it looks the same."""


def turned_right() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright
    return exif


def write_photos(folder: Path, names: Sequence[str], count: int) -> None:
    """Write `<class>/<image>`, so many photos a class, of many sizes, formats and modes."""
    chance = np.random.default_rng(0)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            ending, write = FORMS[number % len(FORMS)]
            (folder / name / f"{number:04d}.{ending}").write_bytes(write(photo(label, chance)))


def write_signs(folder: Path, classes: int, count: int, side: int = 32) -> None:
    """Write `train/<class>/<image>` and `test/<class>/<image>` of many classes, in grey."""
    chance = np.random.default_rng(0)
    for part, images in (("train", count), ("test", max(1, count // 4))):
        for label in range(classes):
            (place := folder / part / f"sign {label:03d}").mkdir(parents=True)
            for number in range(images):
                (place / f"{number}.png").write_bytes(encode(sign(label, side, chance)))
