"""Raw data, what is stored between assets, and peak memory, beside the tutorial's way: decoded image by image through
torchvision, float32 tensors pickled between steps.

    .venv/bin/python -m benchmarks.data

Each step is a process of its own, as under Dagster, and imports Dagster and torch. Both train one epoch.
"""

import argparse
import pickle
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.mnist import add_data_option, torchvision_root
from benchmarks.processes import Cost, measure
from benchmarks.tables import print_table
from mnist_pipeline.ml.records import Dataset, Splits


def tutorial_raw(root: Path, out: Path) -> None:
    import dagster as dg  # noqa: F401  (the step runs under it)
    import torch

    parts = [zip(*tutorial_images(root, train), strict=True) for train in (True, False)]
    (images, labels), (test_images, test_labels) = parts
    stacked = torch.stack(images), torch.stack(test_images), torch.tensor(labels), torch.tensor(test_labels)
    out.write_bytes(pickle.dumps(stacked))


def tutorial_images(root: Path, train: bool) -> Any:
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return datasets.MNIST(str(root), train=train, transform=transform)


def tutorial_processed(raw: Path, out: Path) -> None:
    import dagster as dg  # noqa: F401
    import torch
    from sklearn.model_selection import train_test_split

    images, test_images, labels, test_labels = pickle.loads(raw.read_bytes())  # noqa: S301  (the tutorial's way)
    train, validation = train_test_split(torch.arange(len(labels)), test_size=0.2, random_state=42, stratify=labels)
    parts = images[train], images[validation], test_images, labels[train], labels[validation], test_labels
    out.write_bytes(pickle.dumps(parts))


def tutorial_training(processed: Path) -> None:
    import dagster as dg  # noqa: F401
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from mnist_pipeline.ml.network import DigitCNN
    from mnist_pipeline.ml.settings import TrainingSettings

    images, _, _, labels, _, _ = pickle.loads(processed.read_bytes())  # noqa: S301
    model = DigitCNN(TrainingSettings())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for inputs, targets in DataLoader(TensorDataset(images, labels), 64, shuffle=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def our_raw(data: Path, out: Path) -> None:
    import dagster as dg  # noqa: F401

    from mnist_pipeline.ml.sources import load_directory

    store(load_directory(data), out)


def store(value: Dataset | Splits, out: Path) -> None:
    """As the IO manager does."""
    from safetensors.numpy import save

    from mnist_pipeline.ml.data import to_arrays

    out.write_bytes(save(*to_arrays(value)))


def our_processed(raw: Path, out: Path) -> None:
    import dagster as dg  # noqa: F401
    from safetensors.numpy import load

    from mnist_pipeline.ml.data import dataset_from_arrays, no_images, split
    from mnist_pipeline.ml.settings import SplitSettings

    dataset = dataset_from_arrays(load(raw.read_bytes()), {"description": "", "is_sample": "False"})
    store(split(dataset, no_images(), SplitSettings()), out)


def our_training(processed: Path) -> None:
    import dagster as dg  # noqa: F401
    from safetensors.numpy import load

    from mnist_pipeline.ml.data import splits_from_arrays
    from mnist_pipeline.ml.settings import TrainingSettings
    from mnist_pipeline.ml.training import train

    train(TrainingSettings(epochs=1), splits_from_arrays(load(processed.read_bytes())))


def read_by_torchvision(root: Path) -> int:
    return sum(1 for train in (True, False) for _ in tutorial_images(root, train))


def read_by_us(data: Path) -> int:
    from mnist_pipeline.ml.sources import load_directory

    dataset = load_directory(data)
    return len(dataset.train.labels) + len(dataset.test.labels)


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
    both = [(measure(read_by_torchvision, root), measure(read_by_us, root)) for _ in range(rounds)]
    tutorial, ours = (min(cost.seconds for cost in costs) for costs in zip(*both, strict=True))
    print_table(
        ["reading raw data, best of rounds", "seconds", "times faster"],
        [
            ["torchvision's dataset, item by item", f"{tutorial:.2f}", 1],
            ["load_directory", f"{ours:.3f}", f"{tutorial / ours:.0f}"],
        ],
    )


def memory(root: Path, folder: Path) -> None:
    files = [folder / name for name in ("tutorial_raw", "tutorial_processed", "our_raw", "our_processed")]
    steps: dict[str, tuple[Cost, Cost]] = {
        "raw data": (measure(tutorial_raw, root, files[0]), measure(our_raw, root, files[2])),
        "split": (measure(tutorial_processed, *files[:2]), measure(our_processed, *files[2:])),
        "one epoch of training": (measure(tutorial_training, files[1]), measure(our_training, files[3])),
    }
    rows: list[list[object]] = [
        [f"peak MiB: {step}", f"{a.peak_mib:.0f}", f"{b.peak_mib:.0f}", f"{b.peak_mib / a.peak_mib:.2f}"]
        for step, (a, b) in steps.items()
    ]
    peaks = [max(cost.peak_mib for cost in costs) for costs in zip(*steps.values(), strict=True)]
    rows.append(["**peak MiB: the largest**", *(f"{peak:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.2f}"])
    stored = [sum(file.stat().st_size for file in pair) / 2**20 for pair in (files[:2], files[2:])]
    rows.append(["MiB stored between steps", *(f"{size:.0f}" for size in stored), f"{stored[1] / stored[0]:.3f}"])
    print_table(["step", "float32 tensors, pickled", "this project", "ratio"], rows)


if __name__ == "__main__":
    main()
