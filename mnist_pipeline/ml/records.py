"""The typed records that travel between steps."""

import hashlib
from typing import NamedTuple, Self

from pydantic import BaseModel, Field

from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec


class Splits(NamedTuple):
    """The images for training, for model selection and for the final score; no image is in two of them."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    spec: TaskSpec
    held_out: LabelledImages
    """Those that never train of the images that people labelled; see `ml.holding_out`."""

    @property
    def parts(self) -> dict[str, LabelledImages]:
        """The splits by their names, that of the held-out labels where there are any."""
        held_out = {"held_out": self.held_out} if len(self.held_out.labels) else {}
        return {"train": self.train, "validation": self.validation, "test": self.test} | held_out


NO_LABEL, UNKNOWN = -1, -2
"""The labels that stand for a predicted class that there is not now, and for an image of a class that a model of
another time does not know."""


class Record(BaseModel, frozen=True, extra="forbid"):
    """The base of all records: immutable, strict about names, stored as JSON."""

    def digest(self, *, exclude: set[str] = frozenset()) -> str:  # type: ignore[assignment]
        """Return the SHA-256 (hex) of the record's JSON without the named fields."""
        return hashlib.sha256(self.model_dump_json(exclude=exclude).encode()).hexdigest()


class Digests(NamedTuple):
    """The two files that a model is: equal weights with another temperature answer otherwise."""

    weights_sha256: str
    onnx_sha256: str | None
    """It is None in what was recorded before there was a model.onnx, and then the weights tell."""

    def same(self, other: "Digests") -> bool:
        """Return whether both are one model, as far as both were recorded."""
        known = self.onnx_sha256 is not None and other.onnx_sha256 is not None
        return self.weights_sha256 == other.weights_sha256 and (not known or self.onnx_sha256 == other.onnx_sha256)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Invert `str`."""
        weights_sha256, _, onnx_sha256 = text.partition("+")
        return cls(weights_sha256, onnx_sha256 or None)

    def __str__(self) -> str:
        return f"{self.weights_sha256}+{self.onnx_sha256}" if self.onnx_sha256 else self.weights_sha256


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


class Histogram(Record, extra="ignore"):
    """Counts of values between the edges, below the first and above the last included."""

    edges: list[float]
    counts: list[int] = Field(description="One more than edges; a value on an edge counts above it.")


class CoverageCurve(Record, extra="ignore"):
    """The validation images of a model by how sure it is of them, the surest first; see `ml.coverage`."""

    confidences: list[float] = Field(description="Falling; 0..1.")
    answered: list[int] = Field(description="How many images it is at least so sure of.")
    mistakes: list[int] = Field(description="How many of those it labels wrongly.")
    images: int


class DriftReference(Record, extra="ignore"):
    """Statistics of a model's validation split, for comparison with what it is asked later."""

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


class ModelRecord(Record):
    """A pointer to one immutable candidate in the model store."""

    name: str
    weights_sha256: str
    onnx_sha256: str | None = Field(None, description="None where it was trained before there was a model.onnx.")
    validation_accuracy: float
    validation_loss: float
    best_epoch: int

    @property
    def digests(self) -> Digests:
        """The model that was trained."""
        return Digests(self.weights_sha256, self.onnx_sha256)


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


class SliceScore(Record):
    """The accuracy on some images of the evaluation suite; see `ml.suite`."""

    name: str
    images: int
    accuracy: float = Field(description="0..1.")
    low: float = Field(description="Lower end of the 95% interval of the accuracy (Wilson 1927).")
    high: float = Field(description="Upper end of it.")


class Evaluation(Record):
    """The scores of exactly one candidate."""

    model: ModelRecord
    validation: SplitEvaluation
    test: SplitEvaluation
    test_digest: str = Field(description="Content digest of the test images and labels that were scored.")
    slices: list[SliceScore] = Field([], description="None in records from before there was a suite.")


class Prediction(Record):
    """The answer of a model about one image."""

    source: str = Field(description="File name, or where in the request the image stood.")
    label: int
    class_name: str | None = Field(None, description="None in records from before there were names.")
    confidence: float = Field(description="Probability of the label, 0..1.")
    needs_review: bool = Field(description="The confidence is below the threshold.")
    unlike_training_data: bool | None = Field(
        None, description="It does not look like any of the classes. None of a model from before this was told."
    )
    probabilities: list[float] | None = Field(None, description="Of all classes; sums to 1.")


class RealTimePredictions(Record):
    """Real-time predictions."""

    model: str
    weights_sha256: str
    onnx_sha256: str | None = None
    predictions: list[Prediction]


class InputError(Record):
    """An input that could not be read."""

    source: str
    error: str


def part_file(number: int) -> str:
    """Return the name of a part's file in the folder of a table of several parts."""
    return f"part-{number:05d}.parquet"


class BatchPredictions(Record):
    """A table of predictions: where it is, and a summary of it."""

    model: str
    weights_sha256: str
    onnx_sha256: str | None = None
    inputs_digest: str = Field(description="Content digest of all that was read.")
    path: str = Field(description="Parquet: source, index, label, class, confidence, unlike_training_data, model.")
    errors_path: str = Field(description="Parquet: source, error; a row for each input that could not be read.")
    parts: int = Field(1, ge=1, description="More than one: each path is a folder of so many files, one data set.")
    images: int
    errors: int
    label_counts: list[int] = Field(description="How often each label was predicted, in their order.")
    mean_confidence: float | None = Field(description="None when no image could be read.")
    unlike_training_data: int | None = Field(
        None, description="Images that look like none of the classes. None of a model from before this was told."
    )
    unreadable: list[InputError] = Field([], description="The first hundred; the errors table has all.")
    drift: DriftReport | None = Field(None, description="None where no image or no reference was there to compare.")
