"""The definitions with trainings that stop in the middle as long as a file is there, for tests that kill them then."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from mnist_pipeline.definitions import defs
from mnist_pipeline.defs.assets import digit_classifier, trial
from mnist_pipeline.defs.training import reporter
from mnist_pipeline.experiments.mlflow_mirror import Mirror
from mnist_pipeline.ml.records import EpochMetrics
from mnist_pipeline.task import sources
from mnist_pipeline.task.dataset import Dataset
from mnist_pipeline.task.sources import load_dataset

__all__ = ["defs"]

HOLD_TRIALS, HOLD_TRAINING, HOLD_DATA = "HOLD_TRIALS", "HOLD_TRAINING", "HOLD_DATA"
"""The variables that name the file, of trials, of the main training and of a step before it; without one none stops."""

HELD_FROM = 3
"""The first epoch after which a training may stop; after its last one none does."""


def _wait(variable: str) -> None:
    file = os.environ.get(variable)
    while file and Path(file).exists():
        time.sleep(0.02)


def _load_dataset(*arguments: Any, **options: Any) -> Dataset:
    _wait(HOLD_DATA)
    return load_dataset(*arguments, **options)


def _held_by(variable: str) -> Callable[..., Callable[[EpochMetrics], None]]:
    def held(
        context: dg.AssetExecutionContext, epochs: int, mirror: Mirror | None = None
    ) -> Callable[[EpochMetrics], None]:
        report = reporter(context, epochs, mirror)

        def report_and_wait(metrics: EpochMetrics) -> None:
            report(metrics)
            if HELD_FROM <= metrics.epoch < epochs:
                _wait(variable)

        return report_and_wait

    return held


sources.load_dataset = _load_dataset
trial.reporter = _held_by(HOLD_TRIALS)
digit_classifier.reporter = _held_by(HOLD_TRAINING)
