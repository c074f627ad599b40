"""The metrics for Prometheus. Every name begins with `mnist_`, whatever the task: dashboards know them so."""

import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from mnist_pipeline.serve.deployment import Served
from mnist_pipeline.serve.settings import SHARED_METRICS

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)


class Metrics:
    """Counters of one service; where it has several processes, of all of them together."""

    def __init__(self, served: Callable[[], Served | None]) -> None:
        counters = CollectorRegistry()
        self.requests = Counter("mnist_requests", "Requests answered.", ["path", "status"], registry=counters)
        self.seconds = Histogram(
            "mnist_request_seconds", "From the first byte to the answer.", ["path"], buckets=SECONDS, registry=counters
        )
        self.errors = Counter("mnist_errors", "Requests refused or failed, by error code.", ["code"], registry=counters)
        self.batch_images = Histogram(
            "mnist_batch_images", "Images in a request, which are one forward pass.", buckets=IMAGES, registry=counters
        )
        self.confidence = Histogram(
            "mnist_confidence", "Confidence of predictions, 0..1.", buckets=CONFIDENCES, registry=counters
        )
        self.predictions = Counter("mnist_predictions", "Images predicted, by label.", ["label"], registry=counters)
        self.needs_review = Counter("mnist_needs_review", "Predictions below the threshold.", registry=counters)
        self.unlike_training_data = Counter(
            "mnist_unlike_training_data", "Predictions about images that look like no class.", registry=counters
        )
        self.corrections = Counter("mnist_corrections", "Corrections stored.", registry=counters)
        self.corrections_held = Counter(
            "mnist_corrections_held", "Answers that a correction waits to be confirmed.", registry=counters
        )
        self.deployments = Counter(
            "mnist_deployments",
            "Seen at the store: served, refused, store_error.",
            ["outcome"],
            registry=counters,
        )
        self._registry, shared = counters, os.environ.get(SHARED_METRICS)
        if shared:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, shared)
        else:
            ProcessCollector(registry=counters)  # it tells of one process only
        self._registry.register(_Model(served))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def predicted(self, label: int, confidence: float) -> None:
        """Count the prediction of an image."""
        self.confidence.observe(confidence)
        self.predictions.labels(label).inc()

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _Model:
    """The model that this process serves."""

    def __init__(self, served: Callable[[], Served | None]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("mnist_model_info", "1 for what is served.", labels=["model", "weights_sha256"])
        if served := self._served():
            info.add_metric([served.predictor.version, served.predictor.manifest.weights_sha256], 1)
        yield info
