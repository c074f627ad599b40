"""Raw data, what is stored between assets, and peak memory, beside the tutorial's way: decoded image by image through
torchvision, float32 tensors pickled between steps.

    .venv/bin/python -m benchmarks.data

Each step is a process of its own that imports what it needs, as in the runs of automation. Both train one epoch.
"""

import argparse
import importlib
import tempfile
import time
from pathlib import Path

from benchmarks.mnist import add_data_option, torchvision_root
from benchmarks.processes import Cost, measure
from benchmarks.steps import environment, materialize
from benchmarks.tables import print_table

OURS_TO_TRAIN = [
    "mnist_pipeline.definitions",
    *(f"mnist_pipeline.ml.{name}" for name in ("data", "drift", "model", "plots", "training")),
]
"""What `digit_classifier` imports, as its file in defs/assets says."""


def read_by_torchvision(root: Path) -> float:
    """Seconds to decode and normalise all 70,000 images one by one, imports left out."""
    from benchmarks import tutorial

    began = time.perf_counter()
    for train in (True, False):
        dataset = tutorial.images(root, train)
        for index in range(len(dataset)):
            dataset[index]
    return time.perf_counter() - began


def read_by_us(data: Path) -> float:
    """Seconds to read and verify them, imports left out."""
    from mnist_pipeline.task.known import known
    from mnist_pipeline.task.sources import load_directory

    began = time.perf_counter()
    load_directory(data, known("mnist"))
    return time.perf_counter() - began


def tutorial_step(asset: str, root: Path, home: Path) -> None:
    from benchmarks import tutorial

    tutorial.materialize(asset, root, home)


def libraries(*modules: str) -> None:
    """What a step that trains needs before it has seen an image: torch loads a part of itself when it first steps."""
    for module in modules:
        importlib.import_module(module)
    import torch

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = torchvision_root(folder, arguments.data)
        loading(root, arguments.rounds)
        print()
        memory(root, folder)


def loading(root: Path, rounds: int) -> None:
    """The same four files, not compressed, by both."""
    folder = root / "MNIST/raw"
    both = [(measure(read_by_torchvision, root).result, measure(read_by_us, folder).result) for _ in range(rounds)]
    tutorial, ours = (min(seconds) for seconds in zip(*both, strict=True))
    print_table(
        ["reading raw data, best of rounds", "seconds", "times faster"],
        [
            ["torchvision's dataset, item by item", f"{tutorial:.2f}", 1],
            ["load_directory", f"{ours:.3f}", f"{tutorial / ours:.0f}"],
        ],
    )


def memory(root: Path, folder: Path) -> None:
    from mnist_pipeline_tests.live import CHAIN  # not in the processes that are measured

    homes = [folder / "tutorial", folder / "ours"]
    for home in homes:
        home.mkdir()
    theirs: dict[str, Cost] = {
        asset: measure(tutorial_step, asset, root, homes[0])
        for asset in ("raw_mnist_data", "processed_mnist_data", "digit_classifier")
    }
    variables = environment(homes[1], root / "MNIST/raw")
    ours: dict[str, Cost] = {asset: measure(materialize, asset, variables) for asset in CHAIN}
    rows: list[list[object]] = []
    for asset, cost in ours.items():
        other = theirs.get(asset)
        ratio = f"{cost.peak_mib / other.peak_mib:.2f}" if other else "-"
        rows.append([f"peak MiB: {asset}", f"{other.peak_mib:.0f}" if other else "-", f"{cost.peak_mib:.0f}", ratio])
    peaks = [max(cost.peak_mib for cost in costs.values()) for costs in (theirs, ours)]
    imported = [measure(libraries, *modules).peak_mib for modules in (["benchmarks.tutorial"], OURS_TO_TRAIN)]
    trained = [costs["digit_classifier"].peak_mib for costs in (theirs, ours)]
    beyond = [peak - library for peak, library in zip(trained, imported, strict=True)]
    parts = {
        "peak MiB: **the largest**": peaks,
        "of digit_classifier's: libraries": imported,
        "of digit_classifier's: the rest": beyond,
    }
    rows += [[name, *(f"{value:.0f}" for value in mib), f"{mib[1] / mib[0]:.2f}"] for name, mib in parts.items()]
    stored = [stored_mib(homes[0] / "values"), stored_mib(homes[1] / "storage" / "data")]
    rows.append(["MiB of images between steps", *(f"{size:.0f}" for size in stored), f"{stored[1] / stored[0]:.3f}"])
    print_table(["step", "float32 tensors, pickled", "this project", "ratio"], rows)


def stored_mib(folder: Path) -> float:
    """What the two assets that hold images left there."""
    files = [file for name in ("raw", "processed") for file in folder.rglob(f"{name}_mnist_data*") if file.is_file()]
    assert len(files) == 2, files
    return sum(file.stat().st_size for file in files) / 2**20


if __name__ == "__main__":
    main()
