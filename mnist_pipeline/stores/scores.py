"""The labels that a version gives to a set of images: predicted once, and kept beside the version.

<version>/predicted-<images>.labels    SHA-256 of the weights and of model.onnx, a seal of what follows, the labels
                                       (little-endian int32)
"""

import hashlib
import logging

import numpy as np

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import Predictor, require_task
from mnist_pipeline.ml.records import NO_LABEL, UNKNOWN, Digests
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ObjectMissing
from mnist_pipeline.stores.versions import DIGEST_LENGTH
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

STORED = np.dtype("<i4")
SHA256_BYTES = 32


def predicted_labels(
    store: ModelStore, name: str, split: LabelledImages, spec: TaskSpec, digest: str
) -> tuple[Digests, np.ndarray]:
    """Return the digests of a version, and the label of `spec` that it predicts for each image of `split`.

    `digest` is the content digest of the images; the labels are int64 (N,), NO_LABEL for a class that is none of
    `spec`, UNKNOWN where the version does not know the true one. A version predicts them once; then they are read, in
    one request, and the version is verified when it is deployed. Raises what `store.load_onnx` and `Predictor` raise
    for a version that cannot be used, and ModelError for one of another task, or that knows none of the classes.
    """
    if (kept := _read(store, name, digest, spec)) is not None:
        return kept
    manifest, onnx = store.load_onnx(name)
    require_task(manifest, spec.name)
    # On the CPU, as model_evaluation does: scores from two devices could differ by an image.
    predicted = Predictor(manifest, onnx, device="cpu").predict(split.images).argmax(1)
    if manifest.task.class_names != spec.class_names:
        predicted = _by_name(predicted, manifest, split.labels, spec)
    keep_predicted_labels(store, manifest, digest, spec, predicted)
    return manifest.digests, predicted


def _by_name(predicted: np.ndarray, manifest: ModelManifest, labels: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Return labels of `spec` for those of a version that was made when there were other classes."""
    label_now = {name: label for label, name in enumerate(spec.class_names)}
    named = np.array([label_now.get(name, NO_LABEL) for name in manifest.task.class_names])[predicted]
    knows = np.isin(spec.class_names, manifest.task.class_names)
    if not knows[labels].any():
        raise ModelError(f"{manifest.name} knows none of the classes of the test images")
    return np.where(knows[labels], named, UNKNOWN)


def keep_predicted_labels(
    store: ModelStore, manifest: ModelManifest, digest: str, spec: TaskSpec, predicted: np.ndarray
) -> None:
    """Keep the labels of `spec`, integers (N,), that a version predicted for the images of this content digest."""
    model, data = bytes.fromhex(f"{manifest.weights_sha256}{manifest.onnx_sha256}"), predicted.astype(STORED).tobytes()
    store.put(_key(manifest.name, digest), model + _seal(model, digest, spec, data) + data)


def _read(store: ModelStore, name: str, digest: str, spec: TaskSpec) -> tuple[Digests, np.ndarray] | None:
    """The labels that were kept; None where there are none that can be used."""
    try:
        content, _ = store.read_object(_key(name, digest))
    except ObjectMissing:
        return None
    ends = (2 * SHA256_BYTES, 3 * SHA256_BYTES)
    model, seal, data = content[: ends[0]], content[ends[0] : ends[1]], content[ends[1] :]
    if seal != _seal(model, digest, spec, data):
        log.warning("%s is damaged, or of other images or earlier code, and made anew", _key(name, digest))
        return None
    return Digests(model[:SHA256_BYTES].hex(), model[SHA256_BYTES:].hex()), np.frombuffer(data, STORED).astype(np.int64)


def _seal(model: bytes, digest: str, spec: TaskSpec, data: bytes) -> bytes:
    """The SHA-256 of labels together with the model and the images that they are of, and the classes they stand for."""
    classes = (spec.name, spec.class_names)
    said = "" if classes == (MNIST.name, MNIST.class_names) else f"{classes} "  # there were no others before
    return hashlib.sha256(f"{said}{model.hex()} {digest} ".encode() + data).digest()


def _key(name: str, digest: str) -> str:
    return f"{name}/predicted-{digest[:DIGEST_LENGTH]}.labels"
