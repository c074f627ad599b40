"""The fixtures of the service, for the tests of its pages with pictures of the task."""

import os
from pathlib import Path

import pytest

from mnist_pipeline_tests.serve.conftest import browser, deployed, good, labelled, service, store

__all__ = ["browser", "deployed", "good", "labelled", "service", "store"]


@pytest.fixture(scope="session")
def full_mnist_dir() -> Path:
    """The folder of all 70,000 images, or a skip that says what is missing."""
    folder = os.environ.get("MNIST_DIR")
    if not folder:
        pytest.skip("MNIST_DIR does not name a folder with all 70,000 images")
    return Path(folder)
