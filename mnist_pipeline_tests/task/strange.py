"""Pictures that are no digits, and digits by another hand, as the service would prepare them."""

import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import cbook
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images

from mnist_pipeline.files.pictures import ImageError
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.preprocessing import prepare

LIKE_DIGITS = "OoIliZzSsBbgqG"
"""Letters that many a hand writes as a digit."""

SIZE = 40
"""Of a letter, in points."""


def fonts(of_the_system: bool = False) -> list[Path]:
    """Text fonts: those that come with matplotlib, or all that the system has."""
    files = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
    if of_the_system:
        listed = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, text=True, check=True)
        files = sorted(Path(name) for name in listed.stdout.split("\n") if name.endswith((".ttf", ".otf")))
    return [file for file in files if "Math" not in file.name and "Display" not in file.name]


def printed(characters: str, files: list[Path]) -> np.ndarray:
    """Each character in each font, uint8 (N, 28, 28)."""
    found = []
    for file in files:
        font = ImageFont.truetype(str(file), SIZE)
        for character in characters:
            paper = Image.new("L", (100, 100), 0)
            ImageDraw.Draw(paper).text((50, 50), character, 255, font=font, anchor="mm")
            found.append(prepare(paper, MNIST))
    return np.stack(found)


def letters(files: list[Path]) -> np.ndarray:
    """Printed letters, but those that look like digits."""
    return printed("".join(letter for letter in string.ascii_letters if letter not in LIKE_DIGITS), files)


def noise(count: int) -> np.ndarray:
    """Every pixel by chance."""
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)


def scribbles(count: int) -> np.ndarray:
    """Curves through six to thirteen points anywhere, by pens of several widths."""
    chance, found = np.random.default_rng(0), []
    window = np.hanning(13) / np.hanning(13).sum()
    for _ in range(count):
        corners = chance.uniform(30, 250, (int(chance.integers(6, 14)), 2))
        steps = np.linspace(0, len(corners) - 1, 12 * len(corners))
        line = [
            np.convolve(np.pad(np.interp(steps, np.arange(len(corners)), values), 6, "edge"), window, "valid")
            for values in corners.T
        ]
        paper = Image.new("L", (280, 280), 0)
        ImageDraw.Draw(paper).line(list(zip(*line, strict=True)), 255, int(chance.integers(14, 28)), joint="curve")
        found.append(prepare(paper, MNIST))
    return np.stack(found)


def _crops(least: int, most: int) -> Iterator[Image.Image]:
    chance = np.random.default_rng(0)
    photos = [Image.fromarray(photo).convert("L") for photo in load_sample_images().images]
    photos.append(Image.open(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("L"))
    while True:
        photo, side = photos[chance.integers(len(photos))], int(chance.integers(least, most))
        left, top = int(chance.integers(photo.width - side)), int(chance.integers(photo.height - side))
        yield photo.crop((left, top, left + side, top + side))


def photos(count: int) -> np.ndarray:
    """Parts of photos of a temple, a flower and a person, only made small, as ready images come in a batch."""
    return np.stack([np.asarray(crop.resize((28, 28))) for crop, _ in zip(_crops(28, 200), range(count), strict=False)])


def prepared_photos(count: int) -> np.ndarray:
    """Parts of photos, prepared as if they were of handwriting."""
    found: list[np.ndarray] = []
    for crop in _crops(60, 300):
        try:
            found.append(prepare(crop, MNIST))
        except ImageError:  # a piece of sky
            continue
        if len(found) == count:
            return np.stack(found)
    raise AssertionError("there are photos without end")


def by_another_hand() -> np.ndarray:
    """The 1,797 digits of scikit-learn (8x8, by 43 people of Turkey), enlarged."""
    found = []
    for image in load_digits().images:
        large = Image.fromarray((image / 16 * 255).astype(np.uint8)).resize((80, 80), Image.Resampling.BICUBIC)
        paper = Image.new("L", (120, 120), 0)
        paper.paste(large, (20, 20))
        found.append(prepare(paper, MNIST))
    return np.stack(found)
