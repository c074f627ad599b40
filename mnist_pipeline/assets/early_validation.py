"""Checks the settings of all steps when the first step begins.

Dagster refuses unknown names and wrong types before a run starts, but numbers out of range and
contradictory combinations only when their own step begins, after all steps before it.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import BaseModel, ValidationError

from mnist_pipeline.ml.settings import (
    BatchPredictionSettings,
    DeploymentSettings,
    EvaluationSettings,
    RealTimePredictionSettings,
    SplitSettings,
    TrainingSettings,
)

SETTINGS: dict[str, type[BaseModel]] = {
    "processed_mnist_data": SplitSettings,
    "digit_classifier": TrainingSettings,
    "model_evaluation": EvaluationSettings,
    "production_digit_classifier": DeploymentSettings,
    "batch_digit_predictions": BatchPredictionSettings,
    "digit_predictions": RealTimePredictionSettings,
}


def validate_run_config(run_config: Mapping[str, Any]) -> None:
    """Raise Failure, naming step, field and allowed values, if a step of this run would refuse its settings."""
    problems = []
    for step, settings in SETTINGS.items():
        config = run_config.get("ops", {}).get(step, {}).get("config", {})
        try:
            settings(**{name: _resolved(value) for name, value in config.items()})
        except ValidationError as error:
            for problem in error.errors():
                field = ".".join(map(str, problem["loc"]))
                problems.append(f"{step}{'.' if field else ''}{field}: {problem['msg']} (got {problem['input']!r})")
    if problems:
        raise dg.Failure("The run's configuration is not valid:\n" + "\n".join(problems), allow_retries=False)


def _resolved(value: object) -> object:
    """`{env: NAME}` stands for the environment variable; Dagster itself puts it in only when the step begins."""
    return dg.EnvVar(value["env"]).get_value() if isinstance(value, dict) and value.keys() == {"env"} else value
