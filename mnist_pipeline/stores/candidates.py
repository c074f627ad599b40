"""A trained network as a version: with what it says about the validation images, its data, and how it came about."""

from typing import TYPE_CHECKING

from mnist_pipeline.ml import drift
from mnist_pipeline.ml.coverage import coverage_curve
from mnist_pipeline.ml.data import data_version
from mnist_pipeline.ml.manifest import ModelManifest, SplitRecord
from mnist_pipeline.ml.provenance import provenance
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import TRAINING_CODE_VERSION, TrainingSettings
from mnist_pipeline.stores.versions import VersionStore

if TYPE_CHECKING:
    from mnist_pipeline.ml.export import Exported
    from mnist_pipeline.ml.training import TrainingResult


def save_trained(
    store: VersionStore,
    result: "TrainingResult",
    exported: "Exported",
    settings: TrainingSettings,
    splits: Splits,
    kept: dict[str, SplitRecord],
    run_id: str,
    trial: str | None = None,
) -> ModelManifest:
    """Save a training of this process as a new version; `kept` is what `keep_splits` said of its splits."""
    probabilities = exported.answers.probabilities  # of the validation images
    seconds = sum(epoch.seconds for epoch in result.history)
    return store.save(
        result.weights,
        exported.onnx,
        task=splits.spec,
        settings=settings,
        history=result.history,
        best_epoch=result.best_epoch,
        data_version=data_version(splits.spec, *splits.parts.values()),
        code_version=TRAINING_CODE_VERSION,
        run_id=run_id,
        drift_reference=drift.reference(splits.validation.images, probabilities, splits.spec),
        temperature=exported.temperature,
        coverage=coverage_curve(probabilities.max(1), probabilities.argmax(1) == splits.validation.labels),
        splits=kept,
        provenance=provenance(result.device, result.precision, seconds, settings.initial_weights),
        trial=trial,
    )
