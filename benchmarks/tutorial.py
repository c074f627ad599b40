"""The tutorial's way, as assets: float32 tensors, decoded image by image through torchvision, pickled between steps."""

from pathlib import Path
from typing import Any

import dagster as dg
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms

from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.networks.digit_cnn import DigitCNN
from mnist_pipeline.task.settings import NetworkSettings


def images(root: str | Path, train: bool) -> datasets.MNIST:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return datasets.MNIST(str(root), train=train, transform=transform)


class Data(dg.ConfigurableResource):
    """Where torchvision finds its files."""

    root: str


@dg.asset
def raw_mnist_data(data: Data) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, train in (("train", True), ("test", False)):
        dataset = images(data.root, train)
        tensors[f"{name}_data"] = torch.stack([dataset[index][0] for index in range(len(dataset))])
        tensors[f"{name}_labels"] = torch.tensor([dataset[index][1] for index in range(len(dataset))])
    return tensors


@dg.asset
def processed_mnist_data(raw_mnist_data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    raw = raw_mnist_data
    parts = train_test_split(
        raw["train_data"], raw["train_labels"], test_size=0.2, random_state=42, stratify=raw["train_labels"]
    )
    names = ["train_data", "val_data", "train_labels", "val_labels"]
    copies = {name: part.clone() for name, part in zip(names, parts, strict=True)}
    return copies | {"test_data": raw["test_data"], "test_labels": raw["test_labels"]}


@dg.asset
def digit_classifier(processed_mnist_data: dict[str, torch.Tensor]) -> None:
    """One epoch, of this project's network: the loop and the data are what is compared."""
    model = DigitCNN(NetworkSettings(), MNIST)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train, validation = (
        TensorDataset(processed_mnist_data[f"{name}_data"], processed_mnist_data[f"{name}_labels"])
        for name in ("train", "val")
    )
    for inputs, targets in DataLoader(train, 64, shuffle=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for inputs, _ in DataLoader(validation, 64):
            model(inputs)


ASSETS: list[Any] = [raw_mnist_data, processed_mnist_data, digit_classifier]


def materialize(asset: str, root: Path, home: Path) -> None:
    """One of them, as its step does it, with Dagster's default IO manager."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        dg.materialize(
            ASSETS,
            selection=[asset],
            instance=instance,
            resources={
                "data": Data(root=str(root)),
                "io_manager": dg.FilesystemIOManager(base_dir=str(home / "values")),
            },
        )
