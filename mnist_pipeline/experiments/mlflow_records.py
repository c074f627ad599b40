"""The records of a version in MLflow's words: parameters, metrics, tags."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mnist_pipeline.ml.manifest import Decision, ModelManifest
from mnist_pipeline.ml.records import EpochMetrics
from mnist_pipeline.stores.evaluations import KeptEvaluation

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

VERSION_TAG, TRAINING_TAG = "mnist_pipeline.version", "mnist_pipeline.training"
"""The tags by which a run is found again: of a version, of a training that was killed."""

NOT_IN_NAMES = re.compile(r"[^\w\-. /:]")
"""Signs that MLflow refuses in names of metrics."""


def parameters(settings: dict[str, Any]) -> "Iterator[Param]":
    """Yield the settings of a training as parameters."""
    from mlflow.entities import Param

    yield from (Param(name, str(value)) for name, value in settings.items())


def epoch_metrics(metrics: EpochMetrics, at: int) -> "Iterator[Metric]":
    """Yield the metrics of an epoch, its number as the step, at a time in milliseconds since 1970."""
    values = metrics.model_dump(exclude={"epoch"})
    yield from (
        metric(name, value, at, metrics.epoch) for name, value in values.items() if isinstance(value, int | float)
    )


def evaluation_metrics(kept: KeptEvaluation) -> dict[str, float]:
    """Return the scores of an evaluation by the names of metrics."""
    found = {"evaluation/confidence_threshold": kept.threshold}
    for split in ("validation", "test"):
        scores = getattr(kept.evaluation, split)
        for measure in ("accuracy", "loss", "expected_calibration_error"):
            found[f"evaluation/{split}_{measure}"] = getattr(scores, measure)
    return found | {f"slice_accuracy/{NOT_IN_NAMES.sub('_', s.name)}": s.accuracy for s in kept.evaluation.slices}


def metric(name: str, value: float, at: int, step: int) -> "Metric":
    """Return a value at a step, at a time in milliseconds since 1970."""
    from mlflow.entities import Metric

    return Metric(name, float(value), at, step)


def run_tags(manifest: ModelManifest, address: str, decision: Decision | None) -> dict[str, str]:
    """Return the tags of the run of a version in the store of an address, with the last decision about it."""
    training, origin = manifest.training, manifest.training.provenance
    told = {
        "mlflow.runName": training.trial or manifest.name,
        VERSION_TAG: manifest.name,
        "mnist_pipeline.store": address,
        "mnist_pipeline.decision": f"{decision.outcome} ({decision.strategy})" if decision else None,
        "mnist_pipeline.weights_sha256": manifest.weights_sha256,
        "mnist_pipeline.data_version": training.data_version,
        "dagster.run_id": training.run_id,
        "mlflow.source.git.commit": origin.git_commit if origin else None,
    }
    return {name: str(value) for name, value in told.items() if value}


def milliseconds(moment: datetime | None = None) -> int:
    """Return a time, or now, as MLflow counts it: milliseconds since 1970."""
    return int((moment or datetime.now(UTC)).timestamp() * 1000)
