"""The training recipe that a user would otherwise copy: the baseline to beat, side by side (`benchmarks.training`).

It reproduces the settings of the widely copied Dagster MNIST tutorial: float32, batches of 64
through a DataLoader, Adam 1e-3 (weight decay 1e-5), StepLR(10, 0.1), stop after 7 epochs without
a better validation accuracy, 30 epochs at most, no augmentation, last weights kept.

    .venv/bin/python -m benchmarks.reference_training --data $MNIST_DIR --seed 0
    .venv/bin/python -m benchmarks.reference_training --data $MNIST_DIR --until 0.995

Prints one JSON line an epoch: seconds of training and validation so far (test scoring left out),
training samples a second, validation and test accuracy (fractions).
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def read_idx(path: Path) -> torch.Tensor:
    """Read one IDX file of unsigned bytes, gzipped or not, as a uint8 tensor."""
    gz = path.with_name(path.name + ".gz")
    blob = gzip.decompress(gz.read_bytes()) if gz.exists() else path.read_bytes()
    shape = [int.from_bytes(blob[4 + 4 * d : 8 + 4 * d], "big") for d in range(blob[3])]
    flat = np.frombuffer(blob, np.uint8, offset=4 + 4 * len(shape)).copy()
    return torch.from_numpy(flat).reshape(shape)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 28, 28) -> normalised float32 (N, 1, 28, 28)."""
    return ((images.float() / 255 - 0.1307) / 0.3081).unsqueeze(1)


def network() -> nn.Module:
    """The tutorial's three-convolution network, 455,754 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1),
        nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(1152, 256), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, batches) -> float:
    hits = [(model(x).argmax(1) == y).float() for x, y in batches]
    return torch.cat(hits).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--until", type=float, default=2.0, help="stop at this test accuracy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    images, labels = (read_idx(args.data / f"train-{k}-ubyte") for k in ("images-idx3", "labels-idx1"))
    test_images, test_labels = (read_idx(args.data / f"t10k-{k}-ubyte") for k in ("images-idx3", "labels-idx1"))
    train, val = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=42, stratify=labels)
    train_set = TensorDataset(normalize(images[train]), labels[train].long())
    val_set = TensorDataset(normalize(images[val]), labels[val].long())
    test_set = TensorDataset(normalize(test_images), test_labels.long())

    model, loss_of = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)
    best, stale, spent, training = 0.0, 0, 0.0, 0.0
    for epoch in range(args.epochs):
        began = time.perf_counter()
        model.train()
        for x, y in DataLoader(train_set, 64, shuffle=True):
            optimizer.zero_grad()
            out = model(x)
            loss = loss_of(out, y)
            loss.backward()
            optimizer.step()
            loss.item(), (out.argmax(1) == y).sum().item()
        training += time.perf_counter() - began
        model.eval()
        val_accuracy = accuracy(model, DataLoader(val_set, 64))
        spent += time.perf_counter() - began
        schedule.step()
        test_accuracy = accuracy(model, DataLoader(test_set, 500))
        print(json.dumps({
            "epoch": epoch + 1, "seconds": round(spent, 2),
            "train_samples_per_s": round((epoch + 1) * len(train_set) / training),
            "val_accuracy": round(val_accuracy, 5), "test_accuracy": round(test_accuracy, 5),
        }), flush=True)  # fmt: skip
        best, stale = (val_accuracy, 0) if val_accuracy > best + 1e-5 else (best, stale + 1)
        if stale >= 7 or test_accuracy >= args.until:
            break


if __name__ == "__main__":
    main()
