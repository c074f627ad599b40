"""The answers of the service, and the options of a request."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from mnist_pipeline.serve.deployment import Served


class PredictOptions(BaseModel, extra="forbid"):
    """The query of a prediction: what to answer besides the label."""

    probabilities: bool = Field(False, description="Also the probabilities of all classes.")
    prepared: bool = Field(False, description="Also the prepared picture that the model saw.")
    review: bool = Field(
        True, description="Keep unsure predictions, and those about pictures unlike the training data, for /review."
    )


class PredictionAnswer(BaseModel):
    """The answer about one image."""

    id: str = Field(description="Of this prediction.")
    label: int = Field(description="Counted from 0.")
    class_name: str = Field(alias="class", description="The name of the class.")
    confidence: float = Field(description="Probability of the label, 0..1.")
    needs_review: bool = Field(description="The confidence is below the service's threshold.")
    unlike_training_data: bool | None = Field(
        description="The picture does not look like any of the classes, whatever the confidence; null: the model was "
        "made before this was told."
    )
    probabilities: list[float] | None = Field(None, description="Of all classes; with `probabilities=true`.")
    prepared: list[list[Any]] | None = Field(
        None, description="The picture that the model saw, rows of values 0..255; with `prepared=true`."
    )


class Predictions(BaseModel):
    """The answers about the images of one request in their order, all by one model."""

    model: str = Field(description="The version that answered.")
    predictions: list[PredictionAnswer]


class DeployedModel(BaseModel):
    """The model that answers: its classes and metrics, when and why it was deployed."""

    model: str
    weights_sha256: str
    deployed_at: datetime
    deployed_because: str
    strategy: str
    actor: str
    reference: str = Field(description="The version that later candidates are also compared with.")
    test_accuracy: float | None = Field(description="0..1; null where it was not measured.")
    validation_accuracy: float | None = Field(description="0..1; this and the next three are null if not recorded.")
    trained_at: datetime | None
    data_version: str | None
    run_id: str | None = Field(description="The Dagster run that trained it.")
    serving_since: datetime
    confidence_threshold: float = Field(description="Below it a prediction `needs_review`.")
    class_names: list[str] = Field(description="What each label stands for, in the order of the labels.")
    image_shape: list[int] = Field(description="Height, width and channels of a prepared picture.")
    task: str = Field(description="The name of the task.")
    pictures: str = Field(description="The kind of pictures: handwriting, cutouts or photos.")

    @classmethod
    def of(cls, served: Served) -> Self:
        """Describe the model that is served."""
        decision, spec = served.decision, served.predictor.spec
        training = served.predictor.manifest.training
        same = decision.model_dump(include={"weights_sha256", "strategy", "actor", "test_accuracy"})
        return cls(
            **same,
            model=decision.version,
            reference=decision.reference,
            deployed_at=decision.decided_at,
            deployed_because=decision.reason,
            validation_accuracy=training.best("validation_accuracy"),
            trained_at=training.created_at,
            data_version=training.data_version,
            run_id=training.run_id,
            serving_since=served.since,
            confidence_threshold=served.threshold,
            class_names=list(spec.class_names),
            image_shape=list(spec.image_shape),
            task=spec.name,
            pictures=spec.pictures,
        )


class Readiness(BaseModel):
    """The state of the model, and what is wrong besides."""

    ready: bool
    model: str | None
    problems: list[str] = Field(description="For the operator to look into; details are in the log.")


class Health(BaseModel):
    """The process works."""

    healthy: bool


class CorrectionState(BaseModel):
    """The state of the loop back to training."""

    enabled: bool = Field(description="Corrections are taken.")
    waiting: int = Field(description="Labelled images that no training has seen yet.")
