"""A model store of each kind, on real servers."""

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import TrainingResult
from mnist_pipeline.stores import (
    AzureModelStore,
    GoogleModelStore,
    LocalModelStore,
    MemoryModelStore,
    ModelStore,
    S3ModelStore,
)
from mnist_pipeline_tests import versions
from mnist_pipeline_tests.task.examples import TINY

KINDS = ("local", "memory", "s3", "azure", "google")
PREFIX = "some/models"


def make_store(kind: str, request: pytest.FixtureRequest) -> ModelStore:
    """An empty store."""
    match kind:
        case "local":
            return LocalModelStore(base_path=str(request.getfixturevalue("tmp_path") / "models"))
        case "memory":
            return MemoryModelStore(bucket=uuid.uuid4().hex, prefix=PREFIX)
        case "s3":
            url = request.getfixturevalue("s3_url")
            return S3ModelStore(bucket=request.getfixturevalue("s3_bucket"), prefix=PREFIX, endpoint_url=url)
        case "azure":
            return AzureModelStore(bucket=request.getfixturevalue("azure_container"), prefix=PREFIX)
        case _:
            return GoogleModelStore(bucket=request.getfixturevalue("google_bucket"), prefix=PREFIX)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> ModelStore:
    return make_store(request.param, request)


@pytest.fixture
def save_to(trained: TrainingResult) -> Callable[..., ModelManifest]:
    """Saves a new version in a store."""

    def save_to(
        store: ModelStore,
        weights: bytes | None = None,
        settings: TrainingSettings | None = None,
        onnx: bytes | None = None,
    ):
        return versions.save(store, trained, settings or TrainingSettings(**TINY), weights, onnx)

    return save_to


@pytest.fixture
def save(store: ModelStore, save_to: Callable[..., ModelManifest]) -> Callable[..., ModelManifest]:
    """Saves a new version in the store of each kind."""
    return partial(save_to, store)


@pytest.fixture
def weights_file(trained: TrainingResult, tmp_path: Path) -> Path:
    """The weights of a small network, for processes."""
    path = tmp_path / "weights"
    path.write_bytes(trained.weights)
    return path
