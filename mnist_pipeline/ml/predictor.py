"""Predictions with one verified model: the same code for a table of files, a drawing, and a request."""

from typing import Protocol

import numpy as np

from mnist_pipeline.ml.network import INFERENCE_BATCH_SIZE, choose_device, model_from_bytes, predict_probabilities
from mnist_pipeline.ml.records import Decision, ModelManifest
from mnist_pipeline.ml.settings import SIDE


class DeployedModels(Protocol):
    """What a predictor needs of a model store."""

    def production(self) -> Decision | None: ...

    def load(self, name: str) -> tuple[ModelManifest, bytes]: ...


class NoDeployedModel(LookupError):
    """The store has nothing deployed to predict with."""


class Predictor:
    """One verified model with its own preprocessing."""

    def __init__(self, manifest: ModelManifest, weights: bytes, device: str = "auto") -> None:
        """Raises ModelError if the weights are not a finite model of the manifest's architecture."""
        self.manifest = manifest
        self._network = model_from_bytes(weights, manifest.settings).to(choose_device(device))

    @classmethod
    def from_store(cls, store: DeployedModels, device: str = "auto") -> "Predictor":
        """The predictor of what is deployed, which need not be the newest version.

        Raises NoDeployedModel if nothing is, and what `store.load` raises if it is damaged.
        """
        decision = store.production()
        if decision is None:
            raise NoDeployedModel("no model is deployed yet: materialize production_digit_classifier first")
        return cls(*store.load(decision.version), device=device)

    @property
    def version(self) -> str:
        return self.manifest.name

    def verify(self) -> None:
        """Predict a blank and a full image. Raises ModelError if an output is not finite."""
        self.predict(np.stack([np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)]))

    def predict(self, images: np.ndarray, batch_size: int = INFERENCE_BATCH_SIZE) -> np.ndarray:
        """Class probabilities, float32 (N, 10), of uint8 images (N, 28, 28), 0 background to 255 ink.

        Raises ValueError for any other dtype or shape: floats would hide whether they are normalised already.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE):
            raise ValueError(f"images must be uint8 (N, {SIDE}, {SIDE}), not {images.dtype} {images.shape}")
        if not len(images):
            raise ValueError("there is no image to predict")
        return predict_probabilities(self._network, images, self.manifest.normalization, batch_size)
