"""The metrics for Prometheus. Every name begins with `mnist_`, whatever the task: dashboards know them so."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from mnist_pipeline.serve.deployment import Served

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("mnist_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "mnist_request_seconds", "From the first byte to the answer.", ["path"], buckets=SECONDS, registry=registry
        )
        self.errors = Counter("mnist_errors", "Requests refused or failed, by error code.", ["code"], registry=registry)
        self.batch_images = Histogram(
            "mnist_batch_images", "Images in one forward pass.", buckets=IMAGES, registry=registry
        )
        self.confidence = Histogram(
            "mnist_confidence", "Confidence of predictions, 0..1.", buckets=CONFIDENCES, registry=registry
        )
        self.predictions = Counter("mnist_predictions", "Images predicted, by label.", ["label"], registry=registry)
        self.needs_review = Counter("mnist_needs_review", "Predictions below the threshold.", registry=registry)
        self.corrections = Counter("mnist_corrections", "Corrections stored.", registry=registry)
        self.deployments = Counter(
            "mnist_deployments",
            "Seen at the store: served, refused, store_error.",
            ["outcome"],
            registry=registry,
        )
        self._model = Gauge("mnist_model_info", "1 for what is served.", ["model", "weights_sha256"], registry=registry)

    def render(self, served: Served | None) -> bytes:
        """Return all metrics in Prometheus's text format."""
        self._model.clear()
        if served:
            self._model.labels(served.predictor.version, served.predictor.manifest.weights_sha256).set(1)
        return generate_latest(self._registry)
