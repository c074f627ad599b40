"""The definitions with trials that stop in the middle as long as a file is there, for tests that kill them then."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg

from mnist_pipeline.definitions import defs
from mnist_pipeline.defs.assets import trial
from mnist_pipeline.defs.training import reporter
from mnist_pipeline.experiments.mlflow_mirror import Mirror
from mnist_pipeline.ml.records import EpochMetrics

__all__ = ["defs"]

HOLD = "HOLD_TRIALS"
"""The variable that names the file."""

HELD_FROM = 3
"""The first epoch after which a trial may stop; after its last one none does."""


def _held(
    context: dg.AssetExecutionContext, epochs: int, mirror: Mirror | None = None
) -> Callable[[EpochMetrics], None]:
    report = reporter(context, epochs, mirror)

    def report_and_wait(metrics: EpochMetrics) -> None:
        report(metrics)
        while HELD_FROM <= metrics.epoch < epochs and Path(os.environ[HOLD]).exists():
            time.sleep(0.02)

    return report_and_wait


trial.reporter = _held
