"""`python -m mnist_pipeline.serve --check VERSION`: whether a version answers real requests, before it is deployed.

The service is started as it would be with this version deployed, on a free port of loopback, and asked over HTTP.
"""

import json
import os
import resource
import socket
import statistics
import sys
import time
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import uvicorn
from safetensors.numpy import load_file

from mnist_pipeline.ml.manifest import Decision, ModelManifest
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.serve.app import create_app
from mnist_pipeline.serve.connections import server_config
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline.stores import ModelStore

ROUNDS = 5
"""The times that each image is asked about: what the first requests take is not what the others do."""

PATTERNS = 32
"""Images by chance that are asked about where none are given."""

ANSWER_SECONDS = 30
"""The longest that one answer may take."""

TOLERANCE = 1e-4
"""The most that the probabilities of an image may sum to other than 1, in single precision."""


class NotServed(Exception):
    """The version cannot be served; the message says why."""


class _AsIfDeployed:
    """A store in which one version is deployed."""

    def __init__(self, store: ModelStore, name: str) -> None:
        manifest = store.manifest(name)
        self._store, self._now = store, datetime.now(UTC)
        self._digests = {"weights_sha256": manifest.weights_sha256, "onnx_sha256": manifest.onnx_sha256}
        self._name = name

    def production(self) -> Decision:
        return Decision(
            id="check", outcome="promoted", version=self._name, decided_at=self._now, reason="a check", **self._digests
        )

    def load_onnx(self, name: str) -> tuple[ModelManifest, bytes]:
        return self._store.load_onnx(name)


def check(store: ModelStore, name: str, expected: Path | None = None) -> dict[str, float]:
    """Serve a version and ask it about images; return how many, how quickly, and how much memory it took.

    `expected` is a safetensors file with `images`, uint8 (N, *spec.array_shape), and the `labels` that it must give
    them; without it the answers must be the predictor's about random images. Raises NotServed if they are others, or
    if there are none, and what the store raises.
    """
    app = create_app(ServeSettings(port=0), _AsIfDeployed(store, name))  # type: ignore[arg-type]  # all that is asked of it
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(ServeSettings(port=0), app))
    thread = Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    connection = HTTPConnection("127.0.0.1", listening.getsockname()[1], timeout=ANSWER_SECONDS)
    try:
        ready = _ask(connection, "GET", "/readyz")
        if not ready["ready"]:
            Predictor(*store.load_onnx(name)).verify()  # for the reason
            raise NotServed("; ".join(ready["problems"]) or "the service does not take it")
        images, labels = _asked(store, name, expected)
        times = [_compare(connection, images, labels) for _ in range(ROUNDS)]
    finally:
        connection.close()
        server.should_exit = True
        thread.join()
        listening.close()
    milliseconds = sorted(1000 * seconds for round_of in times for seconds in round_of)
    return {
        "requests": len(milliseconds),
        "median_ms": statistics.median(milliseconds),
        "slowest_ms": milliseconds[-1],
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "onnx_bytes": len(store.load_onnx(name)[1]),
    }


def _asked(store: ModelStore, name: str, expected: Path | None) -> tuple[np.ndarray, np.ndarray]:
    if expected:
        arrays = load_file(expected)
        return arrays["images"], arrays["labels"]
    predictor = Predictor(*store.load_onnx(name))
    shape = (PATTERNS, *predictor.spec.array_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return images, predictor.predict(images).argmax(1)


def _compare(connection: HTTPConnection, images: np.ndarray, labels: np.ndarray) -> list[float]:
    """Ask about each image; return the seconds that each answer took."""
    times = []
    for image, label in zip(images.tolist(), labels.tolist(), strict=True):
        body = json.dumps({"image": image})
        began = time.perf_counter()
        answer = _ask(connection, "POST", "/predict?prepared=true&probabilities=true&review=false", body)
        times.append(time.perf_counter() - began)
        [prediction] = answer["predictions"]
        if prediction["prepared"] == image and prediction["label"] != label:
            raise NotServed(f"the service answers {prediction['label']} where the evaluation had {label}")
        if abs(sum(prediction["probabilities"]) - 1) > TOLERANCE:
            raise NotServed(f"its probabilities sum to {sum(prediction['probabilities']):.4f}, not to 1")
    return times


def _ask(connection: HTTPConnection, method: str, path: str, body: str | None = None) -> dict[str, Any]:
    connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200 and path != "/readyz":
        raise NotServed(f"{path} answers {response.status}: {content[:200].decode(errors='replace')}")
    found: dict[str, Any] = json.loads(content)
    return found


def main(store: ModelStore, name: str, expected: str | None) -> int:
    """Check a version; print what was found as JSON, or why it cannot be served. Returns the exit status."""
    try:
        found = check(store, name, Path(expected) if expected else None)
    except Exception as error:  # whatever it is, the version is not to be deployed
        print(f"error: {name} cannot be served: {error or type(error).__name__}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # threads of the runtime may be left, and nothing else is to be done
