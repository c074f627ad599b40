"""The definitions with trainings that stop in the middle as long as a file is there, for tests that kill them then."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from mnist_pipeline.definitions import defs
from mnist_pipeline.defs.assets import digit_classifier, trial
from mnist_pipeline.defs.training import reporter
from mnist_pipeline.experiments.mlflow_mirror import Mirror
from mnist_pipeline.ml.records import EpochMetrics

__all__ = ["defs"]

HOLD_TRIALS, HOLD_TRAINING = "HOLD_TRIALS", "HOLD_TRAINING"
"""The variables that name the file, of trials and of the main training; without one they do not stop."""

HELD_FROM = 3
"""The first epoch after which a training may stop; after its last one none does."""


def _held_by(variable: str) -> Callable[..., Callable[[EpochMetrics], None]]:
    def held(
        context: dg.AssetExecutionContext, epochs: int, mirror: Mirror | None = None
    ) -> Callable[[EpochMetrics], None]:
        report = reporter(context, epochs, mirror)

        def report_and_wait(metrics: EpochMetrics) -> None:
            report(metrics)
            file = os.environ.get(variable)
            while HELD_FROM <= metrics.epoch < epochs and file and Path(file).exists():
                time.sleep(0.02)

        return report_and_wait

    return held


trial.reporter = _held_by(HOLD_TRIALS)
digit_classifier.reporter = _held_by(HOLD_TRAINING)
