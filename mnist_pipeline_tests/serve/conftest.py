"""A small model that knows its classes, deployed in a store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import TrainingResult, train
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline_tests.serve.service import Service, chromium
from mnist_pipeline_tests.task.examples import GOOD as GOOD_SETTINGS
from mnist_pipeline_tests.task.examples import SPEC, embedded_images
from mnist_pipeline_tests.versions import deploy, save

GOOD = TrainingSettings(**GOOD_SETTINGS)


@pytest.fixture(scope="session")
def good() -> TrainingResult:
    """Trained on the whole sample."""
    return train(GOOD, split(embedded_images(), no_images(SPEC), SplitSettings()))


@pytest.fixture
def store(tmp_path: Path) -> LocalModelStore:
    return LocalModelStore(base_path=str(tmp_path / "models"))


@pytest.fixture
def deployed(store: LocalModelStore, good: TrainingResult) -> str:
    name = save(store, good, GOOD).name
    deploy(store, name, good.weights)
    return name


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return tmp_path / "labelled"


@pytest.fixture
def service(store: LocalModelStore, deployed: str, labelled: Path) -> Iterator[Service]:
    with Service(store, labelled) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser
