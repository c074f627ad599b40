"""The progress and the metadata of a training, for the assets that train."""

from collections.abc import Callable
from statistics import harmonic_mean
from typing import TYPE_CHECKING

import dagster as dg

from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.metadata import picture
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.records import EpochMetrics

if TYPE_CHECKING:
    from mnist_pipeline.experiments.mlflow_mirror import Mirror

CRASH_RETRIES = dg.RetryPolicy(max_retries=2, delay=1)
"""The retries of killed steps, stores out of reach, and another deployer in between; bad input is not retried."""

TRAINING_COMPUTE = Compute(cores=4, memory_mib=4096)
"""The machine that a training takes; one on a GPU asks for it here: `gpus=1`."""


def reporter(
    context: dg.AssetExecutionContext, epochs: int, mirror: "Mirror | None" = None
) -> Callable[[EpochMetrics], None]:
    """Return a function that tells each epoch in the log, to MLflow, and on the asset's page while the step runs."""
    partition = context.partition_key if context.has_partition_key else None

    def report(metrics: EpochMetrics) -> None:
        context.log.info(
            "epoch %d/%d: training loss %.4f, validation loss %.4f, validation accuracy %.4f, %.0f images/s",
            *(metrics.epoch, epochs, metrics.train_loss, metrics.validation_loss),
            *(metrics.validation_accuracy, metrics.images_per_second),
        )
        # An observation changes no data version.
        context.log_event(dg.AssetObservation(context.asset_key, metadata=metrics.model_dump(), partition=partition))
        if mirror:
            mirror.epoch(metrics)

    return report


def version_metadata(manifest: ModelManifest) -> "dict[str, dg.RawMetadataValue]":
    """Return what there is to see of a version that this code trained."""
    from mnist_pipeline.ml.plots import learning_curves

    training = manifest.training
    history, best_epoch, origin = training.epochs, training.best_epoch or 0, training.provenance
    best = history[best_epoch - 1]
    return {
        "model": manifest.name,
        "weights_sha256": manifest.weights_sha256,
        "onnx_sha256": manifest.onnx_sha256,
        "temperature": training.temperature,
        "validation_accuracy": best.validation_accuracy,
        "validation_loss": best.validation_loss,
        "best_epoch": best_epoch,
        "epochs": len(history),
        "images_per_second": harmonic_mean(epoch.images_per_second for epoch in history),
        "device": origin.device if origin else None,
        "precision": origin.precision if origin else None,
        "training_seconds": origin.seconds if origin else None,
        "peak_memory_mib": origin.peak_memory_mib if origin else None,
        "git_commit": origin.git_commit if origin else None,
        "splits_kept_bytes": sum(kept.bytes or 0 for kept in training.splits.values()),
        "learning_curves": picture(learning_curves(history, best_epoch), "learning curves"),
        "settings": dg.MetadataValue.json(training.settings),
    }
