"""The same model behind LitServe, with its batching. Started by `benchmarks.serving`."""

import sys
from typing import Any

import litserve as ls
import numpy as np
from fastapi import Request

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.preprocessing import read_image

MAX_BATCH_SIZE = 64
BATCH_TIMEOUT_SECONDS = 0.002


class Digits(ls.LitAPI):
    """The hooks of LitServe."""

    def __init__(self, store: str, threads: int) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_SECONDS)
        self.store, self.threads = store, threads

    def setup(self, device: str) -> None:
        self.predictor = Predictor.from_store(LocalModelStore(base_path=self.store), threads=self.threads)

    def decode_request(self, request: Request, **kwargs: Any) -> np.ndarray:
        form: Any = request  # the annotation makes LitServe pass the form
        return read_image(form["image"].file.read(), self.predictor.spec)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray, **kwargs: Any) -> np.ndarray:
        return self.predictor.predict(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray, **kwargs: Any) -> dict[str, float | int | str]:
        return {
            "model": self.predictor.version,
            "label": int(output.argmax()),
            "confidence": float(output.max()),
        }


if __name__ == "__main__":
    _, store, port, threads = sys.argv
    server = ls.LitServer(Digits(store, int(threads)), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning", access_log=False)
