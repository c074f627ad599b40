"""Data larger than memory: every step on generated photos, each in a process of its own, with what memory it takes.

`python -m benchmarks.large_data` (300,000 photos of 64x64, about half an hour; `--images 20000` for a look)
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from benchmarks import steps
from benchmarks.processes import measure, memory_mib
from benchmarks.tables import print_table
from mnist_pipeline_tests.live import CHAIN

SIDE = 64
CLASSES = ("circle", "cross", "frame", "stripes")
ASSETS = (*CHAIN, "digit_predictions")
T = TypeVar("T")

SAMPLE_SECONDS = 0.02
MIB = 1 << 20


def photo(label: int, generator: np.random.Generator) -> Image.Image:
    """A shape in a colour on a background that runs from one colour to another, none like another one."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - generator.uniform(SIDE * 0.4, SIDE * 0.6, (2, 1, 1))
    size = generator.uniform(12, 22)
    distance, far = np.hypot(rows, columns), np.maximum(abs(rows), abs(columns))
    shape = (
        distance < size,
        (np.minimum(abs(rows), abs(columns)) < size / 4) & (far < size),
        (far < size) & (far > size * 0.7),
        (np.floor(columns / 4) % 2 == 0) & (far < size),
    )[label]
    slope = np.linspace(0, 1, SIDE)[:, None, None]
    first, last, colour = generator.integers(0, 256, (3, 3))
    pixels = np.broadcast_to(first * slope + last * (1 - slope), (SIDE, SIDE, 3)).copy()
    pixels[shape] = colour
    return Image.fromarray((pixels + generator.normal(0, 6, (SIDE, SIDE, 1))).clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, images: int) -> None:
    """Write so many JPEG files, a folder a class."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(images):
        label = number % len(CLASSES)
        photo(label, generator).save(folder / CLASSES[label] / f"{number:07}.jpg", quality=85)


def step(asset: str, variables: dict[str, str]) -> tuple[float, float]:
    """The seconds of an asset's step, and the most anonymous memory (RssAnon) of this process, in MiB."""
    return sampled(partial(memory_mib, "RssAnon"), lambda: steps.materialize(asset, variables))


def sampled(value: Callable[[], float], work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and the largest of the values meanwhile."""
    done, found = threading.Event(), [value()]

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found[0] = max(found[0], value())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        given = work()
    finally:
        done.set()
        thread.join()
    return given, found[0]


def main() -> None:
    """Generate, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a disk, not in memory")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        home = Path(name)
        free = shutil.disk_usage(home).free
        began = time.perf_counter()
        write_photos(home / "shapes", arguments.images)
        print(f"{arguments.images:,} files generated in {time.perf_counter() - began:.0f} s")
        (home / "tmp").mkdir()
        os.environ["TMPDIR"] = str(home / "tmp")  # of the processes to come: /tmp is in memory on some machines
        variables = {
            **{"DAGSTER_HOME": str(home), "STORAGE_ROOT": str(home / "storage")},
            **{"DATASET": "folder", "DATASET_DIR": str(home / "shapes")},
        }

        def used_mib() -> float:
            return (free - shutil.disk_usage(home).free) / MIB  # of the whole disk: nameless files count, too

        for asset in ASSETS:
            cost, disk = sampled(used_mib, partial(measure, step, asset, variables))
            seconds, anonymous = cost.result
            rows.append([asset, f"{seconds:.0f}", f"{anonymous:.0f}", f"{disk:,.0f}"])
            print(rows[-1], flush=True)
    print_table(["step", "seconds", "RssAnon at most (MiB)", "disk in use at most (MiB)"], rows)


if __name__ == "__main__":
    main()
