"""The file `model.onnx` of versions from before there was one: made of their weights when it is first asked for.

A manifest is never rewritten, so the digest stands beside it, in `onnx.json`, which is written last.
"""

import hashlib
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.stores.errors import CorruptModel, NotExported, ObjectChanged, ObjectMissing
from mnist_pipeline.stores.objects import ObjectStore

ONNX = "model.onnx"
ONNX_RECORD = "onnx.json"

PATTERNS = 64
"""Images of random grey values on which the file is compared with the weights: the validation images are not here."""


class OnnxRecord(BaseModel, frozen=True):
    """The content of `onnx.json`."""

    onnx_sha256: str
    exporter: str
    torch_version: str


def recorded_digest(store: ObjectStore, manifest: ModelManifest) -> str | None:
    """Return the SHA-256 (hex) of the `model.onnx` of a version; None if there is none yet. Raises CorruptModel."""
    if manifest.onnx_sha256:
        return manifest.onnx_sha256
    try:
        return OnnxRecord.model_validate_json(store.read_object(f"{manifest.name}/{ONNX_RECORD}")[0]).onnx_sha256
    except ObjectMissing:
        return None
    except ValidationError as error:
        raise CorruptModel(
            f"{ONNX_RECORD} of {manifest.name} is damaged; delete it to have it made anew: {error}"
        ) from error


def export_version(store: ObjectStore, manifest: ModelManifest, weights: bytes) -> str:
    """Make `model.onnx` of the weights, as they predicted when they were saved, and return its SHA-256 (hex).

    Of several processes that do so at once the first one's file stays. Raises NotExported where PyTorch is not
    installed, CorruptModel if the weights cannot be exported or another file is there already.
    """
    try:
        import torch

        from mnist_pipeline.ml import export
        from mnist_pipeline.ml.model import model_from_bytes, predict_logits
    except ModuleNotFoundError as error:
        raise NotExported(
            f"{manifest.name} was saved before there was {ONNX}, and making it needs {error.name}, which is not "
            f"installed here: run `python -m mnist_pipeline export {manifest.name}` in the environment of the pipeline"
        ) from error
    import numpy as np

    spec = manifest.task
    patterns = np.random.default_rng(0).integers(0, 256, (PATTERNS, *spec.array_shape), np.uint8)
    try:
        network = model_from_bytes(weights, manifest.network, spec)
        with suppress(ObjectChanged):
            store._create(f"{manifest.name}/{ONNX}", export.to_onnx(network, spec))
        onnx, _ = store.read_object(f"{manifest.name}/{ONNX}")
        export.require_same(onnx, spec, patterns, predict_logits(network, patterns, spec))
    except ModelError as error:
        raise CorruptModel(f"{manifest.name} cannot be exported, or has another {ONNX} already: {error}") from error
    digest = hashlib.sha256(onnx).hexdigest()
    record = OnnxRecord(onnx_sha256=digest, exporter="torch.onnx.export(dynamo=False)", torch_version=torch.__version__)
    with suppress(ObjectChanged):
        store._create(f"{manifest.name}/{ONNX_RECORD}", record.model_dump_json(indent=2).encode())
    return digest
