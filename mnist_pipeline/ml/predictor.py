"""Predictions with one verified model: the same code for a table of files, a drawing, and a request."""

from typing import Protocol

import numpy as np

from mnist_pipeline.ml.manifest import Decision, ModelManifest
from mnist_pipeline.ml.model import (
    INFERENCE_BATCH_SIZE,
    ModelError,
    choose_device,
    model_from_bytes,
    predict_probabilities,
)
from mnist_pipeline.task.spec import TaskSpec


class DeployedModels(Protocol):
    """The part of a model store that a predictor needs."""

    def production(self) -> Decision | None: ...

    def load(self, name: str) -> tuple[ModelManifest, bytes]: ...


class NoDeployedModel(LookupError):
    """The store has nothing deployed to predict with."""


class Predictor:
    """One verified model with its own preprocessing."""

    def __init__(self, manifest: ModelManifest, weights: bytes, device: str = "auto") -> None:
        """Raises ModelError if the weights are not a finite model of the manifest's architecture."""
        self.manifest = manifest
        self._network = model_from_bytes(weights, manifest.network, manifest.task).to(choose_device(device))

    @classmethod
    def from_store(cls, store: DeployedModels, device: str = "auto") -> "Predictor":
        """Return the predictor of what is deployed, which need not be the newest version.

        Raises NoDeployedModel if nothing is, and what `store.load` raises if it is damaged.
        """
        decision = store.production()
        if decision is None:
            raise NoDeployedModel("no model is deployed yet: materialize production_digit_classifier first")
        return cls(*store.load(decision.version), device=device)

    @property
    def version(self) -> str:
        """The name of the version in the model store."""
        return self.manifest.name

    @property
    def spec(self) -> TaskSpec:
        """The classes of the model and the shape of its images."""
        return self.manifest.task

    def require_shape(self, spec: TaskSpec) -> None:
        """Raise ModelError if the model is for images of another shape than those that are prepared as `spec` says."""
        if self.spec.array_shape != spec.array_shape:
            raise ModelError(
                f"{self.version} is for images of {self.spec.array_shape}, but {spec.array_shape} is what this code "
                "prepares: deploy a version that was trained on those, by strategy 'force'"
            )

    def verify(self) -> tuple[float, float]:
        """Predict a black and a white image and return the confidences. Raises ModelError if they are not finite."""
        images = np.stack([np.full(self.spec.array_shape, value, np.uint8) for value in (0, 255)])
        black, white = self.predict(images).max(1).tolist()
        return black, white

    def predict(self, images: np.ndarray, batch_size: int = INFERENCE_BATCH_SIZE) -> np.ndarray:
        """Return class probabilities, float32 (N, classes), of uint8 images (N, *spec.array_shape).

        Raises ValueError for any other dtype or shape: floats would hide whether they are normalised already.
        """
        self.spec.require_images(images)
        if not len(images):
            raise ValueError("there is no image to predict")
        return predict_probabilities(self._network, images, self.spec, batch_size)
