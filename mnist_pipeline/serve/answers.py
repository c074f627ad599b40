"""What the service answers."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from mnist_pipeline.serve.deployed import Served


class PredictOptions(BaseModel):
    """What else to answer."""

    model_config = ConfigDict(extra="forbid")

    probabilities: bool = Field(False, description="Also the probabilities of all ten classes.")
    prepared: bool = Field(False, description="Also the 28x28 picture that the model saw.")
    review: bool = Field(True, description="Keep unsure predictions for /review.")


class PredictionAnswer(BaseModel):
    """What the model sees in one image."""

    id: str = Field(description="Of this prediction.")
    label: int = Field(description="0..9.")
    confidence: float = Field(description="Probability of the label, 0..1.")
    needs_review: bool = Field(description="The confidence is below the service's threshold.")
    probabilities: list[float] | None = Field(None, description="Of the ten classes; with `probabilities=true`.")
    prepared: list[list[int]] | None = Field(
        None, description="The 28x28 picture that the model saw, 0..255; with `prepared=true`."
    )


class Predictions(BaseModel):
    """For the images of one request in their order, all by one model."""

    model: str = Field(description="The version that answered.")
    predictions: list[PredictionAnswer]


class DeployedModel(BaseModel):
    """What is served, its metrics, when and why it was deployed."""

    model: str
    weights_sha256: str
    deployed_at: datetime
    deployed_because: str
    strategy: str
    actor: str
    test_accuracy: float | None = Field(description="0..1; null where it was not measured.")
    validation_accuracy: float = Field(description="0..1.")
    trained_at: datetime
    data_version: str
    run_id: str = Field(description="The Dagster run that trained it.")
    serving_since: datetime
    confidence_threshold: float = Field(description="Below it a prediction `needs_review`.")

    @classmethod
    def of(cls, served: Served, confidence_threshold: float) -> "DeployedModel":
        decision, manifest = served.decision, served.predictor.manifest
        return cls(
            model=decision.version,
            weights_sha256=decision.weights_sha256,
            deployed_at=decision.decided_at,
            deployed_because=decision.reason,
            strategy=decision.strategy,
            actor=decision.actor,
            test_accuracy=decision.test_accuracy,
            validation_accuracy=manifest.best.validation_accuracy,
            trained_at=manifest.created_at,
            data_version=manifest.data_version,
            run_id=manifest.run_id,
            serving_since=served.since,
            confidence_threshold=confidence_threshold,
        )


class Readiness(BaseModel):
    """Whether there is a verified model, and what is wrong besides."""

    ready: bool
    model: str | None
    problems: list[str] = Field(description="What the operator should look into; details are in the log.")


class Health(BaseModel):
    """The process works."""

    healthy: bool


class CorrectionState(BaseModel):
    """Whether corrections are taken."""

    enabled: bool
    waiting: int = Field(description="Labelled digits that no training has seen yet.")
