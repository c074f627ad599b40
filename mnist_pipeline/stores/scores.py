"""The labels that a version gives to a set of images: predicted once, and kept beside the version."""

import hashlib
import logging

import numpy as np

from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ObjectMissing
from mnist_pipeline.stores.versions import DIGEST_LENGTH
from mnist_pipeline.task.dataset import LabelledImages

log = logging.getLogger(__name__)

STORED = np.dtype("<i4")


def predicted_labels(
    store: ModelStore, name: str, split: LabelledImages, digest: str
) -> tuple[ModelManifest, np.ndarray]:
    """Return a version's manifest and the label it predicts for each image of `split` with this content digest.

    The labels are int64 (N,). The version is verified each time, but predicts only where its labels are not kept yet.
    Raises what `store.load` and `Predictor` raise for a version that cannot be used.
    """
    manifest, weights = store.load(name)
    kept = _read(store, manifest, digest)
    if kept is not None:
        return manifest, kept
    # On the CPU, as model_evaluation does: scores from two devices could differ by an image.
    predicted = Predictor(manifest, weights, device="cpu").predict(split.images).argmax(1)
    keep_predicted_labels(store, manifest, digest, predicted)
    return manifest, predicted


def keep_predicted_labels(store: ModelStore, manifest: ModelManifest, digest: str, predicted: np.ndarray) -> None:
    """Keep the labels, integers (N,), that a version predicted for the images of this content digest."""
    data = predicted.astype(STORED).tobytes()
    store.put(_key(manifest, digest), _seal(manifest, digest, data) + data)


def _read(store: ModelStore, manifest: ModelManifest, digest: str) -> np.ndarray | None:
    """The labels that were kept; None where there are none that can be used."""
    try:
        content, _ = store.read_object(_key(manifest, digest))
    except ObjectMissing:
        return None
    size = hashlib.sha256().digest_size
    seal, data = content[:size], content[size:]
    if seal != _seal(manifest, digest, data):
        log.warning("%s is damaged, or of another model or other images, and made anew", _key(manifest, digest))
        return None
    return np.frombuffer(data, STORED).astype(np.int64)


def _seal(manifest: ModelManifest, digest: str, data: bytes) -> bytes:
    """The SHA-256 of labels together with the model and the images that they are of."""
    return hashlib.sha256(f"{manifest.weights_sha256} {digest} ".encode() + data).digest()


def _key(manifest: ModelManifest, digest: str) -> str:
    return f"{manifest.name}/predicted-{digest[:DIGEST_LENGTH]}.labels"
