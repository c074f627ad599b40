"""Group model_pipeline, its beginning: train a candidate and measure it."""

from pathlib import Path
from statistics import harmonic_mean

import dagster as dg
from pydantic import Field

from mnist_pipeline.assets.metadata import picture, table
from mnist_pipeline.ml.records import EpochMetrics, Evaluation, ModelManifest, ModelRecord, Splits
from mnist_pipeline.ml.settings import TRAINING_CODE_VERSION, EvaluationSettings, TrainingSettings
from mnist_pipeline.stores.base import ModelStoreResource

GROUP = "model_pipeline"
TRAINING_POOL = "training"
CRASH_RETRIES = dg.RetryPolicy(max_retries=2, delay=1)
"""For killed steps, stores out of reach, and another deployer in between; bad input is not retried."""


class CheckpointsResource(dg.ConfigurableResource):
    """Where an unfinished training is kept, so that a killed one continues."""

    directory: str = Field(description="A local folder; on several machines, one that they share.")


class ModelConfig(dg.Config, TrainingSettings):
    """Architecture and recipe of the candidate."""


@dg.asset(
    group_name=GROUP,
    kinds={"pytorch"},
    code_version=TRAINING_CODE_VERSION,
    io_manager_key="record_io_manager",
    pool=TRAINING_POOL,
    retry_policy=CRASH_RETRIES,
)
def digit_classifier(
    context: dg.AssetExecutionContext,
    config: ModelConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    checkpoints: CheckpointsResource,
) -> dg.Output[ModelRecord]:
    """A DigitCNN trained on the train split, its weights averaged, of the epoch with the least validation loss, as a
    new immutable version in the model store. A killed training continues after its last whole epoch."""
    from mnist_pipeline.ml import drift
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.network import model_from_bytes, predict_probabilities
    from mnist_pipeline.ml.plots import learning_curves
    from mnist_pipeline.ml.training import TrainingDiverged, discard_checkpoint, train

    def report(metrics: EpochMetrics) -> None:
        context.log.info(
            "epoch %d/%d: training loss %.4f, validation loss %.4f, validation accuracy %.4f, %.0f images/s",
            *(metrics.epoch, config.epochs, metrics.train_loss, metrics.validation_loss),
            *(metrics.validation_accuracy, metrics.images_per_second),
        )
        # An observation is shown while the step still runs, and changes no data version.
        context.log_event(dg.AssetObservation(context.asset_key, metadata=metrics.model_dump()))

    settings = TrainingSettings(**config.model_dump())
    try:
        result = train(settings, processed_mnist_data, report, Path(checkpoints.directory))
    except (TrainingDiverged, ValueError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    validation = processed_mnist_data.validation.images
    network = model_from_bytes(result.weights, settings)
    probabilities = predict_probabilities(network, validation, result.normalization)
    manifest = model_store.save(
        result.weights,
        settings=settings,
        normalization=result.normalization,
        history=result.history,
        best_epoch=result.best_epoch,
        data_version=content_digest(*processed_mnist_data),
        code_version=TRAINING_CODE_VERSION,
        run_id=context.run_id,
        drift_reference=drift.reference(validation, probabilities),
    )
    discard_checkpoint(settings, processed_mnist_data, Path(checkpoints.directory))
    best = manifest.best
    return dg.Output(
        ModelRecord(
            name=manifest.name,
            weights_sha256=manifest.weights_sha256,
            validation_accuracy=best.validation_accuracy,
            validation_loss=best.validation_loss,
            best_epoch=result.best_epoch,
        ),
        data_version=dg.DataVersion(manifest.weights_sha256),
        metadata={
            "model": manifest.name,
            "weights_sha256": manifest.weights_sha256,
            "validation_accuracy": best.validation_accuracy,
            "validation_loss": best.validation_loss,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "stopped_early": result.stopped_early,
            "resumed_after_epoch": result.resumed_after,
            "images_per_second": harmonic_mean(epoch.images_per_second for epoch in result.history),
            "device": result.device,
            "precision": result.precision,
            "learning_curves": picture(learning_curves(result.history, result.best_epoch), "learning curves"),
            "settings": dg.MetadataValue.json(settings.model_dump()),
        },
    )


class ModelEvaluationConfig(dg.Config, EvaluationSettings):
    """How the candidate is measured and pictured."""


@dg.asset(group_name=GROUP, kinds={"scikitlearn"}, code_version="1", io_manager_key="record_io_manager")
def model_evaluation(
    config: ModelEvaluationConfig,
    digit_classifier: ModelRecord,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
) -> dg.Output[Evaluation]:
    """The scores of exactly the candidate that was just trained, on validation and on test."""
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.evaluation import evaluate
    from mnist_pipeline.ml.network import model_from_bytes
    from mnist_pipeline.ml.plots import confusion, mistake_grid

    manifest, weights = model_store.load(digit_classifier.name)
    _require_same_weights(manifest, digit_classifier.weights_sha256)
    model = model_from_bytes(weights, manifest.settings)
    validation, _ = evaluate(model, processed_mnist_data.validation, manifest.normalization, config)
    test, mistakes = evaluate(model, processed_mnist_data.test, manifest.normalization, config)
    evaluation = Evaluation(
        model=digit_classifier,
        validation=validation,
        test=test,
        test_digest=content_digest(processed_mnist_data.test),
    )
    return dg.Output(
        evaluation,
        # The name of the version holds the time; the same weights and scores are the same evaluation.
        data_version=dg.DataVersion(f"{manifest.weights_sha256[:16]}-{evaluation.digest(exclude={'model'})[:16]}"),
        metadata={
            "model": manifest.name,
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_expected_calibration_error": test.expected_calibration_error,
            "validation_accuracy": validation.accuracy,
            "validation_loss": validation.loss,
            "test_images": test.images,
            "per_class": table([metrics.model_dump() for metrics in test.per_class]),
            "confusion_matrix": picture(confusion(test), "confusion matrix on the test images"),
            "worst_mistakes": picture(mistake_grid(processed_mnist_data.test, mistakes), "worst mistakes on test"),
        },
    )


def _require_same_weights(manifest: ModelManifest, weights_sha256: str) -> None:
    if manifest.weights_sha256 != weights_sha256:
        raise dg.Failure(
            f"{manifest.name} in the store has other weights than the candidate that was trained", allow_retries=False
        )
