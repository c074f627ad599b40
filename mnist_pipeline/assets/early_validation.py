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
                name = ".".join(map(str, [step, *problem["loc"]]))
                message = problem["msg"].removeprefix("Value error, ")
                got = f"got {problem['input']!r}{_allowed(settings, problem['loc'])}"
                problems.append(f"{name}: {message} ({got})")
    if problems:
        raise dg.Failure("The run's configuration is not valid:\n" + "\n".join(problems), allow_retries=False)


def _allowed(settings: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Both ends of a number's range; pydantic's message has the one that was passed."""
    field = settings.model_fields.get(str(location[0])) if location else None
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in (field.metadata if field else [])
        for name, sign in {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}.items()
        if hasattr(limit, name)
    ]
    return f"; allowed: {' and '.join(limits)}" if limits else ""


def _resolved(value: object) -> object:
    """With environment variables in place of `{env: NAME}`, which the run's record keeps as it was written."""
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    return dg.EnvVar(value["env"]).get_value() if isinstance(value, dict) and value.keys() == {"env"} else value
