"""The labels that a version gives to a set of images: predicted once, and kept beside the version.

<version>/predicted-<images>.labels    SHA-256 of the weights, a seal of what follows, the labels (little-endian int32)
"""

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
SHA256_BYTES = 32


def predicted_labels(store: ModelStore, name: str, split: LabelledImages, digest: str) -> tuple[str, np.ndarray]:
    """Return the SHA-256 (hex) of a version's weights, and the label it predicts for each image of `split`.

    `digest` is the content digest of the images; the labels are int64 (N,). A version predicts them once; then they are
    read, in one request, and the version is verified when it is deployed. Raises what `store.load` and `Predictor`
    raise for a version that cannot be used.
    """
    if (kept := _read(store, name, digest)) is not None:
        return kept
    manifest, weights = store.load(name)
    # On the CPU, as model_evaluation does: scores from two devices could differ by an image.
    predicted = Predictor(manifest, weights, device="cpu").predict(split.images).argmax(1)
    keep_predicted_labels(store, manifest, digest, predicted)
    return manifest.weights_sha256, predicted


def keep_predicted_labels(store: ModelStore, manifest: ModelManifest, digest: str, predicted: np.ndarray) -> None:
    """Keep the labels, integers (N,), that a version predicted for the images of this content digest."""
    weights, data = bytes.fromhex(manifest.weights_sha256), predicted.astype(STORED).tobytes()
    store.put(_key(manifest.name, digest), weights + _seal(weights, digest, data) + data)


def _read(store: ModelStore, name: str, digest: str) -> tuple[str, np.ndarray] | None:
    """The labels that were kept; None where there are none that can be used."""
    try:
        content, _ = store.read_object(_key(name, digest))
    except ObjectMissing:
        return None
    weights, seal, data = content[:SHA256_BYTES], content[SHA256_BYTES : 2 * SHA256_BYTES], content[2 * SHA256_BYTES :]
    if seal != _seal(weights, digest, data):
        log.warning("%s is damaged, or of other images or earlier code, and made anew", _key(name, digest))
        return None
    return weights.hex(), np.frombuffer(data, STORED).astype(np.int64)


def _seal(weights: bytes, digest: str, data: bytes) -> bytes:
    """The SHA-256 of labels together with the model and the images that they are of."""
    return hashlib.sha256(f"{weights.hex()} {digest} ".encode() + data).digest()


def _key(name: str, digest: str) -> str:
    return f"{name}/predicted-{digest[:DIGEST_LENGTH]}.labels"
