"""Versions in a model store, as a training saves them and the gate deploys them."""

import hashlib
from functools import cache

from mnist_pipeline.ml.export import to_onnx
from mnist_pipeline.ml.manifest import Decision, ModelManifest
from mnist_pipeline.ml.model import model_from_bytes
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import TrainingResult
from mnist_pipeline.stores import ModelStore
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline_tests.task.examples import SPEC


def save(
    store: ModelStore,
    trained: TrainingResult,
    settings: TrainingSettings,
    weights: bytes | None = None,
    onnx: bytes | None = None,
) -> ModelManifest:
    """Save a new version, with `weights` in place of those that were trained, or another `onnx` file."""
    return store.save(
        weights or trained.weights,
        onnx or exported(trained.weights, settings.architecture().model_dump_json()),
        task=SPEC,
        settings=settings,
        history=trained.history,
        best_epoch=trained.best_epoch,
        data_version="data",
        code_version="1",
        run_id="run",
    )


@cache
def exported(weights: bytes, settings: str) -> bytes:
    """The file `model.onnx` of these weights."""
    return to_onnx(model_from_bytes(weights, NetworkSettings.model_validate_json(settings), SPEC), SPEC)


def deploy(store: ModelStore, name: str, weights: bytes) -> Decision:
    """Deploy a version by force, as one that has these weights."""
    decision = new_decision(
        outcome="promoted",
        strategy="force",
        reason="a test",
        version=name,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        incumbent=store.production(),
        test_accuracy=0.9,
        actor="test",
    )
    store.promote(decision)
    return decision
