"""The labels that a version gives to a set of images: predicted once, and kept beside the version."""

import io
import logging

import numpy as np

from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ObjectMissing
from mnist_pipeline.stores.versions import DIGEST_LENGTH
from mnist_pipeline.task.dataset import LabelledImages

log = logging.getLogger(__name__)


def predicted_labels(
    store: ModelStore, name: str, split: LabelledImages, digest: str
) -> tuple[ModelManifest, np.ndarray]:
    """Return a version's manifest and the label it predicts for each image of `split` with this content digest.

    The labels are int64 (N,). The version is verified each time, but predicts only where its labels are not kept yet.
    Raises what `store.load` and `Predictor` raise for a version that cannot be used.
    """
    manifest, weights = store.load(name)
    kept = _read(store, manifest, digest, len(split.labels))
    if kept is not None:
        return manifest, kept
    # On the CPU, as model_evaluation does: scores from two devices could differ by an image.
    predicted = Predictor(manifest, weights, device="cpu").predict(split.images).argmax(1)
    keep_predicted_labels(store, name, digest, predicted)
    return manifest, predicted


def keep_predicted_labels(store: ModelStore, name: str, digest: str, predicted: np.ndarray) -> None:
    """Keep the labels, integers (N,), that a version predicted for the images of this content digest."""
    buffer = io.BytesIO()
    np.save(buffer, predicted.astype(np.int32), allow_pickle=False)
    store.put(_key(name, digest), buffer.getvalue())


def _read(store: ModelStore, manifest: ModelManifest, digest: str, images: int) -> np.ndarray | None:
    """The labels that were kept; None where there are none that can be used."""
    key = _key(manifest.name, digest)
    try:
        data, _ = store.read_object(key)
    except ObjectMissing:
        return None
    try:
        labels = np.load(io.BytesIO(data), allow_pickle=False)
        if labels.shape != (images,) or labels.dtype != np.int32:
            raise ValueError(f"{labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= manifest.task.classes:
            raise ValueError("labels of other classes")
    except (ValueError, EOFError) as error:
        log.warning("%s is damaged and made anew: %s", key, error)
        return None
    return labels.astype(np.int64)


def _key(name: str, digest: str) -> str:
    return f"{name}/predicted-{digest[:DIGEST_LENGTH]}.npy"
