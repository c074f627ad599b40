"""Sweeps whose trials end at once, and a model store of each kind."""

from collections.abc import Callable
from typing import Any

import pytest

from mnist_pipeline.experiments.sweep import Sweep, parse_sweep
from mnist_pipeline.experiments.trials import Sweeps, Trial
from mnist_pipeline_tests.stores.conftest import save, save_to, store

__all__ = ["save", "save_to", "store"]

SPACE = {"learning_rate": {"low": 0.001, "high": 0.03, "log": True}, "batch_size": {"choices": [16, 32, 64]}}


def a_sweep(**fields: Any) -> Sweep:
    return parse_sweep({"name": "some", "configurations": 5, "space": SPACE} | fields, "the test")


@pytest.fixture
def finish() -> Callable[..., Trial]:
    """Records what a trial came to, as if it had been trained."""

    def finish(sweeps: Sweeps, sweep: str, trial: Trial, accuracy: float | None = None, seconds: float = 1.0) -> Trial:
        found: dict[str, Any] = {"problem": "the loss diverged"}
        if accuracy is not None:
            found = {
                "version": f"mnist_cnn_20260101T000000.000Z_{trial.configuration}_{trial.seed}",
                "validation_accuracy": accuracy,
                "validation_loss": 1 - accuracy,
                "epochs": 1,
                "seconds": seconds,
                "weights_bytes": 2**20,
            }
        done = trial.model_copy(update=found)
        sweeps.record(sweeps.read(sweep).name_of(trial), done)
        return done

    return finish
