"""The typed records that travel between steps and rest in the model store."""

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from mnist_pipeline.ml.settings import CLASSES, TrainingSettings

if TYPE_CHECKING:  # numpy is needed by those who make or read arrays, not by those who only pass them on
    import numpy as np


class LabelledImages(NamedTuple):
    """Images and what they show."""

    images: "np.ndarray"
    """uint8 (N, 28, 28), 0 background to 255 ink."""
    labels: "np.ndarray"
    """uint8 (N,), 0..9."""


class Dataset(NamedTuple):
    """The raw data set, untouched."""

    train: LabelledImages
    test: LabelledImages
    description: str
    """Where it comes from, in words."""
    is_sample: bool
    """True for the 5,000 embedded digits that stand in for the full data set."""


class Splits(NamedTuple):
    """What training, model selection and the final score use; no image is in two of them."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


class Record(BaseModel):
    """Base of all records: immutable, strict about names, stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self, *, exclude: set[str] = frozenset()) -> str:  # type: ignore[assignment]
        """SHA-256 (hex) of the record's JSON without the named fields."""
        return hashlib.sha256(self.model_dump_json(exclude=exclude).encode()).hexdigest()


class Normalization(Record):
    """Constants of `ml.network.normalize`, in units of full ink (0..1)."""

    mean: float = Field(0.1307, description="Mean of the 60,000 MNIST training images.")
    std: float = Field(0.3081, gt=0, description="Standard deviation of the 60,000 MNIST training images.")


class EpochMetrics(Record):
    """One pass over the training images. Losses are mean cross-entropies in nats, accuracies 0..1."""

    epoch: int = Field(description="Counted from 1.")
    train_loss: float
    train_accuracy: float = Field(description="On augmented images, with dropout.")
    validation_loss: float = Field(description="Of the moving average of the weights (`ema_epochs`).")
    validation_accuracy: float = Field(description="Of the moving average of the weights.")
    learning_rate: float = Field(description="At the end of the epoch.")
    seconds: float = Field(description="Training and validation, wall clock.")
    images_per_second: float = Field(description="Training images a second, validation left out.")


class Histogram(Record):
    """How many values fall between the edges, below the first and above the last included."""

    edges: list[float]
    counts: list[int] = Field(description="One more than edges; a value on an edge counts above it.")


class DriftReference(Record):
    """What a model saw and said on its validation split, for comparison with what it is asked later."""

    images: int
    histograms: dict[str, Histogram] = Field(description="By the name of the statistic; see `ml.drift.statistics`.")


class DriftFinding(Record):
    """One statistic of a batch beside the validation split's."""

    statistic: str
    population_stability_index: float = Field(description="0: alike; see DRIFT_PSI in ml.settings.")
    p_value: float = Field(description="0..1, chi-squared test that both come from one distribution.")
    drifted: bool
    counts: list[int] = Field(description="Of the batch, in the reference's bins.")


class DriftReport(Record):
    """A batch of predictions compared with the validation split of the model that made them."""

    images: int
    findings: list[DriftFinding]

    @property
    def drifted(self) -> list[str]:
        """The statistics that shifted."""
        return [finding.statistic for finding in self.findings if finding.drifted]


class ModelManifest(Record):
    """Everything about a model version but its weights; it can rebuild the network by itself."""

    format_version: Literal[1] = 1
    name: str
    weights_sha256: str = Field(description="SHA-256 (hex) of weights.safetensors.")
    settings: TrainingSettings = Field(description="Architecture and recipe.")
    normalization: Normalization
    best_epoch: int = Field(description="The epoch whose weights these are.")
    history: list[EpochMetrics]
    data_version: str = Field(description="Digest of the splits it was trained on.")
    code_version: str
    run_id: str = Field(description="The Dagster run that trained it.")
    created_at: datetime = Field(description="UTC.")
    drift_reference: DriftReference | None = Field(None, description="None in versions from before it was kept.")

    @property
    def best(self) -> EpochMetrics:
        return self.history[self.best_epoch - 1]


class ModelRecord(Record):
    """A pointer to one immutable candidate in the model store."""

    name: str
    weights_sha256: str
    validation_accuracy: float
    validation_loss: float
    best_epoch: int


class ClassMetrics(Record):
    """One-versus-rest scores of a class (0..1)."""

    label: int
    precision: float
    recall: float
    f1: float
    support: int = Field(description="Images whose true label this is.")


class SplitEvaluation(Record):
    """The scores of one model on one split."""

    images: int
    accuracy: float
    loss: float = Field(description="Mean cross-entropy in nats.")
    expected_calibration_error: float = Field(
        description="0..1. Guo et al. 2017, On Calibration of Modern Neural Networks."
    )
    confusion_matrix: list[list[int]] = Field(description="Rows: true label; columns: predicted label.")
    per_class: list[ClassMetrics]


class Evaluation(Record):
    """The scores of exactly one candidate."""

    model: ModelRecord
    validation: SplitEvaluation
    test: SplitEvaluation
    test_digest: str = Field(description="Content digest of the test images and labels that were scored.")


class Decision(Record):
    """One decision of the gate, or a rollback. The latest one that promoted is what is deployed."""

    id: str = Field(description="Sorts by time.")
    outcome: Literal["promoted", "refused", "unchanged"]
    strategy: Literal["quality", "manual", "force", "rollback"]
    reason: str
    version: str = Field(description="The version decided about.")
    weights_sha256: str
    test_accuracy: float | None = Field(None, description="0..1; None where it was not measured.")
    incumbent_version: str | None = Field(description="What was deployed before; None: nothing.")
    incumbent_test_accuracy: float | None = Field(None, description="0..1, on the same test images.")
    replaces: str | None = Field(description="Id of the decision that had deployed the incumbent.")
    actor: str = Field(description="Who or which run decided.")
    decided_at: datetime = Field(description="UTC.")


class Prediction(Record):
    """What the model sees in one image."""

    source: str = Field(description="File name, or where in the request the image stood.")
    label: int
    confidence: float = Field(description="Probability of the label, 0..1.")
    needs_review: bool = Field(description="The confidence is below the threshold.")
    probabilities: list[float] | None = Field(None, description="Of the ten classes; sums to 1.")


class DigitPredictions(Record):
    """Real-time predictions."""

    model: str
    weights_sha256: str
    predictions: list[Prediction]


class InputError(Record):
    """An input that could not be read."""

    source: str
    error: str


class BatchPredictions(Record):
    """Where a table of predictions is and what it holds."""

    model: str
    weights_sha256: str
    inputs_digest: str = Field(description="Content digest of all that was read.")
    path: str = Field(description="Parquet: source, index, label, confidence, model.")
    errors_path: str = Field(description="Parquet: source, error; a row for each input that could not be read.")
    images: int
    errors: int
    label_counts: list[int] = Field(min_length=CLASSES, max_length=CLASSES)
    mean_confidence: float | None = Field(description="None when no image could be read.")
    unreadable: list[InputError] = Field([], description="The first hundred; the errors table has all.")
    drift: DriftReport | None = Field(None, description="None where no image or no reference was there to compare.")
