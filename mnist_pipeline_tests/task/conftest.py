"""The fixtures of the service, for the tests of its pages with pictures of the task."""

from mnist_pipeline_tests.serve.conftest import browser, deployed, good, labelled, service, store

__all__ = ["browser", "deployed", "good", "labelled", "service", "store"]
