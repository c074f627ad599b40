"""Settings refuse what they cannot do, with the field and what is allowed."""

import pytest
from pydantic import ValidationError

from mnist_pipeline.ml.settings import (
    BatchPredictionSettings,
    DeploymentSettings,
    EvaluationSettings,
    RealTimePredictionSettings,
    SplitSettings,
    TrainingSettings,
)

REFUSED = [
    (TrainingSettings, {"learning_rate": 0}, "learning_rate", "greater than 0"),
    (TrainingSettings, {"optimizer": "adma"}, "optimizer", "'adam', 'adamw' or 'sgd'"),
    (TrainingSettings, {"schedule": "cosine"}, "schedule", "'onecycle', 'step' or 'none'"),
    (TrainingSettings, {"momentum": 0.9, "optimizer": "adam"}, "momentum", "optimizer='sgd'"),
    (TrainingSettings, {"step_size": 3}, "step_size", "schedule='step'"),
    (TrainingSettings, {"step_gamma": 0.3}, "step_gamma", "schedule='step'"),
    (TrainingSettings, {"warmup_fraction": 0.3, "schedule": "none"}, "warmup_fraction", "schedule='onecycle'"),
    (
        TrainingSettings,
        {"early_stopping_min_delta": 0.1, "early_stopping_patience": None},
        "early_stopping_min_delta",
        "early_stopping_patience",
    ),
    (TrainingSettings, {"batch_size": 1}, "batch_size", "greater than or equal to 4"),
    (TrainingSettings, {"epochs": 0}, "epochs", "greater than or equal to 1"),
    (TrainingSettings, {"learning_rat": 0.1}, "learning_rat", "not permitted"),
    (DeploymentSettings, {"accuracy_threshold": 1.2}, "accuracy_threshold", "less than or equal to 1"),
    (DeploymentSettings, {"max_regression": -0.1}, "max_regression", "greater than or equal to 0"),
    (DeploymentSettings, {"strategy": "force"}, "force", "needs a reason"),
    (DeploymentSettings, {"strategy": "force", "reason": " "}, "force", "needs a reason"),
    (DeploymentSettings, {"model_name": "x"}, "model_name", "strategy='manual'"),
    (DeploymentSettings, {"reason": "x"}, "reason", "'force' or 'manual'"),
    (
        DeploymentSettings,
        {"strategy": "force", "reason": "x", "accuracy_threshold": 0.5},
        "accuracy_threshold",
        "strategy='quality'",
    ),
    (DeploymentSettings, {"strategy": "manual", "max_regression": 0.5}, "max_regression", "strategy='quality'"),
    (SplitSettings, {"validation_fraction": 1}, "validation_fraction", "less than 1"),
    (EvaluationSettings, {"calibration_bins": 0}, "calibration_bins", "greater than or equal to 1"),
    (BatchPredictionSettings, {"batch_size": 0}, "batch_size", "greater than or equal to 1"),
    (RealTimePredictionSettings, {"confidence_threshold": 2}, "confidence_threshold", "less than or equal to 1"),
]


@pytest.mark.parametrize(("settings", "values", "field", "allowed"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(settings, values, field, allowed):
    with pytest.raises(ValidationError, match=allowed) as error:
        settings(**values)
    assert field in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        SplitSettings,
        TrainingSettings,
        EvaluationSettings,
        DeploymentSettings,
        BatchPredictionSettings,
        RealTimePredictionSettings,
    ],
)
def test_every_field_is_described_and_nothing_changes_later(settings):
    assert all(field.description for field in settings.model_fields.values())
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings(), next(iter(settings.model_fields)), None)
