"""A small model that knows its digits, deployed in a store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_pipeline.ml.data import no_images, split
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import TrainingResult, train
from mnist_pipeline.stores import LocalModelStoreResource
from mnist_pipeline_tests.conftest import embedded_digits
from mnist_pipeline_tests.serve.service import Service, chromium, deploy, save

GOOD = TrainingSettings(
    conv_channels=[8, 16, 32], hidden_units=[64], epochs=5, batch_size=64, learning_rate=0.01, conv_dropout=0
)


@pytest.fixture(scope="session")
def good() -> TrainingResult:
    """Trained on all embedded digits."""
    return train(GOOD, split(embedded_digits(), no_images(), SplitSettings()))


@pytest.fixture
def store(tmp_path: Path) -> LocalModelStoreResource:
    return LocalModelStoreResource(base_path=str(tmp_path / "models"))


@pytest.fixture
def deployed(store: LocalModelStoreResource, good: TrainingResult) -> str:
    name = save(store, good, GOOD)
    deploy(store, name, good.weights)
    return name


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return tmp_path / "labelled"


@pytest.fixture
def service(store: LocalModelStoreResource, deployed: str, labelled: Path) -> Iterator[Service]:
    with Service(store, labelled) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser
