"""Versions in a model store, as a training saves them and the gate deploys them."""

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.export import to_onnx
from mnist_pipeline.ml.manifest import Decision, ModelManifest, SplitRecord
from mnist_pipeline.ml.model import model_from_bytes
from mnist_pipeline.ml.records import Evaluation, ModelRecord, Splits
from mnist_pipeline.ml.settings import DeploymentSettings, TrainingSettings
from mnist_pipeline.ml.suite import suite
from mnist_pipeline.ml.training import TrainingResult
from mnist_pipeline.stores import ModelStore
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.stores.deployment import decide_and_deploy
from mnist_pipeline.stores.scores import keep_predicted_labels
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline_tests.task.examples import SPEC


def save(
    store: ModelStore,
    trained: TrainingResult,
    settings: TrainingSettings,
    weights: bytes | None = None,
    onnx: bytes | None = None,
    splits: dict[str, SplitRecord] | None = None,
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
        splits=splits,
    )


@cache
def exported(weights: bytes, settings: str) -> bytes:
    """The file `model.onnx` of these weights."""
    return to_onnx(model_from_bytes(weights, NetworkSettings.model_validate_json(settings), SPEC), SPEC)


def decide_by_kept_labels(
    store: ModelStore,
    version: ModelManifest,
    splits: Splits,
    policy: DeploymentSettings,
    predicted: np.ndarray | None = None,
    before: Callable[[], None] = lambda: None,
) -> Decision:
    """Let the gate decide about a candidate, whose labels are kept, as `model_evaluation` leaves them.

    `predicted` are those labels, of all images of the suite; without them it is right about all. `before` is called
    when all is there.
    """
    digest = content_digest(splits.test)
    [images] = suite(splits, digest).sets
    labels = images.labels if predicted is None else predicted
    keep_predicted_labels(store, version, images.digest, splits.spec, labels.astype(int))
    model = ModelRecord(
        name=version.name,
        weights_sha256=version.weights_sha256,
        validation_accuracy=1,
        validation_loss=0,
        best_epoch=1,
    )
    construct: Any = Evaluation.model_construct  # with all of it that the gate reads
    evaluation = construct(model=model, test_digest=digest)
    before()
    return decide_and_deploy(store, policy, evaluation, splits, "test").decision


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
