"""The full MNIST for benchmarks: where it is, and copies of it in the forms that others read."""

import argparse
import os
from pathlib import Path

import numpy as np

from mnist_pipeline.task.dataset import Dataset, LabelledImages
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory

PROJECT = Path(__file__).parents[1]


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data`, a folder of the four IDX files; without it MNIST_DIR."""
    default = os.environ.get("MNIST_DIR")
    parser.add_argument(
        "--data",
        type=folder,
        default=default,
        required=default is None,
        help="folder of the full MNIST, four IDX files; default: MNIST_DIR",
    )


def folder(name: str) -> Path:
    """Type of an option that names an existing folder of IDX files."""
    if not (path := Path(name)).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {name}: name that of the full MNIST, or set MNIST_DIR")
    return path


def torchvision_root(root: Path, data: Path) -> Path:
    """The files of `data`, not compressed, where torchvision.datasets.MNIST looks for them below `root`."""
    from mnist_pipeline_tests.task.examples import write_files  # not where memory is measured: it loads everything

    inside = root / "MNIST/raw"
    inside.mkdir(parents=True)
    write_files(inside, load_directory(data, known("mnist")))
    return root


def resized(dataset: Dataset, train_images: int) -> Dataset:
    """With so many training images: the first of them, or all and then copies shifted by up to two pixels."""
    images, labels = dataset.train
    copies = -(-train_images // len(labels))
    shifts = [(0, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (2, 0), (-2, 0), (0, 2), (0, -2)]
    moved = [np.roll(images, shifts[copy % len(shifts)], axis=(1, 2)) for copy in range(copies)]
    train = LabelledImages(np.concatenate(moved)[:train_images], np.tile(labels, copies)[:train_images])
    return dataset._replace(train=train)
