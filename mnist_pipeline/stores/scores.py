"""The labels that a version gives to a set of images: predicted once, and kept beside the version.

<version>/predicted-<images>.labels    SHA-256 of the weights and of model.onnx, a seal of what follows, the labels
                                       (little-endian int32)
"""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import Predictor, require_task
from mnist_pipeline.ml.records import NO_LABEL, UNKNOWN, Digests
from mnist_pipeline.ml.suite import ImageSet
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import CorruptModel, ObjectMissing, UnknownModel
from mnist_pipeline.stores.versions import DIGEST_LENGTH
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

STORED = np.dtype("<i4")
SHA256_BYTES = 32


def predicted_labels(
    store: ModelStore, name: str, sets: Sequence[ImageSet], spec: TaskSpec
) -> tuple[Digests, list[np.ndarray]]:
    """Return the digests of a version, and the label of `spec` that it predicts for each image of each set.

    The labels are int64 (N,), NO_LABEL for a class that is none of `spec`, UNKNOWN where the version does not know the
    true one. A version predicts a set once; then they are read, in one request, and the version is verified when it is
    deployed. Raises what `store.load_onnx` and `Predictor` raise for a version that cannot be used, and ModelError for
    one of another task, or that knows none of the classes of the first set.
    """
    kept = [_read(store, name, images.digest, spec) for images in sets]
    digests = {found[0] for found in kept if found}
    if all(kept) and len(digests) == 1:
        return digests.pop(), [found[1] for found in kept if found]
    try:
        manifest, onnx = store.load_onnx(name)
        require_task(manifest, spec.name)
        # On the CPU, as model_evaluation does: scores from two devices could differ by an image.
        predictor = Predictor(manifest, onnx, device="cpu")
    except (UnknownModel, CorruptModel, ModelError) as error:
        if kept[0] is None:
            raise
        # Damaged after it was scored: the test images can be compared, what came since cannot.
        log.warning("%s answers no more about new images: %s", name, error)
        first, unasked = kept[0], [np.full(len(images.labels), UNKNOWN) for images in sets[1:]]
        return first[0], [first[1], *unasked]
    answers = []
    for images, found in zip(sets, kept, strict=True):
        if found and found[0].same(manifest.digests):
            answers.append(found[1])
        else:
            answers.append(predict_labels(store, predictor, images, spec))
    if (answers[0] == UNKNOWN).all():
        raise ModelError(f"{manifest.name} knows none of the classes of the test images")
    return manifest.digests, answers


def predict_labels(store: ModelStore, predictor: Predictor, images: ImageSet, spec: TaskSpec) -> np.ndarray:
    """Return what `predicted_labels` does about one set, predicted now, and keep it."""
    manifest = predictor.manifest
    predicted = np.concatenate([predictor.predict(part).argmax(1) for part in images.parts()])
    if manifest.task.class_names != spec.class_names:
        predicted = _by_name(predicted, manifest, images.labels, spec)
    keep_predicted_labels(store, manifest, images.digest, spec, predicted)
    return predicted


def _by_name(predicted: np.ndarray, manifest: ModelManifest, labels: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Return labels of `spec` for those of a version that was made when there were other classes."""
    label_now = {name: label for label, name in enumerate(spec.class_names)}
    named = np.array([label_now.get(name, NO_LABEL) for name in manifest.task.class_names])[predicted]
    knows = np.isin(spec.class_names, manifest.task.class_names)
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
