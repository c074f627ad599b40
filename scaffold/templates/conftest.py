"""The fixtures of the service, for tests with pictures of the task."""

from mnist_pipeline_tests.serve.conftest import browser, deployed, good, labelled, service, store

__all__ = ["browser", "deployed", "good", "labelled", "service", "store"]
